import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import arrays_of, assert_close, stop_after, tiny_config

from fer_jax import optim, predict, steps, train
from fer_jax.machine import devices, distributed
from fer_jax.models import create_model
from fer_jax.runs import checkpoint, record
from fer_jax.state import create_state

pytestmark = pytest.mark.usefixtures("standard_promotion")

PROGRAM = Path(__file__).with_name("process_run.py")


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    for name in ("learning_curves", "confusion_matrix"):
        monkeypatch.setattr(record.plots, name, lambda *_: None)


def params_of(folder):
    """Returns the parameters of the newest checkpoint, as host arrays."""
    return arrays_of(folder)["params"]


def scan(monkeypatch):
    """Runs epochs and evaluation as one program each, as on an accelerator."""
    monkeypatch.setattr(steps, "is_scanned", lambda mesh: True)
    monkeypatch.setattr(predict, "is_scanned", lambda mesh: True)


def losses(results):
    return [row["valid/loss"] for row in results["history"]]


@pytest.fixture(scope="module")
def one_device(data_dir, tmp_path_factory):
    """A run of two epochs on one device: (parameters, record)."""
    from fer_jax import config as config_lib

    folder = tmp_path_factory.mktemp("one_device")
    with jax.numpy_dtype_promotion("standard"):
        results = train.train_and_evaluate(tiny_config(config_lib.get_config(), data_dir), folder)
    return params_of(folder), results


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8])
def test_epochs_scanned_as_on_an_accelerator_train_the_same(
    config, one_device, count, tmp_path, monkeypatch
):
    scan(monkeypatch)
    config.train.devices = count
    results = train.train_and_evaluate(config, tmp_path)
    assert_close(one_device[0], params_of(tmp_path))
    assert losses(results) == pytest.approx(losses(one_device[1]), rel=1e-4)
    for split, found in results["metrics"].items():
        assert found["confusion"] == one_device[1]["metrics"][split]["confusion"]


@pytest.mark.slow
def test_a_run_interrupted_within_an_epoch_goes_on_scanned(
    config, one_device, tmp_path, monkeypatch
):
    with pytest.raises(train.Interrupted):
        train.train_and_evaluate(config, tmp_path, stop_after(6))
    scan(monkeypatch)
    results = train.train_and_evaluate(config, tmp_path)
    assert results["resumed_at"] == [6]
    assert_close(one_device[0], params_of(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8])
def test_a_checkpoint_of_two_devices_goes_on_with_one_or_eight(config, one_device, count, tmp_path):
    config.train.devices = 2
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    config.train.devices = count
    config.train.epochs = 2
    assert train.train_and_evaluate(config, tmp_path)["devices"] == count
    assert_close(one_device[0], params_of(tmp_path))


def test_no_step_of_an_epoch_asks_the_host(config, dataset):
    mesh = devices.create_mesh(1, 16)
    model = create_model(config.model, axis_name="batch")
    tx = optim.create_optimizer(config, 4)
    state = jax.eval_shape(lambda: create_state(model, tx, 0))
    device_step = steps.make_device_step(model, tx, config, 4)
    epoch = steps.make_resident_epoch(device_step, mesh, 16, 4)
    images, labels = (
        jax.ShapeDtypeStruct(s, d) for s, d in (((70, 48, 48, 1), np.uint8), ((70,), np.int32))
    )
    lowered = epoch.lower(state, images, labels, jax.ShapeDtypeStruct((), np.int32))
    text = lowered.as_text()
    assert "callback" not in text
    assert text.count("stablehlo.while") >= 1
    donated = text.count("tf.aliasing_output") + text.count("jax.buffer_donor")
    assert donated == len(jax.tree.leaves(state))


def test_the_nearest_batches_that_divide_are_named():
    with pytest.raises(ValueError, match=r"100 does not divide over 8 .*1, 2, 4, 5.*96, 104"):
        devices.choose_count(8, 100, 8, "gpu", 0)
    with pytest.raises(ValueError, match=r"batch sizes that 8 devices divide: 8$"):
        devices.choose_count(8, 3, 8, "gpu", 0)


@pytest.mark.parametrize(
    ("platform", "parameters", "count"),
    [
        ("cpu", 20_875_247, 2),  # Xception
        ("cpu", 23_319_239, 1),  # AlexNet: each device would update all of them
        ("gpu", 56_883_015, 2),
    ],
)
def test_a_network_of_many_parameters_keeps_one_cpu_device(platform, parameters, count):
    assert devices.choose_count(0, 96, 2, platform, parameters) == count
    assert devices.choose_count(2, 96, 2, platform, parameters) == 2  # asked for, done


@pytest.mark.parametrize("given", [("a:1", None, None), (None, 2, 0), ("a:1", 2, None)])
def test_half_an_address_is_refused(given):
    with pytest.raises(ValueError, match="give all three to every process"):
        distributed.initialize(*given)


def test_a_process_id_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"--process_id is 2.* between 0 and 1"):
        distributed.initialize("localhost:1", 2, 2)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, False),
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
    ],
)
def test_other_processes_are_found_from_the_clusters_environment(monkeypatch, environment, found):
    for name in distributed._PROCESS_COUNTS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append(a))
    distributed.initialize(None, None, None)
    assert calls == [()] * found


def test_alone_a_process_is_the_first_and_calls_straight():
    assert distributed.is_first()
    assert distributed.on_first(max)(3, 5) == 5
    assert distributed.largest(15) == 15


# ------------------------------------------------------------------------------ real processes


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start(count, processes, data_dir, folders, kind, epochs, environment, teachers=()):
    """Starts the processes; `count` devices in each, `folders` one for each."""
    address = f"localhost:{free_port()}"
    common = [str(count), str(data_dir)]
    return [
        subprocess.Popen(
            [
                sys.executable,
                PROGRAM,
                address,
                str(processes),
                str(i),
                *common,
                folder,
                kind,
                epochs,
                *teachers,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"JAX_PLATFORMS": "cpu"},
        )
        for i, folder in enumerate(folders)
    ]


def finish(started):
    """Returns [(status, output, errors)]; no process outlives this."""
    try:
        outputs = [process.communicate(timeout=150) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, *o) for p, o in zip(started, outputs, strict=True)]


@pytest.mark.slow
def test_a_teacher_is_asked_by_the_first_process_alone(
    config, data_dir, tmp_path, clean_environment
):
    teacher = tmp_path / "teacher"
    assert "train" not in train.train_and_evaluate(config, teacher)["predictions"]
    folders = [tmp_path / "first", tmp_path / "second"]
    started = start(1, 2, data_dir, folders, "resident", "1", clean_environment, [teacher])
    ended = finish(started)
    assert [status for status, *_ in ended] == [0, 0], ended
    assert (folders[0] / "soft_labels.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("resident", 1), ("stream", 2), ("scan", 2)])
def test_two_processes_train_like_one_device_and_the_first_alone_writes(
    kind, count, config, one_device, data_dir, tmp_path, clean_environment
):
    folders = [tmp_path / "first", tmp_path / "second"]
    ended = finish(start(count, 2, data_dir, folders, kind, "2", clean_environment))
    assert [status for status, *_ in ended] == [0, 0], ended
    said = [output.splitlines()[-1] for _, output, _ in ended]
    assert said[0] == said[1]  # both know the result
    assert said[0].startswith("accuracy")
    assert_close(one_device[0], params_of(folders[0]))
    results = json.loads((folders[0] / "results.json").read_text())
    assert results["devices"] == 2 * count
    assert losses(results) == pytest.approx(losses(one_device[1]), rel=1e-4)
    assert results["metrics"]["test"]["count"] == 23
    assert not folders[1].exists()
    assert "epoch" not in ended[1][2]  # nor does the second report progress
    # Its checkpoint goes on in one process, and that run's again in two.
    config.train.epochs = 3
    config.train.devices = 8
    longer = train.train_and_evaluate(config, folders[0])
    assert longer["epochs_run"] == 3
    assert longer["resumed_at"] == [8]


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_two(
    config, one_device, data_dir, tmp_path, clean_environment
):
    config.train.epochs = 1
    train.train_and_evaluate(config, tmp_path)
    folders = [tmp_path, tmp_path / "nothing"]
    ended = finish(start(1, 2, data_dir, folders, "resident", "2", clean_environment))
    assert [status for status, *_ in ended] == [0, 0], ended
    assert_close(one_device[0], params_of(tmp_path))


@pytest.mark.slow
def test_what_the_first_process_meets_ends_the_others_too(data_dir, tmp_path, clean_environment):
    from fer_jax.runs import workdir

    folders = [tmp_path, tmp_path / "other"]
    with workdir.locked(tmp_path):
        ended = finish(start(1, 2, data_dir, folders, "resident", "1", clean_environment))
    for status, _, errors in ended:
        assert status != 0
        assert "another run is using" in errors


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_end_of_the_epoch(
    config, data_dir, tmp_path, clean_environment
):
    folders = [tmp_path / "first", tmp_path / "second"]
    started = start(1, 2, data_dir, folders, "resident", "100000", clean_environment)
    log = folders[0] / "log.jsonl"
    while not (log.exists() and log.read_text()):
        assert all(process.poll() is None for process in started)
    os.kill(started[1].pid, signal.SIGTERM)
    ended = finish(started)
    for status, _, errors in ended:
        assert status != 0
        assert "Stopped by SIGTERM at step" in errors
    assert checkpoint.read_progress(folders[0])["history"]
