"""How an epoch is gone through: functions from a state to the state after it.

The host feeds batches through tf.data, or the training split lies on the device. There an
accelerator takes the epoch as one program; a CPU takes it step by step, see `steps.is_scanned`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh

from fer_jax import optim, steps
from fer_jax.config import Config
from fer_jax.data.dataset import Split
from fer_jax.data.mix import check_share
from fer_jax.data.pipeline import epoch_order, start_streaming, steps_per_epoch, stream_batches
from fer_jax.data.select import labels_of
from fer_jax.labels import NUM_CLASSES
from fer_jax.machine import devices
from fer_jax.machine.devices import BATCH_AXIS
from fer_jax.models import create_model
from fer_jax.models.summary import parameter_counts
from fer_jax.runs.clock import Clock
from fer_jax.state import RunningSums, TrainState, create_state

# Called with the state after a step, or after several that are one program, before the next one.
# What it raises ends the epoch. It must not keep the state: the next step takes its memory.
type OnStep = Callable[[TrainState], None]
# (state, epoch counted from 0, on_step) -> state at the epoch's end. A state in mid-epoch goes on.
type Epoch = Callable[[TrainState, int, OnStep], TrainState]


def create_network(
    config: Config, classes: int = NUM_CLASSES, requested: int | None = None
) -> tuple[nn.Module, Mesh]:
    """Builds the network that `config.model` names and chooses the devices that it trains on.

    Args:
      config: the whole configuration.
      classes: of the data set.
      requested: how many devices; None: as `config.train.devices` says, 0: as many as help.

    Raises:
      ConfigError: if the network or the devices make no sense; see `create_model` and
        `devices.choose_count`.
    """
    model = create_model(config.model, classes, axis_name=BATCH_AXIS)
    count = config.train.devices if requested is None else requested
    parameters = parameter_counts(model)[0]
    return model, devices.create_mesh(count, config.train.batch_size, parameters)


@dataclasses.dataclass(frozen=True)
class Training:
    """What training needs besides data: built once, nothing in it changes.

    Attributes:
      model: the network.
      mesh: the devices that share a batch.
      tx: the optimiser.
      step: from `steps.make_device_step`.
      seed: what every random number follows from.
      batch_size: images in the global batch.
      per_epoch: steps in an epoch.
      averaged: whether the state keeps averages of the weights.
    """

    model: nn.Module
    mesh: Mesh
    tx: optax.GradientTransformation
    step: steps.Step
    seed: int
    batch_size: int
    per_epoch: int
    averaged: bool

    def create_state(self) -> TrainState:
        """Returns the state before the first step, on the devices."""
        create = jax.jit(create_state, static_argnums=(0, 1, 3))
        return self.place(create(self.model, self.tx, jnp.uint32(self.seed), self.averaged))

    def place(self, tree: Any) -> Any:
        """Lays arrays, wherever they are, on every device."""
        return devices.put(jax.device_get(tree), devices.replicated(self.mesh))

    def order(self, epoch: int, count: int) -> np.ndarray:
        """Returns the order of an epoch over `count` images, `[count]` int32."""
        return np.asarray(epoch_order(jnp.uint32(self.seed), jnp.int32(epoch), count))

    def enter(self, state: TrainState, epoch: int) -> tuple[TrainState, int]:
        """Returns the state that an epoch goes on from, with its first step in it.

        At the beginning of an epoch the running sums are emptied.
        """
        first = int(state.step) - epoch * self.per_epoch
        if first == 0:
            state = state.replace(running=self.place(RunningSums.zeros()))
        return state, first


def create_training(
    config: Config,
    model: nn.Module,
    mesh: Mesh,
    labels: np.ndarray,
    classes: int = NUM_CLASSES,
) -> Training:
    """Builds what training needs.

    Args:
      config: the whole configuration.
      model: from :func:`create_network`.
      mesh: likewise.
      labels: `[count]` uint8, of the images that are trained on.
      classes: of the data set.

    Raises:
      ConfigError: if there are fewer images than a batch has, or pairs of images are mixed and do
        not lie on one device each.
    """
    batch_size = config.train.batch_size
    check_share(batch_size // mesh.size, config.train)
    per_epoch = steps_per_epoch(len(labels), batch_size)
    tx = optim.create_optimizer(config, per_epoch)
    weights = None
    if config.train.class_weights == "balanced":
        weights = steps.balanced_class_weights(np.asarray(labels), classes)
    step = steps.make_device_step(model, tx, config, per_epoch, weights)
    averaged = bool(config.train.ema_decay)
    return Training(model, mesh, tx, step, config.seed, batch_size, per_epoch, averaged)


def make_epoch(
    training: Training, split: Split, pipeline: str, clock: Clock | None = None
) -> Epoch:
    """Builds the function that goes through an epoch; it compiles when first called.

    Args:
      training: from :func:`create_training`.
      split: the images that are trained on.
      pipeline: `stream` or `resident`, from :func:`choose_pipeline`.
      clock: gets the seconds of compilation in its span `compile`.
    """
    clock = clock or Clock()
    if pipeline == "stream":
        return _make_streamed(training, split, clock)
    if steps.is_scanned(training.mesh):
        return _make_scanned(training, split, clock)
    return _make_resident(training, split, clock)


def choose_pipeline(pipeline: str, mesh: Mesh) -> str:
    """Returns `stream` or `resident`: what `config.data.pipeline` says, or suits the devices."""
    if pipeline != "auto":
        return pipeline
    return "stream" if mesh.devices.flat[0].platform == "cpu" else "resident"


def _make_streamed(training: Training, split: Split, clock: Clock) -> Epoch:
    start_streaming()
    sharding = devices.sharded(training.mesh)
    step = _compiled(steps.make_train_step(training.step, training.mesh), clock)

    def train_epoch(state: TrainState, epoch: int, on_step: OnStep) -> TrainState:
        order = training.order(epoch, len(split.labels))
        state, first = training.enter(state, epoch)
        for i, batch in enumerate(stream_batches(split, order, training.batch_size, first)):
            placed = devices.put(batch, sharding)  # while the step before is still running
            if i:
                _wait(state, on_step)
            state = step(state, *placed)
        return _wait(state, on_step)

    return train_epoch


def _make_resident(training: Training, split: Split, clock: Clock) -> Epoch:
    images, labels = _place_split(training, split)
    step = steps.make_resident_step(training.step, training.mesh, training.batch_size)
    step = _compiled(step, clock)

    def train_epoch(state: TrainState, epoch: int, on_step: OnStep) -> TrainState:
        order = training.place(training.order(epoch, len(images)))
        state, first = training.enter(state, epoch)
        for _ in range(first, training.per_epoch):
            state = _wait(step(state, order, images, labels), on_step)
        return state

    return train_epoch


def _make_scanned(training: Training, split: Split, clock: Clock) -> Epoch:
    images, labels = _place_split(training, split)
    programs: dict[int, Callable[..., TrainState]] = {}  # by how many steps they take

    def train_epoch(state: TrainState, epoch: int, on_step: OnStep) -> TrainState:
        state, first = training.enter(state, epoch)
        left = training.per_epoch - first
        if left not in programs:
            program = steps.make_resident_epoch(
                training.step, training.mesh, training.batch_size, left
            )
            programs[left] = _compiled(program, clock)
        return _wait(
            programs[left](state, images, labels, training.place(np.int32(epoch))), on_step
        )

    return train_epoch


def _place_split(training: Training, split: Split) -> tuple[jax.Array, steps.Labels]:
    return training.place((np.asarray(split.images), labels_of(split)))


def _wait(state: TrainState, on_step: OnStep) -> TrainState:
    """Waits for the step under way, so that progress is true and a signal is heard soon."""
    jax.block_until_ready(state.step)
    on_step(state)
    return state


def _compiled(function: Any, clock: Clock) -> Callable[..., TrainState]:
    """Returns a function that is compiled, under the clock, when it is first called."""
    programs = []

    def call(*args: Any) -> TrainState:
        if not programs:
            with clock.span("compile"):
                programs.append(function.lower(*args).compile())
        return programs[0](*args)

    return call
