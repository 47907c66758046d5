import io
import zlib

import numpy as np
import pytest
from apps_pictures import photograph, predictor, scaled
from PIL import Image, features

from fer_jax.apps import picture
from fer_jax.data.pictures import read_face
from fer_jax.errors import PictureError


@pytest.fixture
def small() -> np.ndarray:
    return scaled(photograph(), 0.25)


def save(image: Image.Image, path, *args, **options):
    image.save(path, *args, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_shown_upright(tmp_path, small, orientation):
    turn = Image.Transpose
    stored = {  # what a camera that notes the orientation stores of an upright picture
        1: None,
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }[orientation]
    image = Image.fromarray(small)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = image if stored is None else image.transpose(stored)
    path = save(image, tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(picture.decode(path), small)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, small, mode):
    grey = np.asarray(Image.fromarray(small).convert("L"))
    expected = small if mode in ("RGB", "RGBA", "CMYK") else np.repeat(grey[..., None], 3, axis=2)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "P":
        image = Image.fromarray(grey).convert("P")
    elif mode == "1":
        image = Image.fromarray(grey > 128)
        expected = np.repeat(np.where(grey > 128, 255, 0)[..., None], 3, axis=2)
    elif mode == "LA":
        image = Image.fromarray(grey).convert("LA")
    else:
        image = Image.fromarray(small).convert(mode)
    path = save(image, tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    found = picture.decode(path)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found.astype(int), expected, atol=1)


@pytest.mark.parametrize("suffix", ["png", "pgm", "tif"])
def test_16_bit_grey_is_rounded(tmp_path, suffix):
    grey = np.array([[0, 128, 129, 200, 257 * 100, 65535]], np.uint16)
    found = picture.decode(save(Image.fromarray(grey), tmp_path / f"a.{suffix}"))
    np.testing.assert_array_equal(found[0, :, 0], [0, 0, 1, 1, 100, 255])


def test_a_transparent_level_of_16_bit_grey_shows_white(tmp_path):
    grey = np.array([[0, 300, 301, 257 * 100]], np.uint16)
    found = picture.decode(save(Image.fromarray(grey), tmp_path / "a.png", transparency=300))
    np.testing.assert_array_equal(found[0, :, 0], [0, 255, 1, 100])


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_picture_in_rgb_is_not_copied(tmp_path, small, monkeypatch, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(Image.fromarray(small), tmp_path / "a.png", exif=exif)
    for name in ("copy", "convert"):
        monkeypatch.setattr(Image.Image, name, lambda *_: pytest.fail("a copy"))
    expected = small if orientation == 1 else np.rot90(small, -1)
    np.testing.assert_array_equal(picture.decode(path), expected)


def faded(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


AS_TRAINED = {
    "as it is": lambda image: image,
    "small": lambda image: image.resize((30, 41)),
    "transparent": faded,
    "transparent grey": lambda image: faded(image).convert("LA"),
    "transparent palette": lambda image: faded(image).quantize(64),
    "16 bits": lambda image: Image.fromarray(np.asarray(image.convert("L")).astype("<u2") * 250),
}


@pytest.mark.parametrize("name", AS_TRAINED)
def test_without_detection_the_network_sees_what_training_on_it_sees(tmp_path, small, name):
    path = save(AS_TRAINED[name](Image.fromarray(small)), tmp_path / "a.png")
    ((face,),) = predictor().predict_pictures([path], detect=False)
    expected = read_face("a.png", path.read_bytes())[..., 0]
    np.testing.assert_array_equal(face.image, expected)
    decoded = picture.decode(path)
    together = predictor().predict(np.stack([decoded, decoded]))  # alone, it has other last bits
    np.testing.assert_array_equal(together[0], face.probabilities)
    np.testing.assert_array_equal(together, predictor().predict(np.stack([expected, expected])))


def test_one_rgb_picture_is_not_taken_for_many_grey_ones(small):
    with pytest.raises(ValueError, match=r"one RGB picture\? give \[1, h, w, 3\]"):
        predictor().predict(small)


def test_what_is_transparent_shows_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = (0, 128, 255)
    found = picture.decode(save(Image.fromarray(rgba), tmp_path / "a.png"))
    np.testing.assert_allclose(
        found[0].astype(int), [[255, 255, 255], [227, 127, 127], [200, 0, 0]], atol=1
    )


def test_a_transparent_palette_shows_white(tmp_path):
    image = Image.new("P", (2, 1), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    found = picture.decode(save(image, tmp_path / "a.png", transparency=0))
    np.testing.assert_array_equal(found[0], [[255, 255, 255], [200, 100, 50]])


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_gives_its_first_frame(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 2
    np.testing.assert_array_equal(picture.decode(path)[0, 0], [255, 0, 0])


def test_the_content_says_what_a_file_is(tmp_path, small):
    path = save(Image.fromarray(small), tmp_path / "Mummé 中.jpg", "PNG")
    np.testing.assert_array_equal(picture.decode(path), small)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read_where_pillow_can(tmp_path, small):
    path = save(Image.fromarray(small), tmp_path / "a.jpg", "AVIF", quality=90)
    assert np.abs(picture.decode(path).astype(int) - small).mean() < 5


def test_what_would_start_a_program_is_no_picture(tmp_path, small):
    path = save(Image.fromarray(small), tmp_path / "cute.jpg", "EPS")
    assert "not a picture of a format that is read here: JPEG, PNG," in _refusal(path)


def _refusal(path) -> str:
    with pytest.raises(PictureError) as error:
        picture.decode(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello", encoding="utf-8")
    assert "is empty" in _refusal(tmp_path / "empty.jpg")
    assert "not a picture" in _refusal(tmp_path / "text.jpg")
    assert "No such file" in _refusal(tmp_path / "missing.jpg")
    assert "is a folder" in _refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp"])
def test_a_cut_picture_is_named(tmp_path, small, suffix):
    path = save(Image.fromarray(small), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "damaged" in _refusal(path)


def test_damaged_exif_data_do_not_matter(tmp_path, small):
    stream = io.BytesIO()
    Image.fromarray(small).save(stream, "PNG")
    data = stream.getvalue()
    content = b"eXIf" + b"II*\x00\xff\xff\xff\xffnonsense"
    length, check = (len(content) - 4).to_bytes(4, "big"), zlib.crc32(content).to_bytes(4, "big")
    path = tmp_path / "a.png"
    path.write_bytes(data[:33] + length + content + check + data[33:])  # after the header
    np.testing.assert_array_equal(picture.decode(path), small)


def test_heic_says_what_to_install(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100))
    assert "pip install pillow-heif" in _refusal(path)


@pytest.mark.parametrize(
    ("kind", "level", "said"),
    [
        (np.float32, 1, "floating-point grey levels, whose range is not known"),
        (np.int32, 255, "32-bit or signed grey levels, whose range is not known"),
        (np.int32, 70_000, "32-bit or signed grey levels, whose range is not known"),
    ],
)
def test_pixels_of_no_known_range_are_refused(tmp_path, kind, level, said):
    path = save(Image.fromarray(np.full((4, 4), level, kind)), tmp_path / "a.tif")
    assert said in _refusal(path)


@pytest.mark.slow
def test_fifty_megapixels_and_one_pixel(tmp_path):
    large = Image.new("RGB", (10000, 5000), "navy")
    assert picture.decode(save(large, tmp_path / "a.png")).shape == (5000, 10000, 3)
    one = Image.new("RGB", (1, 1), "navy")
    np.testing.assert_array_equal(picture.decode(save(one, tmp_path / "b.png")), [[[0, 0, 128]]])


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bombs_are_refused(tmp_path, side):
    path = tmp_path / "bomb.png"
    Image.new("1", (side, side)).save(path)
    assert path.stat().st_size < 200_000
    assert "more than 89,478,485 pixels" in _refusal(path)
