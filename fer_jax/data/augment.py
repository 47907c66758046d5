"""Augmentation: pure functions of a key and an image, for use inside the train step.

First the flip; then crop, shift, rotation and zoom as one map, so that an image is resampled once;
then brightness and contrast; then erasing. What a configuration leaves at zero is not traced at
all.
"""

from typing import Any

import jax
import jax.numpy as jnp

# Random erasing, Zhong et al. 2020, table 1: area as a share of the image, height over width.
# The largest area is 0.2 here (0.4 there): a face's expression does not survive more.
ERASE_AREA = (0.02, 0.2)
ERASE_ASPECT = (0.3, 1 / 0.3)
# Random resized crop, Szegedy et al. 2015, section 6: width over height of the part kept.
CROP_ASPECT = (3 / 4, 4 / 3)


def augment(
    keys: jax.Array, images: jax.Array, config: Any, flips: jax.Array | None = None
) -> jax.Array:
    """Changes each image at random, as `config.augment` says.

    Args:
      keys: `[batch]` typed PRNG keys; an image's changes depend on its own key alone.
      images: `[batch, height, width, 1]` float in [0, 1].
      config: `config.augment`: `flip`, `shift`, `rotate`, `zoom`, `crop`, `brightness`, `contrast`,
        `erase`.
      flips: `[batch]` bool, which images are mirrored; None: at random if `config.flip`. See
        :func:`alternating_flips`.

    Returns:
      An array like `images`, in [0, 1].
    """

    def augment_one(key: jax.Array, image: jax.Array) -> jax.Array:
        flip_key, affine_key, erase_key, crop_key, tone_key = jax.random.split(key, 5)
        if config.flip and flips is None:
            image = random_flip(flip_key, image)
        if config.shift or config.rotate or config.zoom or config.crop:
            box = random_crop_box(crop_key, config.crop) if config.crop else None
            image = random_affine(affine_key, image, config.shift, config.rotate, config.zoom, box)
        if config.brightness or config.contrast:
            image = random_tone(tone_key, image, config.brightness, config.contrast)
        if config.erase:
            image = random_erase(erase_key, image, config.erase)
        return image

    if flips is not None:
        images = jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)
    # What `alternate_flip` asks for has been done by `flips`.
    if not any(value for name, value in config.items() if name != "alternate_flip"):
        return images
    return jax.vmap(augment_one)(keys, images)


def alternating_flips(key: jax.Array, epoch: jax.Array, images: jax.Array) -> jax.Array:
    """Returns which images to mirror so that each is mirrored in every other epoch.

    Jordan 2024 (94% on CIFAR-10 in 3.29 seconds), section 3.6: two epochs then show both forms of
    every image. Half of the images begin mirrored: a hash of an image's pixels decides, so that no
    index travels with it. The hash is the top bit of a vector multiply-shift (Thorup 2015, High
    Speed Hashing for Integers and Strings, section 3.5).

    Args:
      key: typed PRNG key of the run, the same in every epoch.
      epoch: `[]` int32.
      images: `[batch, height, width, 1]` uint8, as the data set has them.

    Returns:
      `[batch]` bool.
    """
    factors = jax.random.bits(key, (images[0].size + 1,), jnp.uint32)
    flat = images.reshape(len(images), -1).astype(jnp.uint32)
    hashes = (flat * factors[None, :-1]).sum(axis=1, dtype=jnp.uint32) + factors[-1]
    return ((hashes >> 31) ^ (epoch.astype(jnp.uint32) & 1)) == 1


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors `image`, `[height, width, 1]`, left to right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), flip(image), image)


def flip(image: jax.Array) -> jax.Array:
    """Mirrors `image`, `[height, width, 1]`, left to right."""
    return image[:, ::-1]


def random_affine(
    key: jax.Array,
    image: jax.Array,
    shift: float,
    rotate: float,
    zoom: float,
    box: jax.Array | None = None,
) -> jax.Array:
    """Shifts, turns and scales an image by uniformly drawn amounts.

    Args:
      key: typed PRNG key.
      image: `[height, width, 1]` float in [0, 1].
      shift: at most this share of the side, down and to the right each, either way.
      rotate: at most so many degrees, either way.
      zoom: the scale lies between `1 - zoom` and `1 + zoom`.
      box: `[4]`, the part of the image to take, as :func:`affine` has it; None: all of it.

    Returns:
      An array like `image`.
    """
    draws = jax.random.uniform(key, (4,), image.dtype, minval=-1.0, maxval=1.0)
    down, right = draws[0] * (shift * image.shape[0]), draws[1] * (shift * image.shape[1])
    return affine(image, down, right, draws[2] * rotate, 1.0 + draws[3] * zoom, box)


def random_crop_box(key: jax.Array, left_out: float) -> jax.Array:
    """Draws the part of an image that a random resized crop takes.

    Szegedy et al. 2015, section 6: area uniform between `1 - left_out` and 1, aspect log-uniform
    in `CROP_ASPECT` as far as a box of that area fits, place uniform.

    Args:
      key: typed PRNG key.
      left_out: at most this share of the area is left out.

    Returns:
      `[4]` float32: top, left, height and width, in shares of the image's sides.
    """
    draws = jax.random.uniform(key, (4,), jnp.float32)
    area = 1.0 - draws[0] * left_out
    # A box of the area a and the aspect r fits if a <= r <= 1 / a.
    log_low = jnp.maximum(jnp.log(CROP_ASPECT[0]), jnp.log(area))
    log_high = jnp.minimum(jnp.log(CROP_ASPECT[1]), -jnp.log(area))
    aspect = jnp.exp(log_low + draws[1] * (log_high - log_low))
    height, width = jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)
    return jnp.stack([draws[2] * (1 - height), draws[3] * (1 - width), height, width])


def affine(
    image: jax.Array,
    down: jax.Array,
    right: jax.Array,
    degrees: jax.Array,
    scale: jax.Array,
    box: jax.Array | None = None,
) -> jax.Array:
    """Scales and turns an image about its centre, then shifts it; bilinear, edges repeated.

    Args:
      image: `[height, width, 1]` float.
      down: shift in pixels.
      right: shift in pixels.
      degrees: angle, counter-clockwise as `np.rot90` turns.
      scale: above 1 enlarges.
      box: `[4]` float, top, left, height and width of a part of the image, in shares of its sides,
        that is first enlarged to the whole; None: all of it.

    Returns:
      An array like `image`, within its range.
    """
    height, width, _ = image.shape
    rows = jnp.arange(height, dtype=image.dtype)[:, None] - ((height - 1) / 2 + down)
    columns = jnp.arange(width, dtype=image.dtype)[None, :] - ((width - 1) / 2 + right)
    angle = degrees * (jnp.pi / 180)
    cosine, sine = jnp.cos(angle) / scale, jnp.sin(angle) / scale
    # Where each pixel of the result comes from: the inverse of the map.
    from_rows = cosine * rows + sine * columns + (height - 1) / 2
    from_columns = cosine * columns - sine * rows + (width - 1) / 2
    if box is not None:  # pixel centres at halves, as resizing has them
        from_rows = (from_rows + 0.5) * box[2] + box[0] * height - 0.5
        from_columns = (from_columns + 0.5) * box[3] + box[1] * width - 0.5
    return _bilinear(image, from_rows, from_columns)


def _bilinear(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Samples `image`, `[height, width, 1]`, at the places given, `[height, width]`, in pixels."""
    height, width, _ = image.shape
    rows = jnp.clip(rows, 0, height - 1)
    columns = jnp.clip(columns, 0, width - 1)
    top = jnp.clip(jnp.floor(rows), 0, height - 2)
    left = jnp.clip(jnp.floor(columns), 0, width - 2)
    below, beside = rows - top, columns - left  # weights of the lower and of the right neighbour
    corner = top.astype(jnp.int32) * width + left.astype(jnp.int32)
    flat = image.reshape(-1)

    def at(offset: int) -> jax.Array:
        return flat.at[corner + offset].get(mode="promise_in_bounds")

    upper = at(0) * (1 - beside) + at(1) * beside
    lower = at(width) * (1 - beside) + at(width + 1) * beside
    return (upper * (1 - below) + lower * below)[..., None]


def random_tone(key: jax.Array, image: jax.Array, brightness: float, contrast: float) -> jax.Array:
    """Changes brightness and contrast by uniformly drawn factors.

    Args:
      key: typed PRNG key.
      image: `[height, width, 1]` float in [0, 1].
      brightness: pixels are multiplied by a factor between `1 - brightness` and `1 + brightness`.
      contrast: distances from the image's mean, likewise.

    Returns:
      An array like `image`, clipped to [0, 1].
    """
    draws = jax.random.uniform(key, (2,), image.dtype, minval=-1.0, maxval=1.0)
    return tone(image, 1.0 + draws[0] * brightness, 1.0 + draws[1] * contrast)


def tone(image: jax.Array, brightness: jax.Array, contrast: jax.Array) -> jax.Array:
    """Multiplies pixels by `brightness`, then their distances from the mean by `contrast`.

    Args:
      image: `[height, width, 1]` float in [0, 1].
      brightness: factor.
      contrast: factor.

    Returns:
      An array like `image`; each of the two results is clipped to [0, 1].
    """
    image = jnp.clip(image * brightness, 0.0, 1.0)
    mean = image.mean()
    return jnp.clip(mean + (image - mean) * contrast, 0.0, 1.0)


def random_erase(key: jax.Array, image: jax.Array, probability: float) -> jax.Array:
    """Replaces a random rectangle by noise, with the probability given.

    Random erasing in its "random values" form (Zhong et al. 2020, algorithm 1): area uniform in
    `ERASE_AREA`, aspect log-uniform in `ERASE_ASPECT`, place uniform, the rectangle always whole.

    Args:
      key: typed PRNG key.
      image: `[height, width, 1]` float in [0, 1].
      probability: in [0, 1].

    Returns:
      An array like `image`, in [0, 1].
    """
    chance_key, box_key, fill_key = jax.random.split(key, 3)
    mask = erase_mask(box_key, image.shape[0], image.shape[1])[..., None]
    mask &= jax.random.bernoulli(chance_key, probability)
    return jnp.where(mask, jax.random.uniform(fill_key, image.shape, image.dtype), image)


def erase_mask(key: jax.Array, height: int, width: int) -> jax.Array:
    """Draws the rectangle to erase: `[height, width]` bool, true inside."""
    draws = jax.random.uniform(key, (4,), jnp.float32)
    area = height * width * (ERASE_AREA[0] + draws[0] * (ERASE_AREA[1] - ERASE_AREA[0]))
    log_low, log_high = jnp.log(ERASE_ASPECT[0]), jnp.log(ERASE_ASPECT[1])
    aspect = jnp.exp(log_low + draws[1] * (log_high - log_low))
    # 0.2 of a square with aspect 1 / 0.3 is 0.82 of its side high: it always fits.
    box_height = jnp.clip(jnp.round(jnp.sqrt(area * aspect)), 1, height)
    box_width = jnp.clip(jnp.round(jnp.sqrt(area / aspect)), 1, width)
    top = jnp.floor(draws[2] * (height - box_height + 1))
    left = jnp.floor(draws[3] * (width - box_width + 1))
    rows = jnp.arange(height, dtype=jnp.float32)[:, None]
    columns = jnp.arange(width, dtype=jnp.float32)[None, :]
    return (
        (rows >= top) & (rows < top + box_height) & (columns >= left) & (columns < left + box_width)
    )
