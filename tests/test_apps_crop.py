import math

import numpy as np
import pytest
from apps_pictures import crops, photograph, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fer_jax.apps import crop
from fer_jax.apps.crop import Square


@given(st.binary(min_size=48, max_size=48))
def test_luminance_is_pillows(data):
    rgb = np.frombuffer(data, np.uint8).reshape(4, 4, 3)
    np.testing.assert_array_equal(
        crop.luminance(rgb), np.asarray(Image.fromarray(rgb).convert("L"))
    )


def test_luminance_weighs_the_channels():
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
    np.testing.assert_array_equal(crop.luminance(colours), [76, 150, 29, 255])


def test_luminance_keeps_grey():
    grey = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(crop.luminance(np.repeat(grey[:, None], 3, axis=1)), grey)


def test_a_face_cut_out_already_stays_as_it_is():
    for image in crops(7):
        square = crop.centre_square(48, 48)
        np.testing.assert_array_equal(crop.crop(image, square), image)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_a_square_larger_by_a_whole_number_gives_the_means_of_blocks(k):
    picture = np.random.default_rng(0).integers(0, 256, (48 * k, 48 * k + 20), np.uint8)
    found = crop.crop(picture, crop.centre_square(*picture.shape))
    blocks = picture[:, 10:-10].reshape(48, k, 48, k).mean(axis=(1, 3), dtype=np.float64)
    np.testing.assert_array_equal(found, np.floor(blocks + 0.5))


def in_loops(grey, square):
    """The documented way in plain loops, as another language would write it."""
    height, width = len(grey), len(grey[0])
    k = max(1, math.ceil(square.side / 48 - 1e-9))
    image = [[0] * 48 for _ in range(48)]
    for i in range(48):
        for j in range(48):
            total = 0.0
            for p in range(k):
                for q in range(k):
                    u = (j * k + q + 0.5 - 24 * k) * (square.side / (48 * k))
                    v = (i * k + p + 0.5 - 24 * k) * (square.side / (48 * k))
                    x = square.x + u * square.cos - v * square.sin - 0.5
                    y = square.y + u * square.sin + v * square.cos - 0.5
                    x0, y0 = math.floor(x), math.floor(y)

                    def at(row, column):
                        row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
                        return int(grey[row][column])

                    upper = at(y0, x0) * (1 - (x - x0)) + at(y0, x0 + 1) * (x - x0)
                    lower = at(y0 + 1, x0) * (1 - (x - x0)) + at(y0 + 1, x0 + 1) * (x - x0)
                    total += upper * (1 - (y - y0)) + lower * (y - y0)
            image[i][j] = math.floor(total / (k * k) + 0.5 + 1e-9)
    return np.array(image)


@settings(max_examples=20, deadline=None)
@given(
    st.floats(-5, 35),
    st.floats(-5, 35),
    st.floats(1, 130),
    st.floats(-math.pi, math.pi),
    st.integers(0, 2**31),
)
def test_crops_are_those_of_the_documented_loops(x, y, side, angle, seed):
    grey = np.random.default_rng(seed).integers(0, 256, (31, 27), np.uint8)
    square = Square(x, y, side, math.cos(angle), math.sin(angle))
    np.testing.assert_array_equal(crop.crop(grey, square), in_loops(grey, square))


def test_outside_of_the_picture_its_border_goes_on():
    grey = np.full((20, 30), 77, np.uint8)
    assert (crop.crop(grey, Square(-100, 5, 90, 0.6, 0.8)) == 77).all()


def test_one_pixel_is_a_picture():
    assert (crop.crop(np.array([[9]], np.uint8), crop.centre_square(1, 1)) == 9).all()


def test_a_turned_square_undoes_a_turned_picture():
    grey = crop.luminance(photograph())
    angle = math.radians(25)
    upright = crop.sample(grey, Square(260, 230, 200), 48)
    tilted = turned(grey, 25, (259.5, 229.5))  # OpenCV's pixels have their centres at whole numbers
    again = crop.sample(tilted, Square(260, 230, 200, math.cos(angle), -math.sin(angle)), 48)
    assert np.abs(upright - again).mean() < 1.5
    assert np.abs(upright - crop.sample(tilted, Square(260, 230, 200), 48)).mean() > 15


def test_a_face_placed_as_in_fer2013_gives_the_whole_image():
    box = np.array([5.0, 24 - crop.BOX_HEIGHT / 2, 38, crop.BOX_HEIGHT])
    square = crop.face_square(box, crop.FACE_POINTS)
    np.testing.assert_allclose((square.x, square.y, square.side), (24, 24, 48))
    np.testing.assert_allclose((square.cos, square.sin), (1, 0), atol=1e-12)


@given(st.floats(-3, 3), st.floats(0.1, 50), st.floats(-1e3, 1e3))
def test_the_square_follows_position_scale_and_roll(angle, scale, shift):
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = crop.FACE_POINTS @ turn.T * scale + shift
    square = crop.face_square(np.array([shift, shift, scale * 38, scale * crop.BOX_HEIGHT]), points)
    np.testing.assert_allclose(square.side, 48 * scale)
    np.testing.assert_allclose((square.cos, square.sin), turn[:, 0], atol=1e-9)
    np.testing.assert_allclose(square.x, shift + 19 * scale, atol=1e-9)


def test_points_that_coincide_leave_the_square_upright():
    square = crop.face_square(np.array([0.0, 0, 10, 10]), np.full((5, 2), 3.0))
    assert (square.cos, square.sin) == (1, 0)


@pytest.mark.slow
def test_the_framing_is_that_of_fer2013():
    """The constants, measured again on training images; needs the prepared data set."""
    import cv2

    from fer_jax.apps.detect import FACE_WIDTH, PATCH_SIDE, Detector
    from fer_jax.data import arrays, prepare

    folders = sorted((prepare.default_data_dir() / "fer2013").glob("*/1.*/arrays"))
    if not folders:
        pytest.skip("fer2013 is not prepared here")
    train = arrays.open_arrays(folders[-1]).splits["train"].images
    detector = Detector()
    factor = FACE_WIDTH / 38.6  # a face in FER2013 is so wide
    side = round(48 * factor)
    border = (PATCH_SIDE - side) // 2
    rows = []
    for index in np.random.default_rng(0).choice(len(train), 400, replace=False):
        large = cv2.resize(train[index, ..., 0], (side, side), interpolation=cv2.INTER_CUBIC)
        patch = cv2.copyMakeBorder(large, *[border] * 4, cv2.BORDER_REPLICATE)
        bgr = cv2.resize(np.repeat(patch[..., None], 3, axis=2), (PATCH_SIDE, PATCH_SIDE))
        found = detector._rows(detector._confirm, bgr)
        if len(found):
            row = found[found[:, 14].argmax()]
            row[:14:2], row[1:14:2] = row[:14:2] - border, row[1:14:2] - border
            row[2:4] += border
            rows.append(row[:14] / side * 48)
    middle = np.median(rows, axis=0)
    assert len(rows) > 360
    np.testing.assert_allclose(middle[4:].reshape(5, 2), crop.FACE_POINTS, atol=0.8)
    np.testing.assert_allclose(middle[3], crop.BOX_HEIGHT, rtol=0.03)
    np.testing.assert_allclose(middle[:2] + middle[2:4] / 2, (24, 24), atol=0.8)
