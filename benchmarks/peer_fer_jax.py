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


def measure(args):
    devices.setup()
    start = time.perf_counter()
    native.load()
    config = get_config()
    config.model.name = args.model
    if args.model in ("compact", "resnet18"):
        config.model.width = WIDTH
    config.model.dtype = "bfloat16" if args.bfloat16 else "float32"
    config.train.batch_size = args.batch
    model, mesh = loop.create_network(config)
    labels = np.zeros(args.batch * STEPS_PER_EPOCH, np.uint8)
    training = loop.create_training(config, model, mesh, labels)
    state = training.create_state()
    batch = create_batch(args.batch)
    sharding = devices.sharded(mesh)
    step = steps.make_train_step(training.step, mesh)
    step = step.lower(state, *devices.put(batch, sharding)).compile()

    def wait():
        jax.block_until_ready(state.step)
        return int(state.bad_step), int(state.step)

    def train():
        nonlocal state
        placed = devices.put(batch, sharding)  # while the step before is still running
        wait()
        state = step(state, *placed)

    train()
    jax.block_until_ready(state)
    yield {"start_s": time.perf_counter() - start}
    yield {"train_images_per_s": args.batch * calls_per_s(train, wait, args.seconds)}
    if args.evaluate:
        predict = make_predict(model, mesh, EVAL_BATCH)
        images, _ = create_batch(EVAL_BATCH)
        variables = state.variables
        rate = EVAL_BATCH * calls_per_s(
            lambda: predict(variables, images), lambda: None, args.seconds
        )
        yield {"eval_images_per_s": rate}
    yield {"parameters": summary.parameter_counts(model)[1], "flops": summary.flops(model)}
    yield {"devices": mesh.size, "bad_step": int(state.bad_step)}


if __name__ == "__main__":
    run_worker(measure, "--bfloat16")
