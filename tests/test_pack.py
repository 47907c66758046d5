import json
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import tiny_config

import fer_jax
from fer_jax import config as config_lib
from fer_jax import seal, train
from fer_jax.apps import cli
from fer_jax.data import arrays, prepare
from fer_jax.errors import CheckpointError, RecordError, TrainingError
from fer_jax.report import records
from fer_jax.runs import checkpoint, record
from fer_jax.study import plan
from fer_jax.weights import IN_REPOSITORY, card, store
from fer_jax.weights import pack as pack_module
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
    np.testing.assert_allclose(ours, theirs, atol=1e-3 if "float16" in metadata["kernels"] else 0)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert text.startswith("# mine\n")
    assert f"| {found['metrics']['test']['accuracy']:.4f} |" in text
    assert metadata["sha256"] in text
    assert "$" not in text


def test_kernels_become_float16_as_long_as_no_class_moves():
    random = np.random.default_rng(0)
    sizes = {"a": (3, 3), "b": (9, 9), "c": (8, 8), "d": (2, 2), "bias": (7,)}
    arrays = {name: random.normal(size=size).astype(np.float32) for name, size in sizes.items()}

    def classify(variables):  # c decides, and so do b and d together
        moved = {n for n in "abcd" if not np.array_equal(variables["params"][n], arrays[n])}
        return {"valid": np.array([0, "c" in moved or {"b", "d"} <= moved]), "test": np.array([3])}

    variables = {"params": arrays}
    half = pack_module._halvable(variables, classify, classify(variables))
    assert half == ["params/b", "params/a"]


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


def changed(run, folder, change):
    """Makes a folder with the run's record, changed as if it had been written so."""
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))
    del found[seal.KEY]
    change(found)
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(seal.add(found)), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda found: [found[field].pop("test") for field in ("metrics", "predictions")],
            "never opened test, on which a card says",
        ),
        (lambda found: found.update(members=[]), "is an ensemble .*; pack its members"),
    ],
)
def test_a_run_without_test_or_weights_is_refused_in_a_line(run, tmp_path, capsys, change, said):
    folder = changed(run, tmp_path / "run", change)
    with pytest.raises(TrainingError, match=said):
        pack(folder, tmp_path / "out")
    assert cli.main(["pack", str(folder), f"--out={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("prepared")
def test_another_checkpoint_than_the_records_is_refused(run, tmp_path, monkeypatch):
    load = checkpoint.load_variables

    def negated(*arguments):
        variables = load(*arguments)
        variables["params"]["logits"] = jax.tree.map(lambda x: -x, variables["params"]["logits"])
        return variables

    monkeypatch.setattr(checkpoint, "load_variables", negated)
    with pytest.raises(CheckpointError, match=r"not the one of its record: it gives \d+ of \d+ im"):
        pack(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def shifts(run):
    """Returns a class and, ascending, how much its logit must grow for images of valid to get it.

    Only of images whose first two probabilities in the record differ clearly. The class is the one
    with most between the first two shifts.
    """
    _, found = record.decode_predictions(record.read(run / "results.json")["predictions"]["valid"])
    logits = np.log(np.maximum(found, 2.0**-24))
    missing = logits.max(axis=1, keepdims=True) - logits
    second, first = np.sort(found, axis=1)[:, -2:].T
    missing = np.sort(np.where(missing > 0, missing, 99)[first - second > 0.01], axis=0)
    number = int(np.argmax(missing[1] - missing[0]))
    return number, missing[:, number]


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("moved", [False, True])
def test_a_checkpoint_that_moves_a_single_clear_image_is_refused(run, tmp_path, monkeypatch, moved):
    load = checkpoint.load_variables
    number, shift = shifts(run)

    def perturbed(*arguments):
        variables = load(*arguments)
        by = (shift[0] + shift[1]) / 2 if moved else shift[0] / 2
        variables["params"]["logits"]["bias"][number] += by
        return variables

    monkeypatch.setattr(checkpoint, "load_variables", perturbed)
    if not moved:
        pack(run, tmp_path / "out")
        return
    with pytest.raises(CheckpointError, match=r"it gives 1 of \d+ images of valid"):
        pack(run, tmp_path / "out")


@pytest.mark.usefixtures("prepared")
def test_nothing_is_written_where_no_card_can_be(run, tmp_path, monkeypatch):
    def fail(*arguments):
        raise KeyError("recall")

    monkeypatch.setattr(card, "text", fail)
    with pytest.raises(KeyError):
        pack(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def metadata(run):
    """What a card of the run is made from; tests may change it."""
    found = json.loads((run / "results.json").read_text(encoding="utf-8"))
    found["git"] = {"commit": "0123456789abcdef", "modified": False}
    found["device"]["platform"] = "cpu"
    return {
        "classes": list(fer_jax.CLASSES),
        "model": found["config"]["model"],
        "record": found,
        "kernels": "float32",
        "sha256": "ab",
    }


NET = Path("anywhere", "net")


def test_a_card_says_what_it_is_of(metadata):
    found = metadata["record"]
    found["dataset"]["name"] = "fer2013"
    found["calibration"] = {"error": 0.125, "temperature": 1.5, "error_scaled": 0.0625}
    text = card.text(NET, metadata)
    assert text.startswith("# net\n")
    assert "test (PrivateTest)" in text
    assert "error on test: 0.125; with a temperature of 1.50, fitted on valid, 0.062." in text
    assert "search engine" in text
    found["dataset"]["name"] = "folder"
    text = card.text(NET, metadata)
    assert "search engine" not in text
    assert "--config.data.source=PATH" in text


def test_a_card_states_a_licence_of_shipped_weights_alone(metadata):
    assert "licence" not in card.text(NET, metadata)
    assert "repository's licence (MIT)" in card.text(IN_REPOSITORY / "net", metadata)


def test_a_card_says_how_to_make_the_weights_again(metadata):
    found = metadata["record"]
    found |= {"experiment": "compact", "seed": 3}
    found["config"] = config_lib.flatten(records.experiment_config("compact")) | {"seed": 3}
    text = card.text(NET, metadata)
    assert "launch.py --config=experiments/compact.py --config.seed=3\n" in text
    assert "commit `0123456789ab`." in text
    assert "to the same bits" in text
    found["config"] |= {"train.epochs": 2, "train.devices": 1}
    flags = "--config.train.epochs=2 --config.train.devices=1 --config.seed=3"
    assert f"launch.py --config=experiments/compact.py {flags}\n" in card.text(NET, metadata)
    found["git"]["modified"] = True
    text = card.text(NET, metadata)
    assert "commit `0123456789ab` with changes that are not in it." in text
    assert "same bits" not in text


def arguments(text):
    """Returns what a card gives launch.py to make the weights again."""
    (line,) = [line for line in text.splitlines() if "launch.py" in line]
    return shlex.split(line.partition("launch.py")[2])


@pytest.mark.parametrize(
    ("experiment", "fields", "expected"),
    [
        (
            "compact",
            {
                "train.start_from": "arch02_seed1",
                "train.teachers": ["a_seed0", "b c"],
                "train.distill_weight": 0.5,
            },
            [
                "--config.train.start_from=PATH/arch02_seed1",
                '--config.train.teachers=("PATH/a_seed0", "PATH/b c")',
                "--config.train.distill_weight=0.5",
            ],
        ),
        ("compact", {"train.teachers": ["a"]}, ['--config.train.teachers=("PATH/a",)']),
        ("compact_distilled", {}, []),  # its file says where its teachers are
        ("compact_distilled", {"train.teachers": []}, ["--config.train.teachers=()"]),
    ],
)
def test_a_cards_command_names_other_runs_below_a_path(
    metadata, monkeypatch, experiment, fields, expected
):
    monkeypatch.chdir(plan.ROOT)
    found = metadata["record"]
    config = records.experiment_config(experiment)
    found |= {"experiment": experiment, "seed": 3}
    found["config"] = config_lib.flatten(record.describe_config(config)) | fields
    flags = arguments(card.text(NET, metadata))
    assert flags == [f"--config=experiments/{experiment}.py", *expected, "--config.seed=3"]
    config_lib.check_arguments(flags)


def test_a_cards_command_leaves_out_what_has_no_value(metadata, monkeypatch):
    monkeypatch.chdir(plan.ROOT)
    found = metadata["record"]
    base = records.experiment_config("compact")
    assert base is not None
    with base.unlocked():
        base.train.start_from, base.train.fold = "a", "1/5"
    monkeypatch.setattr(records, "experiment_config", lambda _: base)
    found |= {"experiment": "compact", "seed": 3}
    found["config"] = config_lib.flatten(base) | {"train.start_from": None, "train.fold": None}
    flags = arguments(card.text(NET, metadata))
    assert flags == ["--config=experiments/compact.py", "--config.seed=3"]
    config_lib.check_arguments(flags)


def test_a_card_of_a_run_without_an_experiment_file_names_every_field(metadata):
    found = metadata["record"]
    found |= {"experiment": "no such", "seed": 0}
    fields = config_lib.flatten(config_lib.get_config())
    found["config"] = fields | {"experiment": "no such", "train.epochs": 2}
    expected = "--config=fer_jax/config.py '--config.experiment=no such' --config.train.epochs=2 "
    assert expected in card.text(NET, metadata)


def test_a_cards_classes_and_splits_do_not_depend_on_how_the_record_is_sorted(metadata):
    text = card.text(NET, metadata)
    test = metadata["record"]["metrics"]["test"]
    for true, name in enumerate(metadata["classes"]):
        counts = test["confusion"][true]
        recall = f"{counts[true] / sum(counts):.2f}" if sum(counts) else "-"
        assert f"\n| {name} | {sum(counts)} | {recall} | " in text
    assert card.text(NET, json.loads(json.dumps(metadata, sort_keys=True))) == text


def test_shipped_cards_are_what_python_makes():
    """`python -m fer_jax.weights.card` writes them."""
    folders = [path for path in IN_REPOSITORY.iterdir() if path.is_dir()]
    assert folders
    for folder in folders:
        metadata = json.loads((folder / store.METADATA).read_text(encoding="utf-8"))
        assert (folder / "README.md").read_text(encoding="utf-8") == card.text(folder, metadata)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arch02", "arch03"])  # whose runs are in no table
def test_shipped_weights_have_the_accuracy_on_their_card(name):
    """Needs the prepared data set."""
    test = _prepared().splits["test"]
    metadata = json.loads((IN_REPOSITORY / name / store.METADATA).read_text(encoding="utf-8"))
    found = fer_jax.load(name).predict(np.asarray(test.images)[..., 0])
    accuracy = np.mean(found.argmax(axis=1) == test.labels)
    assert accuracy == pytest.approx(
        metadata["record"]["metrics"]["test"]["accuracy"], abs=1.5 / len(found)
    )


def _prepared():
    folders = sorted((prepare.default_data_dir() / "fer2013").glob("*/1.*/arrays"))
    if not folders:
        pytest.skip("fer2013 is not prepared here")
    return arrays.open_arrays(folders[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path", "differ", "atol"),
    [
        # Predictions in a record are float16, where two may be equal, and so are most kernels.
        ("compact", "compact_seed0.json", 0, 1e-3),
        ("compact_distilled", "compact_distilled_light_seed0.json", 1, 2e-3),
        # Its record's are from a GPU, which rounded factors to TensorFloat-32.
        ("arch03_strong", "nvidia_h100/arch03_strong_seed1.json", 4, 5e-3),
    ],
)
def test_shipped_weights_say_of_test_what_their_record_says(name, path, differ, atol):
    """Needs the prepared data set."""
    images = _prepared().splits["test"].images
    packed = record.read(plan.RUNS / path)["predictions"]["test"]
    _, expected = record.decode_predictions(packed)
    found = fer_jax.load(name).predict(np.asarray(images)[..., 0])
    np.testing.assert_allclose(found, expected, atol=atol)
    assert np.sum(found.argmax(axis=1) != expected.argmax(axis=1)) <= differ
