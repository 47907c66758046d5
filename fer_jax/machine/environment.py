"""What machine this is: cores, processor, folders for what is kept between runs, versions."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("fer-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def cpu_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Returns where compiled programs are kept: `$FER_JAX_CACHE` or `~/.cache/fer_jax`."""
    return Path(os.environ.get("FER_JAX_CACHE") or Path.home() / ".cache" / "fer_jax")


def has_nvidia_gpu(driver: Path = Path("/proc/driver/nvidia")) -> bool:
    """Returns whether NVIDIA's driver is loaded, as Linux says, or its tool finds a GPU.

    Args:
      driver: the folder that the driver makes.
    """
    if driver.is_dir():
        return True
    try:
        run = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return run.returncode == 0 and "GPU 0" in run.stdout


def describe() -> dict[str, Any]:
    """Returns versions, device and git commit; nothing that names a person or a machine."""
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in _PACKAGES},
        "device": {
            "platform": device.platform,
            "kind": _cpu_name() if device.platform == "cpu" else device.device_kind,
            "count": jax.device_count() if device.platform != "cpu" else 1,
            "cpu_cores": cpu_cores(),
        },
        "git": git_state(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_state() -> dict[str, Any] | None:
    """Returns the commit of this code and whether code differs from it; None outside git."""
    folder = Path(__file__).resolve().parents[1]

    def git(*args: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True
        )
        return run.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no", "--", ".")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
