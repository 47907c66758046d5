"""The compiled training steps, on a batch that is given or gathered on the device.

Every step is one `jit` over one `shard_map`: each device works on its share of the global batch,
gradients and sums are added over the devices, and nothing else depends on how many there are.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fer_jax import keys, optim
from fer_jax.config import Config
from fer_jax.data.augment import alternating_flips, augment
from fer_jax.data.mix import blend, check_share, mix
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


def _make_device_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    config: Config,
    class_weights: np.ndarray | None,
    per_epoch: int,
) -> Callable[[TrainState, jax.Array, Labels], TrainState]:
    """Returns one device's share of a step: (state, its images uint8, its labels) -> state."""
    train = config.train

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
        (loss, (logits, batch_stats)), grads = loss_and_grads(state.params, *batch)
        loss, grads, sums = lax.psum((loss, grads, batch_sums(logits, labels)), BATCH_AXIS)
        if train.sam_radius:  # the gradient is another point's; the statistics stay this one's
            there = optim.climb(state.params, grads, train.sam_radius)
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


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
    class_weights: np.ndarray | None = None,
    per_epoch: int = 1,
) -> Callable[[TrainState, jax.Array, Labels], TrainState]:
    """Builds the step of a streamed run.

    Args:
      model: from `create_model(config.model, axis_name=BATCH_AXIS)`.
      tx: from :func:`fer_jax.optim.create_optimizer`.
      config: the whole configuration.
      mesh: the devices that share a batch.
      class_weights: `[7]` float32 or None.
      per_epoch: steps in an epoch, which alternating flips count.

    Returns:
      A compiled function (state, images `[batch, 48, 48, 1]` uint8, :data:`Labels`) -> state. It
      takes the old state's memory (donation).

    Raises:
      ConfigError: if pairs of images are mixed and do not lie on one device each.
    """
    check_share(config.train.batch_size // mesh.size, config.train)
    step = _make_device_step(model, tx, config, class_weights, per_epoch)
    mapped = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(P(), P(BATCH_AXIS), P(BATCH_AXIS)),
        out_specs=P(),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)


def make_resident_steps(
    model: nn.Module,
    tx: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
    class_weights: np.ndarray | None = None,
) -> Callable[[TrainState, jax.Array, jax.Array, Labels, int], TrainState]:
    """Builds the steps of a run whose training split lies on the device.

    The batches are those of the streamed run; each is gathered on the device.

    Args:
      model: from `create_model(config.model, axis_name=BATCH_AXIS)`.
      tx: from :func:`fer_jax.optim.create_optimizer`.
      config: the whole configuration.
      mesh: the devices that share a batch.
      class_weights: `[7]` float32 or None.

    Returns:
      A compiled function (state, order `[count]` int32, images `[count, 48, 48, 1]` uint8,
      :data:`Labels` of all, steps) -> state after so many steps, which must all lie in the state's
      epoch. `steps` is static; the old state's memory is taken (donation).

    Raises:
      ConfigError: if pairs of images are mixed and do not lie on one device each.
    """
    batch_size = config.train.batch_size
    share = batch_size // mesh.size
    check_share(share, config.train)

    def run(steps, state, order, images, labels):
        per_epoch = steps_per_epoch(len(images), batch_size)
        device_step = _make_device_step(model, tx, config, class_weights, per_epoch)

        def body(state: TrainState, _=None) -> tuple[TrainState, None]:
            start = (state.step % per_epoch) * batch_size + lax.axis_index(BATCH_AXIS) * share
            indices = lax.dynamic_slice_in_dim(order, start, share)
            batch = jax.tree.map(lambda x: x[indices], (images, labels))
            return device_step(state, *batch), None

        if steps == 1:  # no loop: see is_scanned
            return body(state)[0]
        return lax.scan(body, state, length=steps)[0]

    @functools.partial(jax.jit, static_argnums=4, donate_argnums=0)
    def train_steps(state, order, images, labels, steps):
        mapped = jax.shard_map(
            functools.partial(run, steps),
            mesh=mesh,
            in_specs=(P(), P(), P(), P()),
            out_specs=P(),
            check_vma=False,
        )
        return mapped(state, order, images, labels)

    return train_steps


def make_resident_epoch(train_steps: Callable, steps: int) -> Callable[..., TrainState]:
    """Builds a whole epoch, or what is left of one, as one program for an accelerator.

    Args:
      train_steps: from :func:`make_resident_steps`.
      steps: how many to take.

    Returns:
      A compiled function (state, images `[count, 48, 48, 1]` uint8, :data:`Labels` of all, epoch
      `[]` int32) -> state; it takes the old state's memory (donation).
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def train_epoch(state, images, labels, epoch):
        order = epoch_order(state.seed, epoch, len(images))
        return train_steps(state, order, images, labels, steps)

    return train_epoch
