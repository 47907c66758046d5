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

from fer_jax import keys
from fer_jax.config import Config
from fer_jax.data.augment import augment
from fer_jax.data.pipeline import epoch_order, steps_per_epoch
from fer_jax.labels import NUM_CLASSES
from fer_jax.machine.devices import BATCH_AXIS
from fer_jax.state import RunningSums, TrainState

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
    logits: jax.Array, labels: jax.Array, smoothing: float, class_weights: np.ndarray | None
) -> jax.Array:
    """The loss that is minimised.

    Args:
      logits: `[batch, classes]` float32.
      labels: `[batch]` int32.
      smoothing: share of the target spread over the classes (Szegedy et al. 2016, section 7).
      class_weights: `[classes]` float32, factor of each true class; None for ones.

    Returns:
      `[batch]` float32, cross-entropy in nats.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
    loss = optax.softmax_cross_entropy(logits, targets)
    if class_weights is not None:
        loss = loss * jnp.asarray(class_weights)[labels]
    return loss


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
) -> Callable[[TrainState, jax.Array, jax.Array], TrainState]:
    """Returns one device's share of a step: (state, its images uint8, its labels) -> state."""
    batch_size = config.train.batch_size

    def loss_of(params, batch_stats, images, labels, dropout_key):
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats", "aux_logits"],
        )
        smoothing = config.train.label_smoothing
        loss = objective(logits, labels, smoothing, class_weights).sum()
        for aux in jax.tree.leaves(updates.get("aux_logits", {})):
            loss += AUX_WEIGHT * objective(aux, labels, smoothing, class_weights).sum()
        # Divided by the global batch: gradients then add up over the devices.
        return loss / batch_size, (logits, updates.get("batch_stats", {}))

    def step(state: TrainState, images: jax.Array, labels: jax.Array) -> TrainState:
        positions = lax.axis_index(BATCH_AXIS) * len(labels) + jnp.arange(len(labels))
        augment_key, dropout_key = keys.step_keys(state.seed, state.step)
        example_keys = jax.vmap(jax.random.fold_in, (None, 0))(augment_key, positions)
        inputs = augment(example_keys, to_float(images), config.augment)
        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.batch_stats, inputs, labels, dropout_key
        )
        loss, grads, sums = lax.psum((loss, grads, batch_sums(logits, labels)), BATCH_AXIS)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        first_bad = (state.bad_step < 0) & ~jnp.isfinite(loss)
        return state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
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
) -> Callable[[TrainState, jax.Array, jax.Array], TrainState]:
    """Builds the step of a streamed run.

    Args:
      model: from `create_model(config.model, axis_name=BATCH_AXIS)`.
      tx: from :func:`fer_jax.optim.create_optimizer`.
      config: the whole configuration.
      mesh: the devices that share a batch.
      class_weights: `[7]` float32 or None.

    Returns:
      A compiled function (state, images `[batch, 48, 48, 1]` uint8, labels `[batch]` int32) ->
      state. It takes the old state's memory (donation).
    """
    step = _make_device_step(model, tx, config, class_weights)
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
) -> Callable[[TrainState, jax.Array, jax.Array, jax.Array, int], TrainState]:
    """Builds the steps of a run whose training split lies on the device.

    The batches are those of the streamed run; each is gathered on the device.

    Args:
      model: from `create_model(config.model, axis_name=BATCH_AXIS)`.
      tx: from :func:`fer_jax.optim.create_optimizer`.
      config: the whole configuration.
      mesh: the devices that share a batch.
      class_weights: `[7]` float32 or None.

    Returns:
      A compiled function (state, order `[count]` int32, images `[count, 48, 48, 1]` uint8, labels
      `[count]` int32, steps) -> state after so many steps, which must all lie in the state's epoch.
      `steps` is static; the old state's memory is taken (donation).
    """
    device_step = _make_device_step(model, tx, config, class_weights)
    batch_size = config.train.batch_size
    share = batch_size // mesh.size

    def run(steps, state, order, images, labels):
        per_epoch = steps_per_epoch(len(labels), batch_size)

        def body(state: TrainState, _=None) -> tuple[TrainState, None]:
            start = (state.step % per_epoch) * batch_size + lax.axis_index(BATCH_AXIS) * share
            indices = lax.dynamic_slice_in_dim(order, start, share)
            return device_step(state, images[indices], labels[indices]), None

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
      A compiled function (state, images `[count, 48, 48, 1]` uint8, labels `[count]` int32, epoch
      `[]` int32) -> state; it takes the old state's memory (donation).
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def train_epoch(state, images, labels, epoch):
        order = epoch_order(state.seed, epoch, len(labels))
        return train_steps(state, order, images, labels, steps)

    return train_epoch
