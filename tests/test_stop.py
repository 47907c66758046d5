"""Signals that ask to stop, in processes of their own, which are busy outside Python."""

import os
import signal
import subprocess
import sys

import pytest

from fer_jax.runs import stop

# Hashing leaves Python for minutes: no handler of a signal runs meanwhile.
BUSY = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
READY = "print('ready', flush=True)"


@pytest.fixture
def start():
    """Returns a function that starts a program and waits until it says that it is ready."""
    processes = []

    def start(code, prefix=()):
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", f"from fer_jax.runs import stop\n{code}\n{BUSY}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signum", stop.SIGNALS)
def test_before_there_is_anything_to_save_a_signal_ends_in_a_line(start, signum):
    process = start(f"stop.end_at_once()\n{READY}")
    process.send_signal(signum)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + signum
    assert error.strip().startswith(f"Stopped by {signal.Signals(signum).name}: nothing")
    assert len(error.strip().splitlines()) == 1


def test_the_first_signal_is_answered_at_once_and_a_second_ctrl_c_ends_in_a_line(start):
    process = start(f"stop.end_at_once()\nstop.StopRequest().__enter__()\n{READY}")
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline() == (
        "SIGTERM: stopping after this step; once more stops at once\n"
    )
    process.send_signal(signal.SIGTERM)  # launchers repeat it: the run is saving
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert error == "\nStopped by SIGINT: what was saved last is kept\n"


def test_a_run_that_ignores_hangups_goes_on_doing_so(start):
    process = start(
        f"stop.end_at_once()\n{READY}",
        prefix=["sh", "-c", "trap '' HUP; exec \"$@\"", "-"],  # as nohup does
    )
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)


@pytest.mark.parametrize("signum", stop.SIGNALS)
def test_a_request_marks_the_signal_and_restores_what_listened_before(signum, capfd):
    before = {s: signal.getsignal(s) for s in stop.SIGNALS}
    with stop.StopRequest() as request:
        os.kill(os.getpid(), signum)
        assert request.signum == signum
    assert {s: signal.getsignal(s) for s in stop.SIGNALS} == before
    assert signal.set_wakeup_fd(-1) == -1
