"""The paper's networks trained by this package: the steps, devices and loop of a real run."""

import time

import jax
import numpy as np
from workload import EVAL_BATCH, WIDTH, calls_per_s, create_batch, run_worker

from fer_jax import loop, steps
from fer_jax.config import get_config
from fer_jax.machine import devices
from fer_jax.models import summary
from fer_jax.ops import native
from fer_jax.predict import make_predict

STEPS_PER_EPOCH = 100  # a constant learning rate does not depend on it


class Trainer:
    """A network, its compiled step and one batch of random images on the host.

    Args:
      model: of `workload.NETWORKS`.
      batch: images.
      dtype: `config.model.dtype`.
    """

    def __init__(self, model: str, batch: int, dtype: str) -> None:
        """Compiles."""
        devices.setup()
        native.load()
        config = get_config()
        config.model.name = model
        if model in ("compact", "resnet18"):
            config.model.width = WIDTH
        config.model.dtype = dtype
        config.train.batch_size = batch
        self.model, self.mesh = loop.create_network(config)
        labels = np.zeros(batch * STEPS_PER_EPOCH, np.uint8)
        training = loop.create_training(config, self.model, self.mesh, labels)
        self.state = training.create_state()
        self._batch = create_batch(batch)
        self._sharding = devices.sharded(self.mesh)
        step = steps.make_train_step(training.step, self.mesh)
        self.step = step.lower(self.state, *devices.put(self._batch, self._sharding)).compile()

    @property
    def devices(self) -> int:
        """How many share a batch."""
        return self.mesh.size

    def wait(self) -> tuple[int, int]:
        """Waits for the last step, and reads what the loop of a run reads."""
        jax.block_until_ready(self.state.step)
        return int(self.state.bad_step), int(self.state.step)

    def train(self) -> None:
        """Starts a step when the one before has ended, as the loop of a run does."""
        placed = devices.put(self._batch, self._sharding)  # while that one is still running
        self.wait()
        self.state = self.step(self.state, *placed)


def measure(args):
    start = time.perf_counter()
    trainer = Trainer(args.model, args.batch, "bfloat16" if args.bfloat16 else "float32")
    trainer.train()
    jax.block_until_ready(trainer.state)
    yield {"start_s": time.perf_counter() - start}
    rate = calls_per_s(trainer.train, trainer.wait, args.seconds)
    yield {"train_images_per_s": args.batch * rate}
    if args.evaluate:
        predict = make_predict(trainer.model, trainer.mesh, EVAL_BATCH)
        images, _ = create_batch(EVAL_BATCH)
        variables = trainer.state.variables
        rate = EVAL_BATCH * calls_per_s(
            lambda: predict(variables, images), lambda: None, args.seconds
        )
        yield {"eval_images_per_s": rate}
    model = trainer.model
    yield {"parameters": summary.parameter_counts(model)[1], "flops": summary.flops(model)}
    yield {"devices": trainer.devices, "bad_step": int(trainer.state.bad_step)}


if __name__ == "__main__":
    run_worker(measure, "--bfloat16")
