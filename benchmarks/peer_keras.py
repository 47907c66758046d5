"""The paper's networks trained by Keras on TensorFlow, NHWC.

What is timed is the compiled step inside `fit`, fed by a `tf.data` iterator: `fit` itself, its
callbacks and metrics left out, only adds to it. With `--compile` XLA compiles the step.
"""

import math
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf
from workload import (
    CLASSES,
    DROPOUT,
    EVAL_BATCH,
    LEARNING_RATE,
    NETWORKS,
    calls_per_s,
    create_batch,
    run_worker,
)


def create_model(name: str) -> keras.Model:
    """Builds a network of images `[batch, 48, 48, 1]` uint8, normalised in its first layer."""
    images = keras.Input((48, 48, 1), dtype="uint8")
    x, flat = keras.layers.Rescaling(1 / 255)(images), False
    for kind, *sizes in [*NETWORKS[name], ("logits", CLASSES)]:
        size, *rest = sizes or [0]
        if kind == "norm":
            x = keras.layers.ReLU()(conv_norm(x, size, 3, 1))
        elif kind == "block":
            body = keras.layers.ReLU()(conv_norm(x, size, 3, rest[0]))
            same = x.shape[-1] == size and rest[0] == 1
            shortcut = x if same else conv_norm(x, size, 1, rest[0])
            x = keras.layers.ReLU()(conv_norm(body, size, 3, 1) + shortcut)
        elif kind == "mean":
            x, flat = keras.layers.GlobalAveragePooling2D()(x), True
        elif kind == "drop":
            x = keras.layers.Dropout(DROPOUT)(x)
        elif kind == "conv":
            x = keras.layers.Conv2D(
                size, rest[0], activation="relu", kernel_initializer="he_normal"
            )(x)
        elif kind in ("max", "avg"):
            pools = {"max": keras.layers.MaxPooling2D, "avg": keras.layers.AveragePooling2D}
            x = pools[kind](size, rest[0])(x)
        else:
            x = x if flat else keras.layers.Flatten()(x)
            flat = True
            activation = "relu" if kind == "dense" else None
            x = keras.layers.Dense(size, activation, kernel_initializer="he_normal")(x)
            x = keras.layers.Dropout(DROPOUT)(x) if kind == "dense" else x
    return keras.Model(images, x)


def conv_norm(x, filters: int, side: int, stride: int):
    x = keras.layers.Conv2D(
        filters, side, stride, "same", use_bias=False, kernel_initializer="he_normal"
    )(x)
    return keras.layers.BatchNormalization()(x)


def count_parameters(model: keras.Model) -> int:
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def measure(args):
    keras.utils.set_random_seed(0)
    start = time.perf_counter()
    model = create_model(args.model)
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=args.compile,
    )
    batches = tf.data.Dataset.from_tensors(create_batch(args.batch)).repeat().prefetch(4)
    # Keras's annotations lack the 0, and that `fit` builds `train_function`.
    model.fit(batches, steps_per_epoch=1, shuffle=False, verbose=0)  # pyright: ignore[reportArgumentType]
    yield {"start_s": time.perf_counter() - start}

    step, iterator = model.train_function, iter(batches)
    logs = {}

    def train():
        nonlocal logs
        logs = step(iterator)  # pyright: ignore[reportOptionalCall]

    def wait():
        return [value.numpy() for value in logs.values()]

    yield {"train_images_per_s": args.batch * calls_per_s(train, wait, args.seconds)}
    if args.evaluate:
        images, _ = create_batch(EVAL_BATCH)

        @tf.function(jit_compile=args.compile)
        def probabilities(images):
            return tf.nn.softmax(model(images, training=False))

        def evaluate():
            return probabilities(tf.convert_to_tensor(images)).numpy()

        rate = EVAL_BATCH * calls_per_s(evaluate, lambda: None, args.seconds)
        yield {"eval_images_per_s": rate}
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    yield {"parameters": count_parameters(model), "versions": versions}


if __name__ == "__main__":
    run_worker(measure, "--compile")
