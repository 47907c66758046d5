"""Faces of one's own: every picture becomes the same face, every gap is named."""

import io
import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from test_sources import tar_bytes, write_folder, zip_bytes

from fer_jax.data.own import Faces
from fer_jax.data.pictures import read_face
from fer_jax.data.prepare import load_dataset
from fer_jax.errors import DataError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (48, 48), np.uint8)


def saved(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(array=GREY):
    return Image.fromarray(array)


def with_a_transparent_level():
    levels = np.where(GREY == 255, 1, GREY.astype(np.uint16) * 257).astype(np.uint16)
    return saved(grey(levels), transparency=1)


def upside_down():
    exif = Image.Exif()
    exif[0x0112] = 3  # orientation: turned by 180 degrees
    return saved(grey(GREY[::-1, ::-1]), exif=exif)


SAME = {  # files that must give exactly GREY
    "PNG": saved(grey()),
    "BMP": saved(grey(), "bmp"),
    "TIFF": saved(grey(), "tiff"),
    "GIF": saved(grey(), "gif"),
    "animated GIF": saved(grey(), "gif", save_all=True, append_images=[grey(255 - GREY)]),
    "WebP": saved(grey().convert("RGB"), "webp", lossless=True),
    "PGM": saved(grey(), "ppm"),
    "RGB": saved(grey().convert("RGB")),
    "RGBA": saved(grey().convert("RGBA")),
    "palette": saved(grey().convert("P")),
    "16-bit": saved(Image.fromarray(GREY.astype(np.uint16) * 257)),
    "16-bit PGM": saved(Image.fromarray(GREY.astype(np.uint16) * 257), "ppm"),
    "16-bit, transparent": with_a_transparent_level(),
    "CMYK": saved(Image.merge("CMYK", (*[Image.new("L", (48, 48))] * 3, grey(255 - GREY))), "tiff"),
    "EXIF orientation": upside_down(),
    "twice the size": saved(grey().resize((96, 96), Image.Resampling.NEAREST)),
    "wide": saved(grey(np.pad(GREY, ((0, 0), (20, 20))))),
    "high": saved(grey(np.pad(GREY, ((7, 7), (0, 0))))),
}


@pytest.mark.parametrize("name", SAME)
def test_one_face_in_every_format(name):
    face = read_face(name, SAME[name])
    assert (face.shape, face.dtype) == ((48, 48, 1), np.uint8)
    if name == "twice the size":  # the triangle reaches into the neighbours
        assert np.abs(face[..., 0].astype(int) - GREY).mean() < 45
    else:
        np.testing.assert_array_equal(face[..., 0], GREY)


def test_jpeg_and_luminance():
    smooth = np.broadcast_to(np.arange(48, dtype=np.uint8) * 5, (48, 48)).copy()
    face = read_face("x", saved(grey(smooth), "jpeg", quality=95))
    assert np.abs(face[..., 0].astype(int) - smooth).max() <= 3
    red = Image.new("RGB", (100, 60), (200, 0, 100))
    assert set(read_face("x", saved(red)).ravel()) == {round(0.299 * 200 + 0.114 * 100)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"some text", "x is not a picture that can be read"),
        (saved(grey(), "jpeg")[:-300], "x is not a picture that can be read"),
        (b"\0\0\0\x18ftypheic", "x is a HEIC picture; save it as JPEG or PNG"),
        (b"%!PS-Adobe-3.0 EPSF", "x is not a picture that can be read"),
        (saved(Image.fromarray(GREY.astype(np.float32)), "tiff"), "floating-point grey levels"),
        (saved(Image.fromarray(GREY.astype(np.int32)), "tiff"), "32-bit or signed grey levels"),
        (saved(Image.new("1", (20_000, 6_000))), "x has 20000x6000 pixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture(data, message):
    with pytest.raises(DataError, match=re.escape(message)):
        read_face("x", data)


def tree(classes, splits=("train", "valid", "test"), root=""):
    """Returns members with one picture of each class in each split."""
    members = {}
    for i, split in enumerate(splits):
        for j, name in enumerate(classes):
            pixels = np.full((60, 50), 20 * i + j, np.uint8)
            members[f"{root}{split}/{name}/{i}{j}.png"] = saved(grey(pixels))
    return members


CLASSES = {  # names of folders -> classes
    ("angry", "happy"): ("Anger", "Happiness"),
    ("surprised", "joy", "Sadness", "NEUTRAL", "fearful", "disgusted", "anger"): (
        *("Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Neutral"),
    ),
    ("happy", "contempt", "angry"): ("angry", "contempt", "happy"),
    ("10", "2", "1"): ("1", "10", "2"),
}


@pytest.mark.parametrize("names", CLASSES)
def test_classes(tmp_path, names):
    faces = Faces(write_folder(tmp_path / "faces", tree(names)))
    assert faces.classes == CLASSES[names]
    for i, (images, labels, ids) in enumerate(faces.read().values()):
        assert sorted(labels) == list(range(len(names)))
        for image, identity in zip(images, ids, strict=True):
            assert identity.decode().split("/")[0] in names
            assert image[0, 0, 0] == 20 * i + int(identity.decode().split("/")[1][1])


def test_the_same_class_under_two_names(tmp_path):
    members = tree(("angry", "Sad"), ("train",)) | tree(("Anger", "sad"), ("val", "testing"))
    assert Faces(write_folder(tmp_path / "faces", members)).classes == ("Anger", "Sadness")


def test_every_wrapping_is_the_same_data_set(tmp_path):
    members = tree(("a", "b"), ("train", "validation", "test"))
    litter = {"train/a/Thumbs.db": b"x", "test/.DS_Store": b"x", "README.md": b"x"}
    rooted = {f"my/faces/{name}": data for name, data in members.items()}
    found = [Faces(write_folder(tmp_path / "faces", members | litter))]
    for name, data in {
        "a.zip": zip_bytes(members),
        "b": zip_bytes(rooted),
        "c.tar": tar_bytes(members),
        "d.tgz": tar_bytes(rooted, "w:gz"),
    }.items():
        (tmp_path / name).write_bytes(data)
        found.append(Faces(tmp_path / name))
    assert {faces.count for faces in found} == {6}
    assert len({faces.sha256() for faces in found}) == 1
    for faces in found[1:]:
        for split, arrays in faces.read().items():
            for a, b in zip(arrays, found[0].read()[split], strict=True):
                np.testing.assert_array_equal(a, b)
    changed = dict(members) | {"test/a/20.png": saved(grey())}
    assert Faces(write_folder(tmp_path / "other", changed)).sha256() != found[0].sha256()


BAD = {
    "nothing": ({}, "must hold train/<class>/, .*it is empty"),
    "no splits": ({"a/1.png": SAME["PNG"]}, "must hold train/<class>/.*it holds 'a/1.png'"),
    "no valid": (tree("ab", ("train", "test")), "no valid/<class>/ .*a tenth of train's pictures"),
    "no test": (tree("ab", ("train", "val")), "no test/<class>/ .*a tenth of train's pictures"),
    "no train": (tree("ab", ("valid", "test")), "no train/<class>/"),
    "no class": (tree("ab") | {"train/1.png": b"x"}, "'train/1.png' must lie in <split>/<class>/"),
    "too deep": (tree("ab") | {"train/a/b/1.png": b"x"}, "neither higher nor deeper"),
    "one class": (tree("a"), "has the classes 'a'; there must be 2 to 256"),
    "class missing": (
        tree(("a", "b"), ("train", "test")) | tree("a", ("valid",)),
        "valid has no picture of b; every split",
    ),
    "two roots": (tree("ab", root="x/") | tree("ab", root="y/"), "splits lie below .*keep one"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folder(tmp_path, name):
    members, message = BAD[name]
    with pytest.raises(DataError, match=message):
        Faces(write_folder(tmp_path / "faces", members))


def test_an_unreadable_picture_is_named(tmp_path):
    faces = Faces(write_folder(tmp_path / "faces", tree("ab") | {"valid/a/x.png": b"text"}))
    with pytest.raises(DataError, match=r"valid/a/x\.png' is not a picture that can be read"):
        faces.read()


def config_of(data_dir, source=None):
    fields = {"name": "folder", "source": source, "data_dir": str(data_dir), "partial": False}
    return ConfigDict(fields)


def test_no_source_and_nothing_prepared(tmp_path):
    with pytest.raises(DataError, match=r"0 data sets of your own .*--config\.data\.source=PATH"):
        load_dataset(config_of(tmp_path))
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_dataset(config_of(tmp_path, str(tmp_path / "nowhere")))


@pytest.mark.slow  # TensorFlow takes 10 s to import
def test_own_faces_are_prepared_and_opened(tmp_path):
    import tensorflow_datasets as tfds

    folder = write_folder(tmp_path / "faces", tree(("happy", "sad")))
    dataset = load_dataset(config_of(tmp_path / "data", str(folder)))
    assert (dataset.name, dataset.classes) == ("folder", ("Happiness", "Sadness"))
    assert dataset.source_sha256.startswith(dataset.kind)
    for split, (images, labels, ids) in Faces(folder).read().items():
        for field, expected in (("images", images), ("labels", labels), ("ids", ids)):
            np.testing.assert_array_equal(getattr(dataset.splits[split], field), expected)
    assert load_dataset(config_of(tmp_path / "data")).kind == dataset.kind
    records = tfds.load(
        "folder", split="test", data_dir=tmp_path / "data", builder_kwargs={"source": folder}
    )
    assert [int(record["label"]) for record in records] == list(dataset.splits["test"].labels)
    other = write_folder(tmp_path / "other", tree(("a", "b", "c")))
    assert load_dataset(config_of(tmp_path / "data", str(other))).classes == ("a", "b", "c")
    with pytest.raises(DataError, match="2 data sets of your own are prepared"):
        load_dataset(config_of(tmp_path / "data"))
    by_name = tfds.load(f"folder/{dataset.kind}", split="train", data_dir=tmp_path / "data")
    assert len(by_name) == 2
