"""Averages over views and members, against NumPy written out."""

import numpy as np
import pytest

from fer_jax import config as config_lib
from fer_jax import tta


def random_images(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 48, 48, 1)).astype(np.uint8)


def random_log_probs(views=3, count=5):
    logits = np.random.default_rng(1).normal(size=(views, count, 7)) * 3
    return list((logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "count"), [("none", 1), ("flip", 2), ("shifts", 18), ("ten_crop", 10)]
)
def test_every_view_is_another_and_comes_with_its_mirror_image(name, count):
    images = random_images()
    views = list(tta.views(images, name))
    assert len(views) == count
    assert len({view.tobytes() for view in views}) == count
    for view in views:
        assert view.shape == images.shape
        assert view.dtype == np.uint8
    for upright, mirrored in zip(views[::2], views[1::2], strict=False):
        np.testing.assert_array_equal(mirrored, np.flip(upright, axis=2))


def test_every_name_of_the_configuration_has_views():
    for name in config_lib.VIEWS:
        assert len(list(tta.views(random_images(1), name))) >= 1


def test_shifts_move_by_whole_pixels_and_repeat_the_edge():
    image = random_images(1)
    found = [view[0, ..., 0] for view in tta.views(image, "shifts")][::2]
    expected = []
    for down in (tta.SHIFT, 0, -tta.SHIFT):
        for right in (tta.SHIFT, 0, -tta.SHIFT):
            rows = np.clip(np.arange(48) - down, 0, 47)
            columns = np.clip(np.arange(48) - right, 0, 47)
            expected.append(image[0, rows][:, columns, 0])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found[4], image[0, ..., 0])


def test_crops_are_enlarged_as_bilinear_resizing_does():
    import jax

    images = random_images()
    places = [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    for view, (top, left) in zip(list(tta.views(images, "ten_crop"))[::2], places, strict=True):
        crop = images[:, top : top + tta.CROP, left : left + tta.CROP].astype(np.float32)
        expected = np.asarray(jax.image.resize(crop, images.shape, "bilinear"))
        assert np.abs(view - expected).max() <= 0.5 + 1e-3  # rounded to whole grey levels


def test_the_mean_of_probabilities_against_numpy():
    log_probs = random_log_probs()
    found = tta.average(log_probs, "probabilities")
    np.testing.assert_allclose(np.exp(found), np.mean(np.exp(log_probs), axis=0), atol=1e-6)
    assert found.dtype == np.float32


def test_the_mean_of_logits_does_not_depend_on_their_offsets():
    logits = np.random.default_rng(1).normal(size=(3, 5, 7)) * 3
    log_probs = list((logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32))
    mean = logits.mean(axis=0)
    expected = np.exp(mean) / np.exp(mean).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(tta.average(log_probs, "logits")), expected, atol=1e-6)


@pytest.mark.parametrize("how", config_lib.AVERAGES)
def test_averages_of_one_and_of_equals_change_nothing(how):
    (one,) = random_log_probs(1)
    assert tta.average([one], how) is one
    np.testing.assert_allclose(tta.average([one] * 3, how), one, atol=1e-5)


def test_unlikely_classes_stay_finite():
    sure = np.full((1, 7), -200, np.float32)
    sure[0, 2] = 0
    for how in config_lib.AVERAGES:
        assert np.isfinite(tta.average([sure, sure], how)).all()


def test_a_networks_views_are_averaged():
    images = random_images(4)

    def predict(variables, images):
        logits = np.stack([images[..., :24, 0].mean((1, 2)), images[..., 24:, 0].mean((1, 2))], 1)
        logits = variables * logits
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    found = tta.predict_views(predict, 0.1, images, "flip", "probabilities")
    # The left half's mean is the mirror image's right half's.
    np.testing.assert_allclose(np.exp(found), 0.5, atol=1e-6)
    assert np.abs(np.exp(predict(0.1, images)) - 0.5).max() > 1e-3
