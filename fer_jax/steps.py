"""The compiled training steps, on a batch that is given or gathered on the device.

Every step is one `jit` over one `shard_map`: each device works on its share of the global batch,
gradients and sums are added over the devices, and nothing else depends on how many there are.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fer_jax import keys, optim, precision
from fer_jax.config import Config
from fer_jax.data.augment import alternating_flips, augment
from fer_jax.data.mix import blend, mix
from fer_jax.data.pipeline import epoch_order, steps_per_epoch
from fer_jax.labels import NUM_CLASSES
from fer_jax.machine.devices import BATCH_AXIS
from fer_jax.state import RunningSums, TrainState

# Labels `[n]` int32, or these and soft labels `[n, classes]` float32 (see fer_jax.teachers).
type Labels = jax.Array | tuple[jax.Array, jax.Array]

AUX_WEIGHT = 0.3  # of each auxiliary head's loss; Szegedy et al. 2015, section 5


def balanced_class_weights(labels: np.ndarray, classes: int = NUM_CLASSES) -> np.ndarray:
    """Returns `[classes]` float32 weights n / (classes * images of the class), 0 without images."""
    counts = np.bincount(labels, minlength=classes)
    weights = len(labels) / (classes * np.maximum(counts, 1))
    return np.where(counts > 0, weights, 0.0).astype(np.float32)


def to_float(images: jax.Array) -> jax.Array:
    """Maps uint8 images to float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def objective(
    logits: jax.Array,
    labels: jax.Array,
    smoothing: float,
    class_weights: np.ndarray | None,
    own: jax.Array | None = None,
) -> jax.Array:
    """The loss against labels.

    Args:
      logits: `[batch, classes]` float32.
      labels: `[batch]` int32.
      smoothing: share of the target spread over the classes (Szegedy et al. 2016, section 7).
      class_weights: `[classes]` float32, factor of each true class; None for ones.
      own: `[batch]` float32, share of each image that is its own, where pairs are mixed.

    Returns:
      `[batch]` float32, cross-entropy in nats.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    if class_weights is not None:
        targets = targets * jnp.asarray(class_weights)[labels][:, None]
    if own is not None:
        targets = blend(targets, own[:, None])
    return optax.softmax_cross_entropy(logits, targets)


def distillation(logits: jax.Array, soft: jax.Array, temperature: float) -> jax.Array:
    """The loss against soft labels (Hinton et al. 2015, section 2).

    Args:
      logits: `[batch, classes]` float32.
      soft: `[batch, classes]` float32, the teachers' probabilities at the temperature.
      temperature: above 0.

    Returns:
      `[batch]` float32: the cross-entropy at the temperature in nats, times its square, so that
      gradients keep their size.
    """
    return temperature**2 * optax.softmax_cross_entropy(logits / temperature, soft)


def batch_sums(logits: jax.Array, labels: jax.Array) -> RunningSums:
    """Sums over a batch: logits `[batch, classes]` float32, labels `[batch]` int32."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.int32)
    return RunningSums(loss.sum(), correct, jnp.asarray(len(labels), jnp.int32))


def is_scanned(mesh: Mesh) -> bool:
    """Returns whether a whole epoch, or a whole split evaluated, is one program on these devices.

    It is on an accelerator. XLA's convolutions on CPU are slow inside its loops
    (jax-ml/jax#12868): there the loop over steps is Python's.
    """
    return mesh.devices.flat[0].platform != "cpu"


# (state, images, labels) -> state
type Step = Callable[[TrainState, jax.Array, Labels], TrainState]


def make_device_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    config: Config,
    per_epoch: int,
    class_weights: np.ndarray | None = None,
) -> Step:
    """Builds one device's share of a step, for the functions below.

    Args:
      model: from `create_model(config.model, axis_name=BATCH_AXIS)`.
      tx: from :func:`fer_jax.optim.create_optimizer`.
      config: the whole configuration.
      per_epoch: steps in an epoch, which alternating flips count.
      class_weights: `[classes]` float32, from :func:`balanced_class_weights`; None for ones.

    Returns:
      A function (state, its images `[share, height, width, 1]` uint8, its :data:`Labels`) -> state,
      to be called inside a `shard_map` over `BATCH_AXIS`.
    """
    train = config.train
    precise = precision.choose(config.model.dtype)

    def image_losses(logits, labels, soft, own):
        loss = objective(logits, labels, train.label_smoothing, class_weights, own)
        if soft is None:
            return loss
        mixed = soft if own is None else blend(soft, own[:, None])
        taught = distillation(logits, mixed, train.temperature)
        return (1 - train.distill_weight) * loss + train.distill_weight * taught

    def loss_of(params, batch_stats, images, targets, dropout_key):
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats", "aux_logits"],
        )
        loss = image_losses(logits, *targets).sum()
        for aux in jax.tree.leaves(updates.get("aux_logits", {})):
            loss += AUX_WEIGHT * image_losses(aux, *targets).sum()
        # Divided by the global batch: gradients then add up over the devices.
        return loss / train.batch_size, (logits, updates.get("batch_stats", {}))

    loss_and_grads = jax.value_and_grad(loss_of, has_aux=True)

    def inputs_of(state: TrainState, images: jax.Array, augment_key: jax.Array):
        positions = lax.axis_index(BATCH_AXIS) * len(images) + jnp.arange(len(images))
        example_keys = jax.vmap(jax.random.fold_in, (None, 0))(augment_key, positions)
        flips = None
        if config.augment.alternate_flip:
            epoch = state.step // per_epoch
            flips = alternating_flips(keys.flip_key(state.seed), epoch, images)
        inputs = augment(example_keys, to_float(images), config.augment, flips)
        mix_key = keys.mix_key(state.seed, state.step)
        pair_keys = jax.vmap(jax.random.fold_in, (None, 0))(mix_key, positions[::2] // 2)
        return mix(pair_keys, inputs, train)

    def step(state: TrainState, images: jax.Array, labels: Labels) -> TrainState:
        labels, soft = labels if isinstance(labels, tuple) else (labels, None)
        augment_key, dropout_key = keys.step_keys(state.seed, state.step)
        inputs, own = inputs_of(state, images, augment_key)
        batch = (state.batch_stats, inputs, (labels, soft, own), dropout_key)
        with precise.products():
            (loss, (logits, batch_stats)), grads = loss_and_grads(state.params, *batch)
        loss, grads, sums = lax.psum((loss, grads, batch_sums(logits, labels)), BATCH_AXIS)
        if train.sam_radius:  # the gradient is another point's; the statistics stay this one's
            there = optim.climb(state.params, grads, train.sam_radius)
            with precise.products():
                grads = lax.psum(loss_and_grads(there, *batch)[1], BATCH_AXIS)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averages = state.averages
        if train.ema_decay:
            now = {"params": params, "batch_stats": batch_stats}
            averages = optim.update_averages(averages, now, state.step + 1, train.ema_decay)
        first_bad = (state.bad_step < 0) & ~jnp.isfinite(loss)
        return state.replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            averages=averages,
            running=jax.tree.map(jnp.add, state.running, sums),
            bad_step=jnp.where(first_bad, state.step, state.bad_step),
        )

    return step


def make_train_step(step: Step, mesh: Mesh) -> Any:
    """Builds the step on a batch that the host gives.

    Args:
      step: from :func:`make_device_step`.
      mesh: the devices that share a batch.

    Returns:
      A compiled function (state, images `[batch, height, width, 1]` uint8, :data:`Labels`) ->
      state. It takes the old state's memory (donation).
    """
    return jax.jit(_mapped(step, mesh, P(), P(BATCH_AXIS), P(BATCH_AXIS)), donate_argnums=0)


def make_resident_step(step: Step, mesh: Mesh, batch_size: int) -> Any:
    """Builds the step of a run whose training split lies on the device.

    The batches are those that the host would give; each is gathered on the device.

    Args:
      step: from :func:`make_device_step`.
      mesh: the devices that share a batch.
      batch_size: images in the global batch.

    Returns:
      A compiled function (state, order `[count]` int32, images `[count, height, width, 1]` uint8,
      :data:`Labels` of all) -> state. It takes the old state's memory (donation).
    """
    gathered = _make_gathered_step(step, mesh, batch_size)
    return jax.jit(_mapped(gathered, mesh, P(), P(), P(), P()), donate_argnums=0)


def make_resident_epoch(step: Step, mesh: Mesh, batch_size: int, steps: int) -> Any:
    """Builds a whole epoch, or what is left of one, as one program for an accelerator.

    Args:
      step: from :func:`make_device_step`.
      mesh: the devices that share a batch.
      batch_size: images in the global batch.
      steps: how many to take; all must lie in the state's epoch.

    Returns:
      A compiled function (state, images `[count, height, width, 1]` uint8, :data:`Labels` of all,
      epoch `[]` int32) -> state; it takes the old state's memory (donation).
    """
    gathered = _make_gathered_step(step, mesh, batch_size)

    def scan(state, order, images, labels):
        body = lambda state, _: (gathered(state, order, images, labels), None)  # noqa: E731
        return lax.scan(body, state, length=steps)[0]

    @functools.partial(jax.jit, donate_argnums=0)
    def train_epoch(state, images, labels, epoch):
        order = epoch_order(state.seed, epoch, len(images))
        return _mapped(scan, mesh, P(), P(), P(), P())(state, order, images, labels)

    return train_epoch


def _make_gathered_step(step: Step, mesh: Mesh, batch_size: int) -> Callable[..., TrainState]:
    share = batch_size // mesh.size

    def gathered(state, order, images, labels):
        per_epoch = steps_per_epoch(len(images), batch_size)
        start = (state.step % per_epoch) * batch_size + lax.axis_index(BATCH_AXIS) * share
        indices = lax.dynamic_slice_in_dim(order, start, share)
        return step(state, *jax.tree.map(lambda x: x[indices], (images, labels)))

    return gathered


def _mapped(function: Callable[..., Any], mesh: Mesh, *specs: P) -> Callable[..., TrainState]:
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
