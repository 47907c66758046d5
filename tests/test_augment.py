"""Augmentations as properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from fer_jax.config import get_config
from fer_jax.data import augment as aug

SIDE = 48
ALL = {
    "flip": True,
    "shift": 0.1,
    "rotate": 15.0,
    "zoom": 0.1,
    "crop": 0.3,
    "brightness": 0.3,
    "contrast": 0.3,
    "erase": 0.5,
}
seeds = st.integers(0, 2**31 - 1)
properties = settings(max_examples=20, deadline=None)


def augment_config(**fields) -> ConfigDict:
    config = get_config().augment
    with config.unlocked():
        config.update(fields)
    return config


def random_images(seed: int, batch: int = 8) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), (batch, SIDE, SIDE, 1))


def random_keys(seed: int, batch: int = 8) -> jax.Array:
    return jax.random.split(jax.random.key(seed), batch)


augment_all = jax.jit(lambda keys, images: aug.augment(keys, images, augment_config(**ALL)))
affine = jax.jit(aug.affine)
erase_masks = jax.jit(jax.vmap(lambda key: aug.erase_mask(key, SIDE, SIDE)))


@pytest.mark.slow
@given(seed=seeds)
@properties
def test_everything_at_once_keeps_shape_dtype_and_range_and_follows_the_keys(seed):
    keys, images = random_keys(seed), random_images(seed)
    out = augment_all(keys, images)
    assert out.shape == images.shape
    assert out.dtype == images.dtype
    assert out.min() >= 0
    assert out.max() <= 1
    assert not jnp.array_equal(out, images)
    np.testing.assert_array_equal(out, augment_all(keys, images))
    assert not jnp.array_equal(out, augment_all(random_keys(seed + 1), images))


@pytest.mark.slow
@given(order=st.permutations(range(8)))
@properties
def test_an_example_depends_on_its_own_key_alone(order):
    keys, images = random_keys(0), random_images(1)
    order = np.array(order)
    np.testing.assert_array_equal(
        augment_all(keys[order], images[order]), augment_all(keys, images)[order]
    )
    same = jnp.broadcast_to(images[:1], images.shape)
    assert len({bytes(np.asarray(image)) for image in augment_all(keys, same)}) == 8


def test_all_zero_settings_trace_nothing():
    keys, images = random_keys(0), random_images(0)
    config = augment_config()
    assert aug.augment(keys, images, config) is images
    assert not jax.make_jaxpr(lambda k, x: aug.augment(k, x, config))(keys, images).eqns


def test_what_is_drawn_for_one_change_does_not_depend_on_the_others():
    keys, images = random_keys(0), random_images(0)
    # The keys of the first three changes, which runs are recorded with.
    flip_keys, affine_keys, _ = np.swapaxes(jax.vmap(lambda k: jax.random.split(k, 3))(keys), 0, 1)
    config = augment_config(flip=True, shift=0.1, rotate=15.0)
    flipped = jax.vmap(aug.random_flip)(flip_keys, images)
    shifted = jax.vmap(lambda k, image: aug.random_affine(k, image, 0.1, 15.0, 0.0))
    np.testing.assert_array_equal(
        jax.jit(lambda k, x: aug.augment(k, x, config))(keys, images),
        jax.jit(shifted)(affine_keys, flipped),
    )


@pytest.mark.parametrize("field", ALL)
def test_each_setting_alone_does_something(field):
    keys, images = random_keys(3), random_images(3)
    config = augment_config(**{field: ALL[field]})
    out = jax.jit(lambda keys, images: aug.augment(keys, images, config))(keys, images)
    changed = np.asarray((out != images).any((1, 2, 3)))
    if field in ("flip", "erase"):  # these leave about half of the images as they are
        assert changed.any()
        assert not changed.all()
    else:
        assert changed.all()


def test_flip_is_numpys_and_its_own_inverse():
    image = random_images(0)[0]
    np.testing.assert_array_equal(aug.flip(image), np.flip(np.asarray(image), axis=1))
    np.testing.assert_array_equal(aug.flip(aug.flip(image)), image)


def test_half_of_the_images_are_flipped():
    image = random_images(0)[0]
    out = np.asarray(jax.vmap(aug.random_flip, (0, None))(random_keys(0, 1000), image))
    image = np.asarray(image)
    flipped = (out == image[:, ::-1]).all((1, 2, 3))
    same = (out == image).all((1, 2, 3))
    assert (flipped ^ same).all()
    assert abs(flipped.mean() - 0.5) < 0.08  # five standard errors


@given(seed=seeds, down=st.integers(-SIDE, SIDE), right=st.integers(-SIDE, SIDE))
@properties
def test_a_shift_by_whole_pixels_is_numpys_with_the_edge_repeated(seed, down, right):
    image = random_images(seed)[0]
    padded = np.pad(np.asarray(image), ((SIDE, SIDE), (SIDE, SIDE), (0, 0)), mode="edge")
    expected = padded[SIDE - down : 2 * SIDE - down, SIDE - right : 2 * SIDE - right]
    out = affine(image, jnp.float32(down), jnp.float32(right), jnp.float32(0), jnp.float32(1))
    np.testing.assert_array_equal(out, expected)


@given(seed=seeds, quarters=st.integers(-4, 4))
@properties
def test_quarter_turns_are_rot90(seed, quarters):
    image = random_images(seed)[0]
    zero = jnp.float32(0)
    out = affine(image, zero, zero, jnp.float32(90 * quarters), jnp.float32(1))
    np.testing.assert_allclose(out, np.rot90(np.asarray(image), quarters), atol=1e-4)


@given(
    down=st.floats(-6, 6, width=32),
    right=st.floats(-6, 6, width=32),
    degrees=st.floats(-30, 30, width=32),
    scale=st.floats(0.75, 1.25, width=32),
    box=st.sampled_from([None, (0.0, 0.0, 1.0, 1.0), (0.1, 0.05, 0.7, 0.9), (0.0, 0.3, 1.0, 0.6)]),
)
@properties
def test_resampling_agrees_with_scipy(down, right, degrees, scale, box):
    from scipy import ndimage

    image = random_images(0)[0]
    angle, centre = np.deg2rad(degrees), np.array([(SIDE - 1) / 2] * 2)
    inverse = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / scale
    offset = centre - inverse @ (centre + np.array([down, right]))
    if box is not None:
        inverse = np.diag(box[2:]) @ inverse
        offset = np.array(box[2:]) * (offset + 0.5) + np.array(box[:2]) * SIDE - 0.5
    expected = ndimage.affine_transform(
        np.asarray(image[..., 0], np.float64), inverse, offset, order=1, mode="nearest"
    )
    arguments = (jnp.float32(value) for value in (down, right, degrees, scale))
    box = None if box is None else jnp.array(box)
    np.testing.assert_allclose(affine(image, *arguments, box)[..., 0], expected, atol=1e-4)


def test_half_an_image_is_enlarged_as_bilinear_resizing_does():
    image = np.asarray(random_images(0)[0])
    expected = jax.image.resize(image[12:36, 24:, 0], (SIDE, SIDE), "bilinear")
    still = (jnp.float32(0), jnp.float32(0), jnp.float32(0), jnp.float32(1))
    out = affine(image, *still, jnp.array([0.25, 0.5, 0.5, 0.5]))[..., 0]
    # Beyond the box's edge resizing repeats it, while a crop of an image sees its neighbour.
    np.testing.assert_allclose(out[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-5)


@jax.jit
def coordinates_at_the_centre(keys: jax.Array, limits: jax.Array) -> jax.Array:
    """Sends a picture of its own coordinates, -1 to 1, through `random_affine`.

    Returns `[batch, 4]`: mean row and column coordinate of the central 2x2 pixels, and the change
    of both from its upper to its lower row: which map it was.
    """
    ramp = jnp.linspace(-1, 1, SIDE)
    pictures = jnp.stack(jnp.meshgrid(ramp, ramp, indexing="ij"))[..., None]

    def locate(key):
        centre = jax.vmap(lambda picture: aug.random_affine(key, picture, *limits))(pictures)
        centre = centre[:, SIDE // 2 - 1 : SIDE // 2 + 1, SIDE // 2 - 1 : SIDE // 2 + 1, 0]
        return jnp.concatenate([centre.mean((1, 2)), centre[:, 1, 0] - centre[:, 0, 0]])

    return jax.vmap(locate)(keys)


@pytest.mark.parametrize(
    ("measure", "limits"),
    [("shift", (0.25, 0.0, 0.0)), ("rotate", (0.0, 30.0, 0.0)), ("zoom", (0.0, 0.0, 0.25))],
)
def test_draws_stay_within_their_limits_and_reach_them(measure, limits):
    found = np.asarray(coordinates_at_the_centre(random_keys(0, 300), jnp.array(limits)))
    pixel = 2 / (SIDE - 1)  # in coordinates
    down = found[:, 2:] / pixel
    values = {
        "shift": found[:, :2].ravel() / pixel / SIDE,
        "rotate": np.rad2deg(np.arctan2(down[:, 1], down[:, 0])),
        "zoom": 1 / np.hypot(down[:, 0], down[:, 1]) - 1,
    }
    for name, value in values.items():
        limit = max(limits) if name == measure else 0.0
        assert np.abs(value).max() <= limit + 1e-3
        assert value.max() >= 0.95 * limit - 1e-3
        assert value.min() <= -0.95 * limit + 1e-3


@given(seed=seeds)
@properties
def test_the_erased_part_is_one_rectangle_within_its_bounds(seed):
    masks = np.asarray(erase_masks(random_keys(seed, 16)))
    for mask in masks:
        height, width = mask.any(1).sum(), mask.any(0).sum()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert mask.sum() == height * width
        # Sides are rounded to whole pixels: half a pixel of play each.
        assert (height - 0.5) * (width - 0.5) <= aug.ERASE_AREA[1] * SIDE**2
        assert (height + 0.5) * (width + 0.5) >= aug.ERASE_AREA[0] * SIDE**2
        assert (height - 0.5) / (width + 0.5) <= aug.ERASE_ASPECT[1]
        assert (height + 0.5) / (width - 0.5) >= aug.ERASE_ASPECT[0]


def test_erased_rectangles_fill_their_bounds_and_the_whole_image():
    masks = np.asarray(erase_masks(random_keys(0, 2000)))
    areas = masks.mean((1, 2))
    assert areas.min() < 0.03
    assert areas.max() > 0.19
    assert abs(areas.mean() - 0.11) < 0.01
    assert masks.any(0).all()


def test_erasing_has_the_probability_asked_for():
    count, probability = 400, 0.25
    image = jnp.full((SIDE, SIDE, 1), 0.5)
    erase = jax.jit(
        jax.vmap(lambda key, image, p: aug.random_erase(key, image, p), (0, None, None))
    )
    out = np.asarray(erase(random_keys(0, count), image, probability))
    changed = (out != 0.5).any((1, 2, 3))
    assert abs(changed.mean() - probability) <= 4 * np.sqrt(probability * 0.75 / count)
    noise = out[out != 0.5]
    assert abs(noise.mean() - 0.5) < 0.01
    assert abs(noise.std() - 1 / np.sqrt(12)) < 0.01
    assert (np.asarray(erase(random_keys(0, count), image, 1.0)) != 0.5).any((1, 2, 3)).all()
    assert (np.asarray(erase(random_keys(0, count), image, 0.0)) == 0.5).all()


@pytest.mark.parametrize("left_out", [0.2, 0.6])
def test_crop_boxes_fill_their_bounds_and_stay_inside(left_out):
    boxes = np.asarray(
        jax.jit(jax.vmap(lambda k: aug.random_crop_box(k, left_out)))(random_keys(0, 4000))
    )
    top, left, height, width = boxes.T
    area, aspect = height * width, width / height
    assert boxes.min() >= 0
    assert max((top + height).max(), (left + width).max()) <= 1 + 1e-6
    assert area.min() == pytest.approx(1 - left_out, abs=0.01)
    assert area.max() == pytest.approx(1, abs=0.01)
    assert abs(area.mean() - (1 - left_out / 2)) < 0.01
    low, high = aug.CROP_ASPECT
    assert aspect.min() >= low - 1e-5
    assert aspect.max() <= high + 1e-5
    assert abs(np.log(aspect).mean()) < 0.01
    if left_out > 1 - low:
        assert aspect.min() < low + 0.02
    roomy = height < 0.95
    assert abs((top / (1 - height))[roomy].mean() - 0.5) < 0.05


def tone_in_numpy(image, brightness, contrast):
    out = np.zeros_like(image)
    bright = [min(max(float(pixel) * brightness, 0.0), 1.0) for pixel in image.ravel()]
    mean = sum(bright) / len(bright)
    for i, pixel in enumerate(bright):
        out.ravel()[i] = min(max(mean + (pixel - mean) * contrast, 0.0), 1.0)
    return out


@given(seed=seeds, brightness=st.floats(0, 2, width=32), contrast=st.floats(0, 2, width=32))
@properties
def test_tone_against_numpy_pixel_by_pixel(seed, brightness, contrast):
    image = random_images(seed)[0]
    out = jax.jit(aug.tone)(image, jnp.float32(brightness), jnp.float32(contrast))
    np.testing.assert_allclose(
        out, tone_in_numpy(np.asarray(image), brightness, contrast), atol=1e-5
    )


def test_brightness_and_contrast_reach_their_limits():
    image = jnp.full((SIDE, SIDE, 1), 0.5).at[: SIDE // 2].set(0.3)
    tones = jax.jit(jax.vmap(lambda k: aug.random_tone(k, image, 0.25, 0.5)))(random_keys(0, 1000))
    brightness = np.asarray(tones.mean((1, 2, 3)) / 0.4)
    contrast = np.asarray((tones[:, -1, 0, 0] - tones[:, 0, 0, 0]) / 0.2) / brightness
    for found, limit in ((brightness, 0.25), (contrast, 0.5)):
        assert found.min() == pytest.approx(1 - limit, abs=0.01)
        assert found.max() == pytest.approx(1 + limit, abs=0.01)


def test_alternating_flips_show_both_forms_in_any_two_epochs():
    images = jax.random.randint(jax.random.key(0), (1000, SIDE, SIDE, 1), 0, 256).astype(jnp.uint8)
    flips = jax.jit(aug.alternating_flips)
    key = jax.random.key(1)
    first, second, third = (np.asarray(flips(key, jnp.int32(i), images)) for i in range(3))
    np.testing.assert_array_equal(second, ~first)
    np.testing.assert_array_equal(third, first)
    assert abs(first.mean() - 0.5) < 0.08  # five standard errors
    # An image's flip follows from its pixels, not from its place.
    np.testing.assert_array_equal(flips(key, jnp.int32(0), images[::-1]), first[::-1])
    other = np.asarray(flips(jax.random.key(2), jnp.int32(0), images))
    assert abs((other == first).mean() - 0.5) < 0.08


def test_images_that_differ_in_a_pixel_flip_apart_half_of_the_time():
    image = np.full((SIDE, SIDE, 1), 128, np.uint8)
    images = np.repeat(image[None], SIDE * SIDE, axis=0)
    images.reshape(SIDE * SIDE, -1)[np.arange(SIDE * SIDE), np.arange(SIDE * SIDE)] = 127
    flips = np.asarray(aug.alternating_flips(jax.random.key(0), jnp.int32(0), jnp.asarray(images)))
    assert abs(flips.mean() - 0.5) < 0.06


def test_given_flips_are_the_only_ones():
    keys, images = random_keys(0), random_images(0)
    flips = jnp.arange(8) % 3 == 0
    out = aug.augment(keys, images, augment_config(alternate_flip=True), flips)
    expected = np.where(np.asarray(flips)[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_array_equal(out, expected)
