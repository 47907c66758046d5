import math
import subprocess
import sys

import numpy as np
import pytest
from apps_pictures import group, photograph, scaled, turned

from fer_jax.apps import crop, detect
from fer_jax.errors import PictureError

FACE = (175.6, 118.0, 178.7, 224.0)  # left, top, width, height of the photograph's face


@pytest.fixture(scope="module")
def detector():
    return detect.Detector()


def only(faces):
    assert len(faces) == 1
    return faces[0]


def test_the_photographs_face_is_found(detector):
    face = only(detector(photograph()))
    np.testing.assert_allclose(face.box, FACE, atol=6)
    assert 0.9 < face.score <= 1
    left_eye, right_eye, nose, left_corner, right_corner = face.points
    np.testing.assert_allclose([left_eye, right_eye], [(227, 193), (308, 195)], atol=10)
    assert left_eye[1] < nose[1] < min(left_corner[1], right_corner[1])
    assert left_corner[0] < nose[0] < right_corner[0]


def test_faces_come_from_left_to_right_and_the_same_twice(detector):
    found = detector(group())
    assert len(found) == 3
    lefts = [face.box[0] for face in found]
    assert lefts == sorted(lefts)
    widths = [face.box[2] for face in found]
    assert widths[1] > widths[0] > widths[2]
    again = detector(group())
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.box, other.box)
        np.testing.assert_array_equal(one.points, other.points)
        assert one.score == other.score


def _drawing() -> np.ndarray:
    picture = np.full((200, 300, 3), 255, np.uint8)
    picture[40:160, 60:240] = (200, 30, 30)
    picture[90:110, 100:200] = (20, 20, 200)
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((300, 400, 3), np.uint8),
        np.full((5000, 10, 3), 255, np.uint8),
        np.zeros((1, 1, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8),
        _drawing(),
        photograph()[350:],  # a uniform below the chin
    ],
    ids=["black", "narrow", "pixel", "noise", "drawing", "uniform"],
)
def test_where_there_is_no_face_none_is_found(detector, picture):
    assert detector(picture) == []


@pytest.mark.parametrize("factor", [0.12, 0.3, 2, 5])
def test_boxes_follow_the_pictures_size(detector, factor):
    face = only(detector(scaled(photograph(), factor)))
    np.testing.assert_allclose(face.box / factor, FACE, atol=16)


def test_a_face_that_fills_the_picture_is_found(detector):
    face = only(detector(np.ascontiguousarray(scaled(photograph()[110:345, 160:370], 5))))
    np.testing.assert_allclose(face.box[3] / 5, FACE[3], rtol=0.12)


@pytest.mark.parametrize("degrees", [-30, -20, -10, 10, 20, 30])
@pytest.mark.parametrize("factor", [0.25, 1])
def test_crops_of_a_tilted_head_stay_within_20_percent_and_15_degrees(detector, degrees, factor):
    centre = (267, 227)  # between the eyes and the mouth
    picture = scaled(turned(photograph(), degrees, centre), factor)
    face = only(detector(picture))
    square = crop.face_square(face.box, face.points)
    roll = math.degrees(math.atan2(square.sin, square.cos))
    assert abs(roll + degrees) < 15  # OpenCV turns anticlockwise
    assert abs(math.log(square.side / (212 * factor))) < math.log(1.2)
    assert math.dist((square.x, square.y), (265 * factor, 230 * factor)) < 0.1 * square.side


def test_a_damaged_detector_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "yunet.onnx"
    path.write_bytes(detect._MODEL.read_bytes()[:-1])
    monkeypatch.setattr(detect, "_MODEL", path)
    with pytest.raises(PictureError, match="is damaged; reinstall"):
        detect.Detector()
    path.unlink()
    with pytest.raises(PictureError, match="No such file"):
        detect.Detector()


def test_without_opencv_a_line_says_what_to_install():
    program = (
        "import sys; sys.modules['cv2'] = None\n"
        "from fer_jax.apps.detect import Detector\n"
        "from fer_jax.errors import ExtraError\n"
        "try: Detector()\n"
        "except ExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'fer-jax[predict]'" in done.stdout
    assert done.stdout.count("\n") == 1
