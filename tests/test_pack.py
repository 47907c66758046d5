import json

import jax
import numpy as np
import pytest
from helpers import tiny_config

import fer_jax
from fer_jax import config as config_lib
from fer_jax import train
from fer_jax.apps import cli
from fer_jax.data import arrays, prepare
from fer_jax.errors import RecordError, TrainingError
from fer_jax.runs import record
from fer_jax.study import plan
from fer_jax.weights import card, store
from fer_jax.weights.pack import pack

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """The folder of a finished run."""
    with jax.numpy_dtype_promotion("standard"):
        folder = tmp_path_factory.mktemp("run")
        train.train_and_evaluate(tiny_config(config_lib.get_config(), data_dir), folder)
        return folder


@pytest.fixture
def prepared(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))


@pytest.mark.usefixtures("prepared")
def test_a_finished_run_becomes_weights_that_say_the_same(run, tmp_path, capsys):
    out = tmp_path / "mine"
    assert cli.main(["pack", str(run), f"--out={out}"]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert json.loads((out / "config.json").read_text(encoding="utf-8")) == found["config"]
    metadata = store.load(out)[2]
    assert metadata["record"]["metrics"] == found["metrics"]
    assert "predictions" not in metadata["record"]
    images = np.random.default_rng(0).integers(0, 256, (5, 48, 48), np.uint8)
    ours, theirs = (fer_jax.load(path).predict(images) for path in (out, run))
    np.testing.assert_allclose(ours, theirs, atol=1e-3 if metadata["kernels"] == "float16" else 0)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# mine\n")
    assert f"| {found['metrics']['test']['accuracy']:.4f} |" in text
    assert metadata["sha256"] in text
    assert "$" not in text


@pytest.mark.usefixtures("prepared")
def test_what_is_no_finished_run_is_refused(run, tmp_path, capsys):
    with pytest.raises(TrainingError, match=r"holds no record \(results\.json\); train it"):
        pack(tmp_path, tmp_path / "out")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    text = (run / "results.json").read_text(encoding="utf-8")
    (damaged / "results.json").write_text(text.replace('"seed": 0', '"seed": 1'), encoding="utf-8")
    with pytest.raises(RecordError, match="damaged or changed"):
        pack(damaged, tmp_path / "out")
    assert cli.main(["pack", str(tmp_path), f"--out={tmp_path / 'out'}"]) == 2
    assert "holds no record" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_card_says_what_it_is_of(run, tmp_path):
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))
    found["dataset"]["name"] = "fer2013"
    record = found | {"calibration": {"error": 0.125, "temperature": 1.5, "error_scaled": 0.0625}}
    metadata = {
        "classes": list(fer_jax.CLASSES),
        "model": found["config"]["model"],
        "record": record,
        "kernels": "float32",
        "sha256": "ab",
    }
    text = card.text("net", metadata)
    assert "test (PrivateTest)" in text
    assert "error on test: 0.125; with a temperature of 1.50, fitted on valid, 0.062." in text
    assert "search engine" in text
    found["dataset"]["name"] = "folder"
    assert "search engine" not in card.text("net", metadata)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path", "differ", "atol"),
    [
        ("compact", "compact_seed0.json", 0, 1e-3),  # predictions in a record are float16
        # Its record's are from a GPU, which rounded factors to TensorFloat-32.
        ("arch03_strong", "nvidia_h100/arch03_strong_seed1.json", 4, 5e-3),
    ],
)
def test_shipped_weights_say_of_test_what_their_record_says(name, path, differ, atol):
    """Needs the prepared data set."""
    folders = sorted((prepare.default_data_dir() / "fer2013").glob("*/1.*/arrays"))
    if not folders:
        pytest.skip("fer2013 is not prepared here")
    images = arrays.open_arrays(folders[-1]).splits["test"].images
    packed = record.read(plan.RUNS / path)["predictions"]["test"]
    _, expected = record.decode_predictions(packed)
    found = fer_jax.load(name).predict(np.asarray(images)[..., 0])
    np.testing.assert_allclose(found, expected, atol=atol)
    assert np.sum(found.argmax(axis=1) != expected.argmax(axis=1)) <= differ
