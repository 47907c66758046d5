from pathlib import Path

import numpy as np
import pytest
from apps_pictures import photograph
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


class Network:
    """What is asked of the package's class, which these tests do without."""

    def __init__(self, faces: int = 1):
        self.faces, self.asked = faces, []

    def _classify_emotions(self, images):
        self.asked.append(images)

    def detect_emotions(self, picture):
        self.asked.append(picture)
        return [{}] * self.faces


@pytest.fixture
def peer_fer(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import peer_fer

    return peer_fer


def test_a_face_is_scaled_and_normalised_as_by_the_package(peer_fer):
    network = Network()
    peer_fer.face(network)()
    (images,) = network.asked
    assert (images.shape, images.dtype) == ((1, 64, 64), np.float32)
    assert -1 <= images.min() < -0.5 < 0.5 < images.max() <= 1


def test_a_frame_is_the_photograph_in_bgr(peer_fer):
    network = Network()
    peer_fer.frame(network)()
    first, second = network.asked
    assert first is second
    expected = Image.fromarray(photograph()).resize((640, 750))
    np.testing.assert_array_equal(first[..., ::-1], np.asarray(expected))
    with pytest.raises(SystemExit, match="face was not found"):
        peer_fer.frame(Network(faces=0))


def test_the_clock_counts_calls(peer_fer):
    calls = []
    found = peer_fer.repeat(lambda: calls.append(1), 0.01)
    assert found["ms"] > 0
    assert found["per_s"] > 0
    assert len(calls) > 3
    calls.clear()
    peer_fer.repeat(lambda: calls.append(1), 0.0)
    assert len(calls) == 4  # three to warm up
