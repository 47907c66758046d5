import json
import logging
import os
import runpy
import signal
import subprocess
import sys

import pytest

from fer_jax import config as config_lib
from fer_jax.runs import workdir
from fer_jax.runs.stop import StopRequest
from fer_jax.study import plan as study

STUDY = """
from fer_jax.config import get_config as default_config
from fer_jax.study.design import Study

def get_config():
    config = default_config()
    config.experiment = "mini"
    config.data.name = "synthetic_faces"
    config.data.pipeline = "resident"
    config.train.epochs = 1
    config.train.batch_size = 16
    config.train.devices = 1
    return config

def get_study():
    return Study(get_config(), {"model.dropout": (0.0, 0.2, 0.5), "train.epochs": (1, 2)}, seeds=2)
"""


def names(runs):
    return [(run.experiment, run.seed) for run in runs]


def test_the_runs_of_one_seed_come_before_those_of_the_next():
    runs = study.plan(["arch02_bs96", "arch03"], 2, "0/1")
    assert names(runs) == [(name, s) for s in (0, 1) for name in ("arch02_bs96", "arch03")]


def test_what_has_a_record_is_done(tmp_path):
    (tmp_path / "arch03_seed0.json").write_text("{}")
    runs = study.plan(["arch02_bs96", "arch03"], 2, "0/1", folder=tmp_path)
    assert [run.done for run in runs] == [False, True, False, False]


@pytest.mark.parametrize("experiments", [["arch01", "arch02_bs96", "arch03"], ["arch01", "arch03"]])
def test_shards_are_disjoint_and_cover_the_plan(experiments):
    whole = names(study.plan(experiments, 4, "0/1"))
    parts = [names(study.plan(experiments, 4, f"{i}/2")) for i in (0, 1)]
    assert sorted(parts[0] + parts[1]) == sorted(whole)
    assert not set(parts[0]) & set(parts[1])
    for name in experiments:  # each part has as much of the long and of the short ones
        assert [sum(n == name for n, _ in part) for part in parts] == [2, 2]


@pytest.mark.parametrize("shard", ["2/2", "-1/2", "1", "a/b", "0/0"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(ValueError, match=r"--shard is .* i/n"):
        study.plan(["arch01"], 1, shard)


def test_an_unknown_experiment_is_refused_with_those_there():
    with pytest.raises(ValueError, match=r"no experiment 'arch04'; there are .*arch01"):
        study.plan(["arch04"], 1, "0/1")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "no field --override=train.epoch; near it: --override=train.epochs"),
        ("train.epochs", "it must be field=value"),
    ],
)
def test_an_override_that_is_none_is_refused(override, message):
    with pytest.raises(ValueError, match=message):
        study.plan(["arch01"], 1, "0/1", [override])


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "mini.py"
    path.write_text(STUDY)
    return path


def test_a_study_file_gives_named_runs_and_their_flags(study_file, tmp_path):
    runs = study.plan_study(study_file, None, "0/1", ["train.devices=1"], tmp_path)
    one_seed = ["mini/base", "mini/dropout=0", "mini/dropout=0.5", "mini/epochs=2"]
    assert names(runs) == [(name, seed) for seed in (0, 1) for name in one_seed]
    assert runs[-1].record == tmp_path / "mini" / "epochs=2_seed1.json"
    assert runs[-1].flags == (
        f"--config={study_file}",
        "--config.experiment=mini/epochs=2",
        "--config.seed=1",
        "--config.train.epochs=2",
        "--config.train.devices=1",
    )
    assert runs[-1].levels == {"dropout": "0.2", "epochs": "2"}
    assert len(study.plan_study(study_file, 3, "0/1", results=tmp_path)) == 12


@pytest.fixture
def launched(monkeypatch, tmp_path, caplog):
    """Replaces training by writing a record; `dropout=0` fails, `epochs=2` is interrupted."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "fer_jax")
    calls = []

    def launch(run, stop):
        calls.append(run.experiment)
        if run.experiment == "mini/dropout=0":
            return 1
        if run.experiment == "mini/epochs=2":
            return 128 + signal.SIGINT
        folder = workdir.default_workdir(run.experiment, run.seed)
        config = runpy.run_path(run.flags[0].removeprefix("--config="))["get_config"]()
        with config.unlocked():
            for flag in run.flags[1:]:
                field, _, text = flag.removeprefix("--config.").partition("=")
                value = config_lib.parse_text(field, text)
                config.update_from_flattened_dict({field: value})
        config = config.to_dict()
        record = {"seed": run.seed, "config": config, "predictions": {"test": "long"}}
        workdir.write_json(folder / "results.json", record)
        return 0

    monkeypatch.setattr(study, "_launch", launch)
    return calls


def test_a_failure_does_not_stop_the_others_and_is_listed(launched, study_file, tmp_path, caplog):
    runs = study.plan_study(study_file, 1, "0/1", results=tmp_path)[:3]
    assert study.run(runs) == 1
    assert launched == ["mini/base", "mini/dropout=0", "mini/dropout=0.5"]
    assert caplog.messages[-1] == "Failed: mini/dropout=0, seed 0"
    assert any(
        "Run 3 of 3: mini/dropout=0.5, seed 0, about 0 min left" in m for m in caplog.messages
    )
    assert [run.done for run in runs] == [True, False, True]


def test_the_same_plan_again_runs_only_what_failed(launched, study_file, tmp_path):
    runs = study.plan_study(study_file, 1, "0/1", results=tmp_path)[:3]
    study.run(runs)
    launched.clear()
    study.run(study.plan_study(study_file, 1, "0/1", results=tmp_path)[:3])
    assert launched == ["mini/dropout=0"]


def test_a_record_says_the_levels_and_leaves_out_predictions(launched, study_file, tmp_path):
    runs = study.plan_study(study_file, 1, "0/1", results=tmp_path)
    study.run(runs[2:3])
    found = json.loads(runs[2].record.read_text())
    assert found["levels"] == {"dropout": "0.5", "epochs": "1"}
    assert found["seed"] == 0
    assert "predictions" not in found


def test_an_interruption_ends_the_study(launched, study_file, tmp_path, caplog):
    runs = study.plan_study(study_file, None, "0/1", results=tmp_path)[3:]
    assert study.run(runs) == 130
    assert launched == ["mini/epochs=2"]
    assert "the same command goes on" in caplog.messages[-1]


def test_a_record_of_another_configuration_is_not_taken_for_done(launched, study_file, tmp_path):
    study.run(study.plan_study(study_file, 1, "0/1", results=tmp_path)[:1])
    study_file.write_text(STUDY.replace("config.train.epochs = 1", "config.train.epochs = 3"))
    with pytest.raises(ValueError, match=r"base_seed0\.json .* \(train\.epochs: 1 -> 3\)"):
        study.plan_study(study_file, 1, "0/1", results=tmp_path)
    study.plan_study(study_file, 1, "0/1", ["train.epochs=1"], tmp_path)  # what the record says


def test_sigterm_to_the_study_alone_reaches_the_run(monkeypatch, tmp_path):
    started = tmp_path / "started"
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"pathlib.Path({str(started)!r}).touch()\n"
        "time.sleep(60)"
    )
    (tmp_path / "launch.py").write_text(code)
    monkeypatch.setattr(study, "ROOT", tmp_path)
    monkeypatch.setattr(study, "_GRACE_S", 0.1)
    with StopRequest() as stop:

        def wait(process, timeout=None):
            if started.exists() and stop.signum is None:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(process, timeout)

        original = subprocess.Popen.wait
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        assert study._launch(study.Run("x", 0, tmp_path / "x.json", ()), stop) == 143


@pytest.mark.slow
def test_a_study_trains_skips_and_keeps_records(study_file, data_dir, tmp_path, clean_environment):
    """In processes of their own, on a few drawn faces."""
    command = [
        sys.executable,
        "-c",
        "import sys; from pathlib import Path; from fer_jax import study\n"
        "results = Path(sys.argv[1])\n"
        "runs = study.plan_study(Path(sys.argv[2]), 1, '0/1', sys.argv[3:], results)[:2]\n"
        "sys.exit(study.run(runs))",
        str(tmp_path / "results"),
        str(study_file),
        f"data.data_dir={data_dir}",
    ]
    options = {"env": clean_environment, "cwd": tmp_path, "capture_output": True, "text": True}
    first = subprocess.run(command, **options)
    assert first.returncode == 0, first.stderr
    records = sorted(path.name for path in (tmp_path / "results" / "mini").iterdir())
    assert records == ["base_seed0.json", "dropout=0_seed0.json"]
    found = json.loads((tmp_path / "results" / "mini" / records[1]).read_text())
    assert found["config"]["model"]["dropout"] == 0.0
    assert found["seconds"]["train_cpu"] > 0
    again = subprocess.run(command, **options)
    assert again.returncode == 0
    assert "epoch" not in again.stderr
