import subprocess
import sys

import numpy as np
import pytest
from apps_pictures import crops, group, photograph, predictor
from PIL import Image

import fer_jax
from fer_jax import predict, train, tta
from fer_jax.apps import crop, explain
from fer_jax.apps import load as load_module
from fer_jax.apps.load import load
from fer_jax.apps.predictor import BATCH, FEW, Predictor, _batch_sizes
from fer_jax.config import get_config
from fer_jax.data import pictures
from fer_jax.errors import CheckpointError, PictureError, WeightsError
from fer_jax.labels import CLASSES
from fer_jax.models import MODELS
from fer_jax.ops import native
from fer_jax.weights import store

slow = pytest.mark.slow


def log_probs(images: np.ndarray) -> np.ndarray:
    """What `make_predict` gives for `[n, 48, 48]`, asked in a way of its own."""
    of = predictor()
    direct = predict.make_predict(of._model, of._mesh, BATCH)
    return direct(of._variables, images[..., None])


def test_the_package_offers_what_is_documented():
    assert fer_jax.CLASSES == CLASSES
    assert fer_jax.load is load
    with pytest.raises(AttributeError, match="no_such_name"):
        fer_jax.no_such_name  # noqa: B018


def test_weights_are_loaded_with_the_library_that_training_has_kept(monkeypatch):
    asked = []
    monkeypatch.setattr(native, "load_kept", lambda: asked.append(True))
    load("arch02")
    assert asked


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        *[(0, []), (1, [8]), (2, [8]), (16, [8, 8]), (17, [8, 8, 8]), (25, [32]), (32, [32])],
        *[(33, [32, 8]), (64, [32, 32]), (90, [32, 32, 32])],
    ],
)
def test_few_images_do_not_pay_for_many(count, sizes):
    assert _batch_sizes(count) == sizes


@pytest.mark.slow
@pytest.mark.parametrize("count", [7, 3 * BATCH + 5, BATCH + 2 * FEW])
def test_crops_give_exactly_what_make_predict_gives(count):
    images = crops(count)
    found = predictor().predict(images)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.exp(log_probs(images)))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param("flip", marks=slow), "shifts", pytest.param("ten_crop", marks=slow)]
)
def test_views_give_exactly_what_an_evaluations_views_give(name):
    images = crops(FEW + 1)
    plain = predictor()
    of = Predictor(plain._model, plain._variables, plain.name, views=name)
    direct = predict.make_predict(of._model, of._mesh, BATCH)
    expected = tta.predict_views(direct, of._variables, images[..., None], name, "probabilities")
    found = of.predict(images)
    np.testing.assert_array_equal(found, np.exp(expected))
    assert np.abs(found - plain.predict(images)).max() > 1e-3
    faces = of.predict_pictures([np.repeat(i[..., None], 3, axis=2) for i in images], detect=False)
    np.testing.assert_array_equal([only.probabilities for (only,) in faces], found)
    np.testing.assert_allclose(of.predict(images[:1]), found[:1], rtol=0, atol=1e-6)
    assert of.predict(images[:0]).shape == (0, 7)


def test_views_that_there_are_not_are_named():
    with pytest.raises(ValueError, match="no views 'many', but none, flip, shifts, ten_crop"):
        load("arch02", views="many")


def test_the_same_crops_in_files_give_exactly_the_same(tmp_path):
    images = crops(9)
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        mode = ("L", "RGB", "RGBA", "P")[i % 4]
        Image.fromarray(image).convert(mode).save(paths[-1])
    found = predictor().predict_pictures(paths, detect=False)
    np.testing.assert_array_equal(
        np.stack([only.probabilities for (only,) in found]), np.exp(log_probs(images))
    )


def test_images_of_any_size_and_grey_or_rgb():
    of = predictor()
    images = crops(3)
    large = images.repeat(4, axis=1).repeat(4, axis=2)
    wide = np.pad(large, ((0, 0), (0, 0), (30, 30)))
    expected = of.predict(np.stack([pictures.fit(image) for image in wide]))
    np.testing.assert_array_equal(of.predict(wide), expected)
    np.testing.assert_array_equal(of.predict(np.repeat(wide[..., None], 3, axis=3)), expected)
    assert of.predict(images[:0]).shape == (0, 7)


@pytest.mark.parametrize("images", [np.zeros((2, 48, 48)), np.zeros((48, 48), np.uint8)])
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match="must be uint8"):
        predictor().predict(images)


def test_a_photograph_gives_its_face_with_seven_probabilities():
    (face,) = predictor().detect_and_predict(photograph())
    assert face.probabilities.shape == (7,)
    np.testing.assert_allclose(face.probabilities.sum(), 1, rtol=1e-5)
    expected = crop.crop(crop.luminance(photograph()), crop.face_square(face.box, face.points))
    np.testing.assert_array_equal(face.image, expected)
    np.testing.assert_array_equal(face.probabilities, predictor().predict(face.image[None])[0])


def test_always_a_list():
    of = predictor()
    assert of.detect_and_predict(np.zeros((90, 90, 3), np.uint8)) == []
    assert len(of.detect_and_predict(group())) == 3
    assert of.predict_pictures([]) == []


def test_pictures_side_by_side_are_as_each_alone():
    of = predictor()
    whole = group()
    empty = np.zeros((90, 90, 3), np.uint8)
    sources = [whole, photograph(), whole[:, ::-1], whole[::2, ::2], empty] * 3
    for faces, source in zip(of.predict_pictures(sources), sources, strict=True):
        for ours, alone in zip(faces, of.detect_and_predict(source), strict=True):
            assert (ours.score, ours.square) == (alone.score, alone.square)
            np.testing.assert_array_equal(ours.points, alone.points)
            np.testing.assert_array_equal(ours.image, alone.image)
            np.testing.assert_allclose(ours.probabilities, alone.probabilities, rtol=0, atol=1e-6)


def test_what_cannot_be_read_ends_all_that_are_side_by_side(tmp_path):
    with pytest.raises(PictureError, match=r"missing\.jpg"):
        predictor().predict_pictures([photograph(), tmp_path / "missing.jpg", photograph()])


def test_a_file_and_its_array_give_the_same(tmp_path):
    path = tmp_path / "colour.png"
    Image.fromarray(photograph()).save(path)
    (from_file,) = predictor().detect_and_predict(path)
    (from_array,) = predictor().detect_and_predict(photograph())
    np.testing.assert_array_equal(from_file.probabilities, from_array.probabilities)
    with pytest.raises(PictureError, match="No such file"):
        predictor().detect_and_predict(tmp_path / "missing.jpg")


def test_a_face_does_not_depend_on_what_shares_its_batch():
    of = predictor()
    images = crops(BATCH)
    alone = np.concatenate([of.predict(image[None]) for image in images[:5]])
    np.testing.assert_allclose(of.predict(images)[:5], alone, rtol=0, atol=1e-6)


def test_other_arrays_are_refused():
    for wrong in (
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(ValueError, match="the picture is"):
            predictor().detect_and_predict(wrong)


# Weights


def test_there_is_never_a_prediction_without_weights(tmp_path):
    with pytest.raises(WeightsError, match=r"there are no weights 'no_such'.*by name"):
        load("no_such")
    (tmp_path / "weights.txt").touch()
    with pytest.raises(WeightsError, match="is not weights"):
        load(tmp_path / "weights.txt")
    with pytest.raises(WeightsError, match=r"model.safetensors does not exist"):
        load(tmp_path)
    (tmp_path / "cut.hdf5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(WeightsError, match=r"cut.hdf5"):
        load(tmp_path / "cut.hdf5")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="train it first"):
        load(tmp_path / "run")


def test_stored_weights_predict_the_same_by_folder_and_by_file(tmp_path):
    folder = tmp_path / "small"
    store.save(folder, predictor()._variables, get_config().model, CLASSES)
    images = crops(5)
    for path, name in ((folder, "small"), (folder / store.ARRAYS, "model")):
        of = load(path)
        assert (of.name, of.classes) == (name, CLASSES)
        np.testing.assert_array_equal(of.predict(images), predictor().predict(images))


def test_weights_come_with_the_package_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(load_module, "_SHIPPED", (tmp_path / "none", tmp_path / "shipped"))
    assert load_module.shipped() == {}
    with pytest.raises(WeightsError, match="no weights are shipped here"):
        load()
    for name in ("b", "a"):
        folder = tmp_path / "shipped" / name
        store.save(folder, predictor()._variables, get_config().model, CLASSES)
        assert load(name).name == name
        if name == "b":
            assert load().name == "b"
    assert list(load_module.shipped()) == ["a", "b"]
    (tmp_path / "shipped" / "a" / store.ARRAYS).unlink()
    with pytest.raises(WeightsError, match=r"model.safetensors does not exist"):
        load("a")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini_xception", "fully_cnn"])
def test_a_keras_file_is_known_by_its_layers(tmp_path, name):
    import keras_networks

    path = tmp_path / f"{name}.h5"
    getattr(keras_networks, name)().save(path)
    of = load(path)
    assert (of.name, type(of._model)) == (name, MODELS[name])
    assert of.predict(crops(2)).shape == (2, 7)


@pytest.mark.slow
def test_a_runs_folder_gives_its_best_checkpoint(config, dataset, tmp_path, standard_promotion):
    folder = tmp_path / "tiny_run"
    record = train.train_and_evaluate(config, folder)
    of = load(folder)
    assert of.name == "tiny_run"
    split = dataset.splits["valid"]
    found = of.predict(np.asarray(split.images)[..., 0])
    accuracy = (found.argmax(axis=1) == split.labels).mean()
    np.testing.assert_allclose(accuracy, record["metrics"]["valid"]["accuracy"], atol=1e-9)


# Saliency


def test_what_hides_the_reason_counts():
    """A network that looks at one corner only: its map stands there."""

    def corner(images):
        bright = images[:, :12, :12].mean(axis=(1, 2)) / 255
        return np.stack([bright, 1 - bright], axis=1)

    image = np.full((48, 48), 40, np.uint8)
    image[:12, :12] = 250
    heat = explain.saliency(corner, image)
    assert heat.shape == (48, 48)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert max(row, column) < 12
    np.testing.assert_allclose(heat[30:, 30:], 0, atol=1e-12)
    assert heat[:12, :12].min() > 0
    np.testing.assert_array_equal(explain.saliency(corner, image, label=0), heat)
    assert explain.saliency(corner, image, label=1)[:12, :12].max() < 0  # hiding it helps


def test_a_network_that_looks_at_nothing_has_an_empty_map():
    heat = explain.saliency(lambda images: np.full((len(images), 7), 1 / 7), crops(1)[0])
    np.testing.assert_array_equal(heat, 0)


def test_masks_cover_every_pixel_alike():
    masks = explain.masks()
    assert masks.shape == (169, 48, 48)
    assert masks.min() == 0
    assert masks.max() <= 1
    np.testing.assert_allclose(masks[:, 8:40, 8:40].sum(axis=0), 4)


def test_the_overlay_stays_within_the_square():
    (face,) = predictor().detect_and_predict(photograph())
    heat = predictor().explain(face)
    laid = explain.overlay(photograph(), face, heat)
    changed = np.argwhere((laid != photograph()).any(axis=2))
    square = face.square
    reach = square.side * (abs(square.cos) + abs(square.sin)) / 2 + 1
    assert len(changed) > square.side**2 / 3
    assert np.abs(changed - (square.y, square.x)).max() <= reach


# What is imported


@pytest.mark.slow
def test_predicting_needs_neither_tensorflow_nor_matplotlib(tmp_path, clean_environment):
    path = tmp_path / "a.npy"
    np.save(path, crops(2))
    program = (
        "import sys, jax, numpy as np, fer_jax\n"
        "assert 'jax' in sys.modules and not any(m.startswith('fer_jax.') for m in sys.modules)\n"
        "fer_jax.load; fer_jax.CLASSES\n"
        "from fer_jax.apps.predictor import Predictor\n"
        "from fer_jax.models import MODELS\n"
        "model = MODELS['arch02']()\n"
        "images = np.load(sys.argv[1])\n"
        "variables = model.init(jax.random.key(0), images[..., None] / 255.0, train=False)\n"
        "assert Predictor(model, variables, 'x').predict(images).shape == (2, 7)\n"
        "names = ('tensorflow', 'matplotlib', 'tensorflow_datasets', 'pandas', 'cv2')\n"
        "print([n for n in names if n in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, env=clean_environment
    )
    assert done.stdout == "[]\n", done.stderr
