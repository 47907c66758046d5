"""What machine this is: cores, processor, folders for what is kept between runs, versions."""

import errno
import functools
import importlib.metadata
import logging
import os
import platform
import stat
import subprocess
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger("fer_jax")

# Instructions, as Linux names them, that decide how fast convolutions can be.
_FEATURES = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
_PACKAGES = ("fer-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def cpu_cores(limit: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Returns how many cores this process may use.

    Args:
      limit: what a container may take of them, such as `docker run --cpus=2`: microseconds of core
        time, and in how many microseconds (Linux, "Control Group v2", CPU interface files).
    """
    there = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = map(int, limit.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # no such file, or "max"
        return there
    return max(1, min(there, quota // period))


@functools.cache
def cache_folder() -> Path | None:
    """Returns the folder that keeps compiled programs between runs, made if need be.

    It is `compiled` in `$FER_JAX_CACHE`, by default in `~/.cache/fer_jax`. What lies in it is run:
    it must belong to this user, and is closed to all others (mode 0700).

    Returns:
      None if there can be no such folder; a line in the log then says why, once.
    """
    variable = os.environ.get("FER_JAX_CACHE")
    try:
        base = Path(variable).expanduser() if variable else Path.home() / ".cache" / "fer_jax"
        folder = base.absolute() / "compiled"
        _make_private(folder)
    except RuntimeError:  # neither HOME nor an entry for this user
        reason = "there is no home folder"
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
    else:
        return folder
    log.warning(
        "Compiled programs are not kept, so every start compiles them anew (%s); set FER_JAX_CACHE "
        "to a folder of your own",
        reason,
    )
    return None


def _make_private(folder: Path) -> None:
    """Makes a folder for this user alone; an OSError says what is wrong with one that is there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()  # a link may lead anywhere
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "belongs to another user", folder)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "is a link", folder)
    if stat.S_IMODE(status.st_mode) != 0o700:
        folder.chmod(0o700)
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot be written", folder)


def has_nvidia_gpu(driver: Path = Path("/proc/driver/nvidia")) -> bool:
    """Returns whether NVIDIA's driver is loaded, as Linux says, or its tool finds a GPU.

    Args:
      driver: the folder that the driver makes.
    """
    if driver.is_dir():
        return True
    try:
        run = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", timeout=10
        )
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
            "kind": _cpu_line("model name") if device.platform == "cpu" else device.device_kind,
            "count": jax.device_count() if device.platform != "cpu" else 1,
            "cpu_cores": cpu_cores(),
            "cpu_features": [f for f in _FEATURES if f in _cpu_line("flags").split()],
        },
        "git": git_state(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_line(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith(name))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_state() -> dict[str, Any] | None:
    """Returns the commit of this code and whether code differs from it; None outside git."""
    folder = Path(__file__).resolve().parents[1]

    def git(*args: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, encoding="utf-8", check=True
        )
        return run.stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "modified": bool(git("status", "--porcelain", "--untracked-files=no", "--", ".")),
        }
    except (OSError, subprocess.CalledProcessError):
        return None
