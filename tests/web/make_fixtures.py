"""Writes `fixtures.json`: what Python makes of small pictures, for the page's modules to repeat.

Run `uv run python tests/web/make_fixtures.py` after a change of `crop.py` or of how faces are
looked for; `tests/test_web.py` fails until then.
"""

import base64
import json
from pathlib import Path

import cv2
import numpy as np

from fer_jax.apps import crop

FIXTURES = Path(__file__).with_name("fixtures.json")


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns clouds with some noise, `[height, width, 3]` uint8, RGB."""
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    clouds = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(-20, 21, clouds.shape)
    return np.clip(clouds + noise, 0, 255).astype(np.uint8)


def encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _crop(rgb: np.ndarray, box: tuple[float, ...], degrees: float) -> dict:
    left, top, width, height = box
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = (crop.FACE_POINTS - 24) * (height / crop.BOX_HEIGHT) @ turn
    points = np.round(points + np.array([left + width / 2, top + height / 2]), 2)
    square = crop.face_square(np.array(box), points)
    image = crop.crop(crop.luminance(rgb), square)
    return {
        "rgb": encode(rgb),
        "size": list(rgb.shape[1::-1]),
        "box": list(box),
        "points": points.tolist(),
        "image": encode(image),
    }


def _resize(rgb: np.ndarray, size: tuple[int, int], how: str) -> dict:
    flag = {"area": cv2.INTER_AREA, "cubic": cv2.INTER_CUBIC}[how]
    bgr = cv2.resize(rgb[..., ::-1].copy(), size, interpolation=flag)
    return {
        "rgb": encode(rgb),
        "size": list(rgb.shape[1::-1]),
        "to": list(size),
        "how": how,
        "bgr": encode(bgr.transpose(2, 0, 1)),  # planar
    }


def make() -> dict:
    """Returns the fixtures."""
    rng = np.random.default_rng(0)
    crops = [
        _crop(picture(rng, *size), box, degrees)
        for size, box, degrees in (
            ((40, 44), (-1.7, -4.3, 44.1, 50.7), 0),  # one point a cell
            ((40, 36), (2.0, 1.5, 31.5, 36.25), 17),  # enlarged
            ((40, 36), (-20.5, 10.0, 60.0, 75.0), -40),  # reaches out of the picture
            ((30, 34), (10.2, 8.1, 14.0, 17.9), 8),
            ((48, 40), (-40.0, -46.0, 120.0, 148.0), 170),  # reduced, upside down
        )
    ]
    resizes = [
        _resize(picture(rng, *size), to, how)
        for size, to, how in (
            ((41, 27), (20, 31), "area"),
            ((36, 28), (14, 18), "area"),
            ((30, 23), (23, 30), "area"),
            ((11, 11), (32, 32), "cubic"),
            ((17, 17), (22, 22), "cubic"),
        )
    ]
    return {"crops": crops, "resizes": resizes}


if __name__ == "__main__":
    FIXTURES.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
