"""OpenCV, imported when a face is looked for or a video is read, and silent."""

import os
from typing import Any

from fer_jax.errors import ExtraError


def load() -> Any:
    """Imports OpenCV and returns the module `cv2`.

    What goes wrong with a video or a camera is said once, by this package; OpenCV and FFmpeg, which
    otherwise report each damaged frame, are told to be silent unless the environment says more.

    Raises:
      ExtraError: if it is not installed.
    """
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    try:
        import cv2
    except ImportError as error:
        raise ExtraError(
            "finding faces and reading videos needs OpenCV: pip install 'fer-jax[predict]' "
            f"({error}). Pictures that are faces already need it not: --no-detect"
        ) from error
    return cv2
