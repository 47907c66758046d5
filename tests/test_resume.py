"""What a run keeps when it is killed, stopped, or when the disk is full: with real processes."""

import contextlib
import json
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, arrays_of, assert_same, without_timings

pytestmark = pytest.mark.slow

EPOCHS = 7  # of four steps

EXPERIMENT = """
from fer_jax.config import get_config as default_config

def get_config():
    config = default_config()
    config.experiment = "killed"
    config.data.name = "synthetic_faces"
    config.data.data_dir = {data_dir!r}
    config.data.pipeline = "resident"
    config.train.batch_size = 16
    config.train.epochs = {epochs}
    config.augment.flip = True
    return config
"""

KILLS = [
    *(f"step:{n}" for n in (1, 2, 3, 4, 5, 7, 9, 10, 11, 12, 14, 15, 17, 19, 21, 23, 26)),
    "save:4:0",
    "save:8:5",
    "save:12:20",
    "save:16:50",
    "save:20:100",
    "save:24:200",
]
# In the order in which a run meets them; a save comes after the step of its number.
KILLS.sort(key=lambda kill: (int(kill.split(":")[1]), kill.startswith("save")))


@pytest.fixture
def environment(clean_environment):
    return clean_environment | {"PYTHONPATH": str(ROOT)}


@pytest.fixture
def experiment(tmp_path, data_dir):
    path = tmp_path / "killed.py"
    path.write_text(EXPERIMENT.format(data_dir=str(data_dir), epochs=EPOCHS))
    return path


def killed_runs(experiment, folder, environment, *whens):
    """Returns when -> (exit status, whether there were results then), and what the runs said."""
    done = subprocess.run(
        [sys.executable, ROOT / "tests/killed_run.py", experiment, folder, *whens],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return {when: (int(status), left) for when, status, left in lines}, done.stderr


def launch(environment, *arguments, limits=()):
    prefix = ["prlimit", *limits] if limits else []
    return subprocess.Popen(
        [*prefix, sys.executable, ROOT / "launch.py", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(folder):
    """Returns all of a run that must not depend on its having been killed."""
    results = json.loads((folder / "results.json").read_text())
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "metrics": results["metrics"],
        "predictions": results["predictions"],
        "history": without_timings(results["history"]),
        "log": without_timings(rows),
        "best_epoch": results["best_epoch"],
        "test_evaluations": results["test_evaluations"],
    }


def test_a_run_killed_over_and_over_ends_as_one_never_interrupted(
    experiment, tmp_path, environment
):
    assert len(KILLS) >= 20
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    ended, errors = killed_runs(experiment, whole, environment, "never")
    assert ended == {"never": (0, "results")}, errors
    ended, errors = killed_runs(experiment, killed, environment, *KILLS, "never")
    dead = (-signal.SIGKILL, "none")
    assert ended == dict.fromkeys(KILLS, dead) | {"never": (0, "results")}, errors
    assert outcome(killed) == outcome(whole)
    assert_same(arrays_of(killed), arrays_of(whole))
    resumed = json.loads((killed / "results.json").read_text())["resumed_at"]
    assert len(resumed) > 3
    assert resumed == sorted(resumed)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_with_a_line_and_the_run_goes_on(
    signum, experiment, tmp_path, environment
):
    folder = tmp_path / "run"
    arguments = (f"--config={experiment}", f"--workdir={folder}", "--config.train.epochs=2000")
    run = launch(environment, *arguments)
    deadline = time.monotonic() + 120
    log = folder / "log.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) >= 2):
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signum)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 128 + signum
    assert f"Stopped by {signal.Signals(signum).name} at step" in errors
    assert "Traceback" not in errors
    saved = int(errors.split("at step ")[1].split(";")[0])
    again = launch(environment, *arguments[:2], f"--config.train.epochs={saved // 4 + 2}")
    output, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert f"Going on from step {saved}" in errors
    assert "results.json" in output


def test_a_second_run_on_the_folder_is_refused(experiment, tmp_path, environment):
    folder = tmp_path / "run"
    arguments = (f"--config={experiment}", f"--workdir={folder}", "--config.train.epochs=2000")
    first = launch(environment, *arguments)
    try:
        while not (folder / "checkpoints").exists():
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.05)
        second = launch(environment, *arguments)
        _, errors = second.communicate(timeout=60)
        assert second.returncode == 1
        assert "another run is using" in errors
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


@contextlib.contextmanager
def tmpfs(folder, options):
    """Mounts a file system in memory; only root may."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def one_epoch_then(experiment, folder, environment, *limits):
    """Runs an epoch, then goes on under prlimit's `limits`; returns (before, status, errors)."""
    common = (f"--config={experiment}", f"--workdir={folder}")
    first = launch(environment, *common, "--config.train.epochs=1")
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 0, errors
    before = arrays_of(folder)
    second = launch(environment, *common, "--config.train.epochs=3", limits=limits)
    _, errors = second.communicate(timeout=120)
    return before, second.returncode, errors


def assert_intact(folder, before):
    assert_same(before, arrays_of(folder, int(before["step"])))


def test_a_limit_on_file_size_is_a_clear_error(experiment, tmp_path, environment):
    folder = tmp_path / "run"

    before, status, errors = one_epoch_then(experiment, folder, environment, "--fsize=200000")
    assert status == 1, errors
    assert "could not write a checkpoint" in errors
    assert_intact(folder, before)


def test_a_full_disk_is_a_clear_error_and_keeps_the_checkpoint(experiment, tmp_path, environment):
    with tmpfs(tmp_path / "disk", "size=9m") as disk:
        before, status, errors = one_epoch_then(experiment, disk / "run", environment)
        assert status == 1, errors
        assert "could not write a checkpoint" in errors
        assert "Traceback" not in errors
        assert_intact(disk / "run", before)


def test_a_read_only_disk_is_a_clear_error(experiment, tmp_path, environment):
    with tmpfs(tmp_path / "disk", "ro") as disk:
        run = launch(environment, f"--config={experiment}", f"--workdir={disk / 'run'}")
        _, errors = run.communicate(timeout=120)
        assert run.returncode == 1
        assert f"cannot write {disk / 'run'}: Read-only file system" in errors
        assert "Traceback" not in errors
