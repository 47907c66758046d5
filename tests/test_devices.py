import importlib.util
import logging
import os
import subprocess
import sys

import pytest

from fer_jax.errors import ConfigError
from fer_jax.machine import devices, environment


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Returns a function that puts a program of that name first in the path."""

    def put(name, lines):
        path = tmp_path / name
        path.write_text("\n".join(("#!/bin/sh", *lines)))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


def test_a_gpu_is_known_by_its_driver_or_its_tool(tmp_path, program):
    nowhere = tmp_path / "nowhere"
    program("nvidia-smi", ["exit 9"])
    assert not environment.has_nvidia_gpu(nowhere)
    program("nvidia-smi", ["echo 'GPU 0: NVIDIA H100 (UUID: x)'"])
    assert environment.has_nvidia_gpu(nowhere)
    assert environment.has_nvidia_gpu(tmp_path)


@pytest.mark.parametrize(
    ("gpu", "extra", "lines"), [(True, None, 1), (True, 1, 0), (False, None, 0)]
)
def test_a_gpu_without_the_extra_is_said_in_a_line(monkeypatch, caplog, gpu, extra, lines):
    monkeypatch.setattr(environment, "has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(devices, "_platforms", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: extra)
    caplog.set_level(logging.WARNING, "fer_jax")
    assert devices.start() == "cpu"
    said = [m for m in caplog.messages if "There is an NVIDIA GPU" in m]
    assert len(said) == lines
    assert all("uv run --extra cuda12 launch.py" in message for message in said)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [{}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}])
def test_gpu_memory_is_taken_as_needed_unless_the_user_says_otherwise(chosen, tmp_path):
    code = (
        "from fer_jax.machine import devices; import os; devices.setup(); print(dict(os.environ))"
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("XLA_")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=environ | chosen | {"FER_JAX_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ("'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'" in run.stdout) == (not chosen)


def test_more_devices_than_there_are_is_a_mistake_of_the_configuration():
    with pytest.raises(ConfigError, match=r"devices is 99, but there are only 8 \(cpu\)"):
        devices.create_mesh(99, 99)


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("150000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None)],
)
def test_a_containers_share_of_the_cores_counts(tmp_path, limit, cores):
    path = tmp_path / "cpu.max"
    path.write_text(limit + "\n")
    all_of_them = environment.cpu_cores(tmp_path / "nothing")
    assert environment.cpu_cores(path) == (cores or all_of_them)
