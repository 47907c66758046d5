"""The second implementation that ours is compared with: Keras on TensorFlow."""

import keras
import numpy as np


def mini_xception(first: int = 1) -> keras.Model:
    """Arriaga's network on 64x64 images from -1 to 1, without the softmax.

    Args:
      first: number of the first layer of each kind; 1 in what Keras 2 named.
    """
    counters = {"conv2d": first, "separable_conv2d": first, "batch_normalization": first}

    def name(kind):
        counters[kind] += 1
        return f"{kind}_{counters[kind] - 1}"

    def conv(x, features, size, strides=1, padding="same", bias=False):
        layer = keras.layers.Conv2D(
            features, size, strides, padding, use_bias=bias, name=name("conv2d")
        )
        return layer(x)

    def separable(x, features):
        layer = keras.layers.SeparableConv2D(
            features, 3, padding="same", use_bias=False, name=name("separable_conv2d")
        )
        return norm(layer(x))

    def norm(x):
        return keras.layers.BatchNormalization(name=name("batch_normalization"))(x)

    images = keras.Input((64, 64, 1))
    x = images
    for _ in range(2):
        x = keras.layers.ReLU()(norm(conv(x, 8, 3, padding="valid")))
    for features in (16, 32, 64, 128):
        shortcut = norm(conv(x, features, 1, strides=2))
        x = separable(keras.layers.ReLU()(separable(x, features)), features)
        x = keras.layers.MaxPooling2D(3, 2, "same")(x)
        x = keras.layers.Add()([x, shortcut])
    x = conv(x, 7, 3, bias=True)
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


def fully_cnn() -> keras.Model:
    """Arriaga's sequential network on 48x48 images from 0 to 1, without the softmax."""

    def conv(features, size, name=None):
        return keras.layers.Conv2D(features, size, padding="same", name=name)

    layers = [keras.Input((48, 48, 1))]
    for stage, (features, size) in enumerate(((16, 7), (32, 5), (64, 3), (128, 3))):
        first = None if stage else "image_array"
        layers += [conv(features, size, first), keras.layers.BatchNormalization()]
        layers += [conv(features, size), keras.layers.BatchNormalization(), keras.layers.ReLU()]
        layers += [keras.layers.AveragePooling2D(2, padding="same"), keras.layers.Dropout(0.5)]
    layers += [conv(256, 3), keras.layers.BatchNormalization(), conv(7, 3)]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])


def bottleneck(features: int, strides: int, in_features: int) -> keras.Model:
    """A ResNet block with a projection, layers named as ours."""

    def conv_norm(x, features, size, strides, name):
        x = keras.layers.Conv2D(
            features, size, strides, "same", use_bias=False, name=f"conv{name}"
        )(x)
        return keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"norm{name}")(x)

    images = keras.Input((12, 12, in_features))
    shortcut = conv_norm(images, 4 * features, 1, strides, "_shortcut")
    x = keras.layers.ReLU()(conv_norm(images, features, 1, strides, "1"))
    x = keras.layers.ReLU()(conv_norm(x, features, 3, 1, "2"))
    x = conv_norm(x, 4 * features, 1, 1, "3")
    return keras.Model(images, keras.layers.ReLU()(keras.layers.Add()([x, shortcut])))


def inception(filters: tuple[int, ...], in_features: int) -> keras.Model:
    """A GoogLeNet module, layers named as ours."""

    def conv(x, features, size, name):
        return keras.layers.Conv2D(features, size, 1, "same", activation="relu", name=name)(x)

    n1, n3_reduce, n3, n5_reduce, n5, n_pool = filters
    images = keras.Input((12, 12, in_features))
    branches = [
        conv(images, n1, 1, "conv1"),
        conv(conv(images, n3_reduce, 1, "conv3_reduce"), n3, 3, "conv3"),
        conv(conv(images, n5_reduce, 1, "conv5_reduce"), n5, 5, "conv5"),
        conv(keras.layers.MaxPooling2D(3, 1, "same")(images), n_pool, 1, "project"),
    ]
    return keras.Model(images, keras.layers.Concatenate()(branches))


def randomize(model: keras.Model, seed: int) -> None:
    """Draws every weight, normalisation and running statistics included, so that all matter."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name in ("gamma", "moving_variance"):
            values = rng.uniform(0.5, 1.5, weight.shape)
        elif weight.name in ("beta", "moving_mean", "bias"):
            values = rng.normal(0, 0.3, weight.shape)
        else:
            fan_in = np.prod(weight.shape[:2]) * (
                1 if weight.name == "depthwise_kernel" else weight.shape[2]
            )
            values = rng.normal(0, np.sqrt(2 / fan_in), weight.shape)
        weight.assign(values.astype("float32"))


_NAMES = {
    "kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}


def to_variables(model: keras.Model, values=None) -> dict:
    """Maps weights, or `values` in their stead (a dict by path), to our collections.

    Only for networks whose layers bear our names and are all convolutions or normalisations.
    """
    variables: dict = {"params": {}, "batch_stats": {}}
    for layer in model.layers:
        for weight in layer.weights:
            if values is not None and weight.path not in values:
                continue
            collection, name = _NAMES[weight.name]
            array = weight if values is None else values[weight.path]
            variables[collection].setdefault(layer.name, {})[name] = np.asarray(array)
    return variables


def gradients(model: keras.Model, images: np.ndarray, weights: np.ndarray):
    """Differentiates `sum(weights * output)` in training mode.

    Returns:
      The output, the gradient of each trained weight by its path, and the images' gradient.
    """
    import tensorflow as tf

    inputs = tf.constant(images)
    trained = [weight.value for weight in model.trainable_weights]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = model(inputs, training=True)
        total = tf.reduce_sum(output * tf.constant(weights))
    *by_weight, by_images = (np.asarray(g) for g in tape.gradient(total, [*trained, inputs]))
    paths = [weight.path for weight in model.trainable_weights]
    return np.asarray(output), dict(zip(paths, by_weight, strict=True)), by_images
