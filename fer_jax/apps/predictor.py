"""A trained network with its weights, ready to be asked."""

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from fer_jax.apps import crop, picture
from fer_jax.apps.crop import Square
from fer_jax.data import pictures
from fer_jax.labels import CLASSES, SIDE

# Images at a time, and where there are fewer; padded, so that few programs are compiled. Sizes at
# which an image gives the same bits: of smaller ones XLA multiplies the matrices otherwise.
BATCH, FEW = 32, 8


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in a picture, and what the network says of it.

    Attributes:
      box: `[4]` float64, left, top, width and height in pixels. It may reach out of the picture.
      score: how sure the detector is, 0.7 to 1; None where the picture was taken for a face.
      points: `[5, 2]` float64, x and y in pixels of eyes, nose and the mouth's corners, see
        :class:`fer_jax.apps.detect.Found`; None where the picture was taken for a face.
      square: the part of the picture that the network saw.
      image: `[48, 48]` uint8, what it saw.
      probabilities: `[classes]` float32, which add up to 1.
    """

    box: np.ndarray
    score: float | None
    points: np.ndarray | None
    square: Square
    image: np.ndarray
    probabilities: np.ndarray

    def scaled(self, factor: float) -> "Face":
        """Returns the same face in the picture enlarged by a factor."""
        square = self.square
        return dataclasses.replace(
            self,
            box=self.box * factor,
            points=None if self.points is None else self.points * factor,
            square=dataclasses.replace(
                square, x=square.x * factor, y=square.y * factor, side=square.side * factor
            ),
        )


class Predictor:
    """Says how probable each class is for the faces in pictures.

    Attributes:
      name: of the weights.
      classes: names of the classes, in the order of the probabilities.
      fingerprint: how the SHA-256 of the weights begins, in 8 hexadecimal digits. It tells weights
        apart by content, whatever they are called. Empty where :func:`fer_jax.load` did not load
        them.
      views: of each face, over which the probabilities are averaged; one of
        `fer_jax.config.VIEWS`, see :func:`fer_jax.tta.views`.
    """

    def __init__(
        self,
        model: Any,
        variables: Any,
        name: str,
        classes: Sequence[str] = CLASSES,
        sha256: str = "",
        views: str = "none",
    ):
        """Takes a network, from `create_model`, and its variables.

        The first JAX device computes. On a CPU convolutions run in C++ if
        :mod:`fer_jax.ops.native` has been loaded, in XLA alone otherwise.

        Raises:
          ValueError: if there are no such views.
        """
        import jax
        from jax.sharding import Mesh

        from fer_jax.config import VIEWS
        from fer_jax.machine import devices

        if views not in VIEWS:
            raise ValueError(f"there are no views {views!r}, but {', '.join(VIEWS)}")

        self._model = model
        self._mesh = mesh = Mesh(np.asarray(jax.devices()[:1]), (devices.BATCH_AXIS,))
        self.name = name
        self.classes = tuple(classes)
        self.fingerprint = sha256[:8]
        self.views = views
        self._variables = devices.put(variables, devices.replicated(mesh))
        self._programs: dict[int, Any] = {}  # by how many images they take
        self._own = threading.local()

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Predicts from pictures of one face each, such as FER2013's.

        Args:
          images: `[n, h, w]` grey or `[n, h, w, 3]` RGB, uint8, of any size. Of others than 48x48
            the largest square in the middle is taken, and scaled, as
            :func:`fer_jax.data.pictures.fit` does for training.

        Returns:
          Probabilities `[n, classes]` float32; of 48x48 grey images exactly the exponential of what
          :func:`fer_jax.predict.make_predict` gives, averaged over views by
          :func:`fer_jax.tta.predict_views`. An image alone is a batch of its own; on a CPU it goes
          through :mod:`fer_jax.apps.prepared`, and gives other last bits.

        Raises:
          ValueError: for images of another shape or type, or one RGB picture alone.
        """
        images = np.asarray(images)
        if images.ndim == 3 and images.shape[-1] == 3:
            raise ValueError(
                f"images are {list(images.shape)}: one RGB picture? give [1, h, w, 3], or use "
                "detect_and_predict"
            )
        rgb = images.ndim == 4 and images.shape[-1] == 3
        if images.dtype != np.uint8 or not (rgb or images.ndim == 3):
            raise ValueError(
                f"images are {images.dtype}{list(images.shape)}; they must be uint8, [n, h, w] or "
                "[n, h, w, 3]"
            )
        grey = crop.luminance(images) if rgb else images
        if grey.shape[1:] != (SIDE, SIDE):
            grey = np.array([pictures.fit(image) for image in grey], np.uint8)
            grey = grey.reshape(-1, SIDE, SIDE)  # also where there is none
        # One face, live, must not wait for others.
        return self._predict(grey, [1] if len(grey) == 1 else _batch_sizes(len(grey)))

    def _predict(self, grey: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
        """Predicts from `[n, 48, 48]` uint8 in batches of these sizes."""
        from fer_jax import tta

        found, start = [np.empty((0, len(self.classes)), np.float32)], 0
        for size in sizes:
            batch, program = grey[start : start + size, ..., None], self._program(size)
            log_probs = lambda _, images, program=program: program(images)  # noqa: E731
            found.append(tta.predict_views(log_probs, None, batch, self.views, "probabilities"))
            start += size
        return np.exp(np.concatenate(found))

    def _program(self, size: int) -> Callable[[np.ndarray], np.ndarray]:
        if size not in self._programs:
            self._programs[size] = self._build_program(size)
        return self._programs[size]

    def _build_program(self, size: int) -> Callable[[np.ndarray], np.ndarray]:
        from fer_jax.apps import prepared
        from fer_jax.predict import make_predict

        if size == 1 and self._mesh.devices.flat[0].platform == "cpu":
            predict_one = prepared.make_predict_one(self._model, self._variables)
            return lambda images: np.asarray(predict_one(images))
        predict = make_predict(self._model, self._mesh, size)
        return lambda images: predict(self._variables, images)

    def detect_and_predict(self, source: np.ndarray | Path | str) -> list[Face]:
        """Finds the faces in a picture and predicts for each.

        Args:
          source: `[h, w, 3]` RGB or `[h, w]` grey, uint8; or a file.

        Returns:
          The faces from left to right; an empty list if there is none.

        Raises:
          ExtraError: if OpenCV is not installed.
          PictureError: if a file cannot be read.
          ValueError: for an array of another shape or type.
        """
        return self.predict_pictures([source])[0]

    def predict_pictures(
        self, sources: Sequence[np.ndarray | Path | str], detect: bool = True
    ) -> list[list[Face]]:
        """Does as :meth:`detect_and_predict` for several pictures, whose faces share batches.

        Args:
          sources: pictures or files.
          detect: look for faces; otherwise the middle square of each picture is taken for one, as
            :func:`fer_jax.data.pictures.fit` does for training.

        Returns:
          The faces of each picture.
        """
        # Side by side, so that no core waits while another cuts out a face or prepares a search.
        each = self._threads.map if len(sources) > 1 else map
        faces = list(each(lambda source: self._faces(_to_picture(source), detect), sources))
        images = [face.image for those in faces for face in those]
        if not images:
            return faces
        together = np.stack(images)
        # Of pictures that are faces already an evaluation's probabilities are expected, to the bit.
        found = (
            self.predict(together) if detect else self._predict(together, _batch_sizes(len(images)))
        )
        probabilities = iter(found)
        return [
            [dataclasses.replace(face, probabilities=next(probabilities)) for face in those]
            for those in faces
        ]

    def _faces(self, rgb: np.ndarray, detect: bool) -> list[Face]:
        """Returns the faces of a picture, whose probabilities are still to come."""
        grey = crop.luminance(rgb)
        unknown = np.empty(0, np.float32)
        if not detect:
            square = crop.centre_square(*grey.shape)
            half = square.side / 2
            box = np.array([square.x - half, square.y - half, square.side, square.side])
            return [Face(box, None, None, square, pictures.fit(grey), unknown)]
        faces = []
        for found in self._detector(rgb):
            square = crop.face_square(found.box, found.points)
            image = crop.crop(grey, square)
            faces.append(Face(found.box, found.score, found.points, square, image, unknown))
        return faces

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        from fer_jax.machine import environment

        return ThreadPoolExecutor(environment.cpu_cores())

    @property
    def _detector(self) -> Any:
        """A detector of this thread's own."""
        if not hasattr(self._own, "detector"):
            from fer_jax.apps.detect import Detector

            self._own.detector = Detector()
        return self._own.detector

    def explain(self, face: Face, label: int | None = None) -> np.ndarray:
        """Returns what a prediction rests on; see :func:`fer_jax.apps.explain.saliency`."""
        from fer_jax.apps.explain import saliency

        return saliency(self.predict, face.image, label)


def _batch_sizes(count: int) -> list[int]:
    """Returns the sizes of the batches for so many images; the last one need not be full."""
    whole, rest = divmod(count, BATCH)
    few = -(-rest // FEW)
    return [BATCH] * whole + ([FEW] * few if few * FEW < BATCH else [BATCH])


def _to_picture(source: np.ndarray | Path | str) -> np.ndarray:
    """Returns `[h, w, 3]` uint8, RGB."""
    if isinstance(source, str | Path):
        return picture.decode(Path(source))
    source = np.asarray(source)
    grey = source.ndim == 2
    if source.dtype != np.uint8 or not (grey or (source.ndim == 3 and source.shape[-1] == 3)):
        raise ValueError(
            f"the picture is {source.dtype}{list(source.shape)}; it must be uint8, [h, w, 3] (RGB) "
            "or [h, w]"
        )
    if not source.size:
        raise ValueError(f"the picture is empty: {list(source.shape)}")
    return np.repeat(source[..., None], 3, axis=2) if grey else source
