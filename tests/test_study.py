import dataclasses
import functools
import json
import logging
import os
import signal
import subprocess
import sys

import pytest

from fer_jax.errors import ConfigError, RecordError
from fer_jax.runs import record, workdir
from fer_jax.runs.stop import StopRequest
from fer_jax.study import execute
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


def a_record(run, **changes):
    """Returns what a run would leave, of one epoch."""
    numbers = {"count": 4, "loss": 1.5}
    curves = {f"{s}/{n}": 0.5 for s in ("train_running", "valid") for n in ("loss", "accuracy")}
    return {
        "experiment": run.experiment,
        "seed": run.seed,
        "config": nested(run.fields),
        "dataset": {"name": "fer2013", "count": {"train": 4, "valid": 4, "test": 4}},
        "device": {"platform": "cpu", "kind": "a CPU", "count": 1, "cpu_cores": 2},
        "history": [{"epoch": 1} | curves],
        "epochs_run": 1,
        "best_epoch": 1,
        "test_evaluations": 1,
        "seconds": {"train": 60.0},
        "metrics": {
            "valid": numbers | {"accuracy": 0.5 + 0.1 * run.seed},
            "test": numbers | {"accuracy": 0.4},
        },
    } | changes


def nested(fields):
    """Returns a configuration of fields by path, as a record holds it."""
    config = {}
    for path, value in fields.items():
        *sections, name = path.split(".")
        functools.reduce(lambda found, key: found.setdefault(key, {}), sections, config)[name] = (
            value
        )
    return config


def states(runs):
    return [run.record is not None for run in runs]


def test_what_has_a_whole_record_of_its_configuration_is_done(tmp_path):
    runs = study.plan(["arch02_bs96", "arch03"], 2, "0/1", results=tmp_path)
    assert states(runs) == [False] * 4
    workdir.write_json(runs[1].path, a_record(runs[1]))
    again = study.plan(["arch02_bs96", "arch03"], 2, "0/1", results=tmp_path)
    assert states(again) == [False, True, False, False]


@pytest.mark.parametrize("text", ["{}", "[]", "", None])
def test_a_record_that_is_not_whole_does_not_count(tmp_path, text, caplog):
    run = study.plan(["arch03"], 1, "0/1", results=tmp_path)[0]
    whole = workdir.to_json(a_record(run))
    workdir.write_text(run.path, whole[:500] if text is None else text)
    assert states(study.plan(["arch03"], 1, "0/1", results=tmp_path)) == [False]
    assert "is no record of a whole run" in caplog.text


def test_a_record_of_fewer_epochs_than_its_history_says_does_not_count(tmp_path):
    run = study.plan(["arch03"], 1, "0/1", results=tmp_path)[0]
    workdir.write_json(run.path, a_record(run, epochs_run=2))
    assert states(study.plan(["arch03"], 1, "0/1", results=tmp_path)) == [False]


def test_a_record_of_another_length_is_to_do_and_one_of_other_numbers_is_refused(tmp_path):
    run = study.plan(["arch03"], 1, "0/1", results=tmp_path)[0]
    shorter = a_record(run, config=nested(run.fields | {"train.epochs": 1}))
    workdir.write_json(run.path, shorter)
    assert states(study.plan(["arch03"], 1, "0/1", results=tmp_path)) == [False]
    other = a_record(run, config=nested(run.fields | {"train.learning_rate": 0.1}))
    workdir.write_json(run.path, other)
    with pytest.raises(RecordError, match=r"\(train.learning_rate: 0.1 -> 0.001\); move it away"):
        study.plan(["arch03"], 1, "0/1", results=tmp_path)


def test_the_records_in_the_repository_are_of_its_experiments():
    done = study.plan(["arch01", "arch02_bs96", "arch02_bs16", "arch03"], 3, "0/1")
    assert all(states(done))
    assert all(states(study.plan_study(study.ROOT / "experiments" / "factors.py", None, "0/1")))


def test_an_override_belongs_to_the_name_and_keeps_the_record_apart(tmp_path):
    plain = study.plan(["arch03"], 1, "0/1")[0]
    assert (plain.experiment, plain.path.parent) == ("arch03", study.RUNS)
    overrides = ["train.learning_rate=1e-2", "train.devices=1", "train.epochs=20"]
    run = study.plan(["arch03"], 1, "0/1", overrides)[0]
    assert run.experiment == "arch03,learning_rate=0.01"  # the others change no number
    assert run.path == study.OTHER_RESULTS / "runs" / "arch03,learning_rate=0.01_seed0.json"
    assert run.fields["train.learning_rate"] == 0.01
    assert "--config.train.devices=1" in run.flags
    assert "--config.experiment=arch03,learning_rate=0.01" in run.flags


def test_records_of_drawn_faces_stay_out_of_the_tracked_results():
    assert study.plan(["quickstart"], 1, "0/1")[0].path.parent == study.OTHER_RESULTS / "runs"
    run = study.plan(["arch03"], 1, "0/1", ["data.partial=true"])[0]
    assert run.path.is_relative_to(study.OTHER_RESULTS)


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
        ("train.epochs=many", "--override=train.epochs is 'many'; it must be a whole number"),
        ("train.epochs=0", "config.train.epochs is 0; it must lie between 1"),
        ("train.teachers=('a', b/", r"is .* it must be a path, .* or several as"),
        ("train.teachers=3", r"is '3'; it must be a path"),
        ("train.teachers={[]:1}", r"it must be a path"),
        ("seed=5", "--override=seed: the study sets it for each run"),
        ("experiment=x", "--override=experiment: the study sets it for each run"),
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
    runs = study.plan_study(study_file, None, "0/1", ["train.devices=2"], tmp_path)
    one_seed = ["mini/base", "mini/dropout=0", "mini/dropout=0.5", "mini/epochs=2"]
    assert names(runs) == [(name, seed) for seed in (0, 1) for name in one_seed]
    assert runs[-1].path == tmp_path / "mini" / "epochs=2_seed1.json"
    assert runs[-1].flags == (
        f"--config={study_file}",
        "--config.train.devices=2",
        "--config.experiment=mini/epochs=2",
        "--config.seed=1",
        "--config.train.epochs=2",
    )
    assert runs[-1].levels == {"dropout": "0.2", "epochs": "2"}
    assert len(study.plan_study(study_file, 3, "0/1", results=tmp_path)) == 12


def test_an_override_belongs_to_a_study_s_name_but_may_not_be_a_factor(study_file):
    runs = study.plan_study(study_file, 1, "0/1", ["train.batch_size=32"])
    assert names(runs)[0] == ("mini,batch_size=32/base", 0)
    folder = study.OTHER_RESULTS / "mini,batch_size=32"
    assert runs[1].path == folder / "dropout=0_seed0.json"
    assert runs[1].fields["train.batch_size"] == 32
    with pytest.raises(ConfigError, match=r"--override=train.epochs: .*mini.py varies it"):
        study.plan_study(study_file, 1, "0/1", ["train.epochs=1"])


@pytest.fixture
def launched(monkeypatch, tmp_path, caplog):
    """Replaces training by writing a record; `dropout=0` fails, `epochs=2` is interrupted."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "fer_jax")
    calls = []

    def launch(run, stop):
        calls.append(run.experiment)
        if run.experiment == "mini/dropout=0":
            return 1, "the loss is not finite"
        if run.experiment == "mini/epochs=2":
            return 128 + signal.SIGINT, ""
        folder = workdir.default_workdir(run.experiment, run.seed)
        found = a_record(run, predictions={"test": "long"})
        workdir.write_sealed(folder / "results.json", found)
        return 0, ""

    monkeypatch.setattr(execute, "_launch", launch)
    return calls


def test_a_failure_does_not_stop_the_others_and_is_listed_with_its_reason(
    launched, study_file, tmp_path, caplog, capsys
):
    runs = study.plan_study(study_file, 1, "0/1", results=tmp_path)[:3]
    assert execute.execute(runs) == 1
    assert launched == ["mini/base", "mini/dropout=0", "mini/dropout=0.5"]
    assert caplog.messages[-1] == "Failed: mini/dropout=0, seed 0: the loss is not finite"
    assert any(
        "Run 3 of 3: mini/dropout=0.5, seed 0, about 0 min left" in m for m in caplog.messages
    )
    again = study.plan_study(study_file, 1, "0/1", results=tmp_path)[:3]
    assert states(again) == [True, False, True]
    assert capsys.readouterr().out.splitlines() == [
        "experiment          done  valid            test",
        "mini/base            1/1  0.5000           0.4000",
        "mini/dropout=0       0/1  -                -",
        "mini/dropout=0.5     1/1  0.5000           0.4000",
        f"Records: {tmp_path / 'mini'}",
    ]


def test_the_same_plan_again_runs_only_what_failed(launched, study_file, tmp_path):
    execute.execute(study.plan_study(study_file, 1, "0/1", results=tmp_path)[:3])
    launched.clear()
    execute.execute(study.plan_study(study_file, 1, "0/1", results=tmp_path)[:3])
    assert launched == ["mini/dropout=0"]


@pytest.mark.parametrize(
    ("openings", "goes_on", "aside"), [(1, False, 2), (0, False, 0), (1, True, 0)]
)
def test_a_record_that_opened_test_is_kept_aside_unless_its_run_went_on(
    launched, study_file, tmp_path, openings, goes_on, aside
):
    run = study.plan_study(study_file, 1, "0/1", results=tmp_path)[0]
    folder = workdir.default_workdir(run.experiment, run.seed)
    for time in range(3):
        found = a_record(run, test_evaluations=openings)
        if not goes_on:
            found["history"][0]["valid/loss"] = 1.0 + time
        workdir.write_sealed(folder / "results.json", found)
        execute._keep_record(run)
    assert record.read(run.path)["history"] == found["history"]
    names = [path.name for path in sorted((tmp_path / "replaced").glob("*.json"))]
    assert names == ["base_seed0.json", "base_seed0_2.json"][:aside]


def test_a_record_says_the_levels_and_leaves_out_predictions(launched, study_file, tmp_path):
    runs = study.plan_study(study_file, 1, "0/1", results=tmp_path)
    execute.execute(runs[2:3])
    found = record.read(runs[2].path)
    assert found["levels"] == {"dropout": "0.5", "epochs": "1"}
    assert found["seed"] == 0
    assert "predictions" not in found


def test_an_interruption_ends_the_study(launched, study_file, tmp_path, caplog):
    runs = study.plan_study(study_file, None, "0/1", results=tmp_path)[3:]
    assert execute.execute(runs) == 130
    assert launched == ["mini/epochs=2"]
    assert "the same command goes on" in caplog.messages[-1]


def test_the_table_gives_mean_and_deviation_over_seeds_and_test_only_where_all_have_it():
    runs = study.plan(["arch03", "arch01"], 2, "0/1", ["train.momentum=0.5"])
    runs = [dataclasses.replace(run, record=a_record(run)) for run in runs]
    del runs[3].record["metrics"]["test"]
    assert execute.format_table(runs).splitlines()[1:] == [
        "arch03,momentum=0.5     2/2  0.5500 ± 0.0707  0.4000 ± 0.0000",
        "arch01,momentum=0.5     2/2  0.5500 ± 0.0707  -",
    ]


def test_a_record_of_another_configuration_is_not_taken_for_done(launched, study_file, tmp_path):
    execute.execute(study.plan_study(study_file, 1, "0/1", results=tmp_path)[:1])
    study_file.write_text(STUDY.replace("batch_size = 16", "batch_size = 32"))
    with pytest.raises(RecordError, match=r"base_seed0\.json .* \(train\.batch_size: 16 -> 32\)"):
        study.plan_study(study_file, 1, "0/1", results=tmp_path)


@pytest.fixture
def launch_program(monkeypatch, tmp_path):
    """Returns a function that runs a program in the place of `launch.py`."""

    def launch(code, stop):
        (tmp_path / "launch.py").write_text(code)
        monkeypatch.setattr(execute, "ROOT", tmp_path)
        return execute._launch(study.Run("x", 0, tmp_path / "x.json", {}, ()), stop)

    return launch


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_study_alone_reaches_the_run(monkeypatch, tmp_path, launch_program, signum):
    started = tmp_path / "started"
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"pathlib.Path({str(started)!r}).touch()\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(execute, "_GRACE_S", 0.1)
    with StopRequest() as stop:

        def wait(process, timeout=None):
            if started.exists() and stop.signum is None:
                os.kill(os.getpid(), signum)
            return original(process, timeout)

        original = subprocess.Popen.wait
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        assert launch_program(code, stop)[0] == 143


@pytest.mark.parametrize(
    ("end", "status", "reason"),
    [
        ("sys.exit('launch.py: no room')", 1, "no room"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("os.kill(os.getpid(), 9)", -9, "killed by SIGKILL"),
        ("sys.exit(3)", 3, "first"),
    ],
)
def test_the_reason_of_a_failure_is_its_last_line(launch_program, capsys, end, status, reason):
    code = f"import os, sys\nprint('first\\n', file=sys.stderr, flush=True)\n{end}"
    assert launch_program(code, StopRequest()) == (status, reason)
    assert capsys.readouterr().err.startswith("first\n")


@pytest.mark.slow
def test_a_study_trains_skips_and_keeps_records(study_file, data_dir, tmp_path, clean_environment):
    """In processes of their own, on a few drawn faces."""
    command = [
        sys.executable,
        "-c",
        "import sys; from pathlib import Path; from fer_jax.study import execute, plan\n"
        "results = Path(sys.argv[1])\n"
        "runs = plan.plan_study(Path(sys.argv[2]), 1, '0/1', sys.argv[3:], results)[:2]\n"
        "sys.exit(execute.execute(runs))",
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
    assert again.stdout.splitlines()[1].startswith("mini/base")
