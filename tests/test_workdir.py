import errno
import fcntl
import json
import logging
import os

import pytest

from fer_jax.errors import WorkdirError
from fer_jax.runs import workdir

ROW = {"epoch": 1, "valid/accuracy": 0.5, "train_s": 1.0}


@pytest.fixture
def full(monkeypatch):
    """A disk without a byte left, as `fsync` meets it."""

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


def test_a_folder_is_held_by_one(tmp_path):
    with (
        workdir.locked(tmp_path / "run"),
        pytest.raises(WorkdirError, match="another run is using"),
        workdir.locked(tmp_path / "run"),
    ):
        pass
    with workdir.locked(tmp_path / "run"):  # free again
        pass


@pytest.mark.parametrize("reason", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_a_run_goes_on_with_a_line(tmp_path, monkeypatch, caplog, reason):
    def fail(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", fail)
    with workdir.locked(tmp_path):
        pass
    (message,) = caplog.messages
    assert f"{tmp_path} cannot be locked ({os.strerror(reason)})" in message


@pytest.mark.parametrize("reason", [errno.EWOULDBLOCK, errno.EACCES])
def test_what_says_that_another_has_the_lock_is_taken_for_that(tmp_path, monkeypatch, reason):
    def fail(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(WorkdirError, match="another run is using"), workdir.locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            WorkdirError,
            match=r"cannot write .*run: a file stands where a folder should; .*--workdir=PATH",
        ),
        workdir.locked(tmp_path / "file" / "run"),
    ):
        pass


def test_text_is_written_whole_in_utf8(tmp_path):
    path = tmp_path / "new" / "a.txt"
    workdir.write_text(path, "0.5 ± 0.1\n")
    assert path.read_bytes() == "0.5 ± 0.1\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path, full):
    path = tmp_path / "results.json"
    path.write_text("1\n")
    with pytest.raises(
        WorkdirError,
        match=r"results.json: No space left .* \(5 bytes are needed, [\d,]+ are free\)",
    ):
        workdir.write_json(path, 1234)
    assert path.read_text() == "1\n"
    assert os.listdir(tmp_path) == ["results.json"]


def test_json_that_cannot_be_read_is_named(tmp_path):
    assert workdir.read_json(tmp_path / "a.json") is None
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(WorkdirError, match=r"a.json is not JSON"):
        workdir.read_json(tmp_path / "a.json")
    with pytest.raises(WorkdirError, match=r"cannot read .*: Is a directory"):
        workdir.read_json(tmp_path)


def test_the_log_has_a_line_an_epoch_and_tensorboard_a_point(tmp_path):
    log = workdir.Log(tmp_path, [ROW])  # an epoch is known
    log.add(ROW | {"epoch": 2, "valid/accuracy": 0.6})
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    (events,) = (tmp_path / "tensorboard").iterdir()
    data = events.read_bytes()
    assert b"brain.Event:2" in data
    assert data.count(b"valid/accuracy") == 1
    assert b"train_s" not in data


def test_a_full_disk_costs_tensorboard_and_a_line(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "fer_jax")
    log = workdir.Log(tmp_path, [])

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    log.add(ROW)
    log.add(ROW | {"epoch": 2})
    log.close()
    (message,) = caplog.messages
    assert "tensorboard: No space left on device" in message
    assert message.endswith("the run goes on without TensorBoard")
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
