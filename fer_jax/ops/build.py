"""Compiles the library of `cpp/` for the processor at hand and keeps it between runs.

It is called `native_<key>_<hash>.so`: the key is of all that it is made from, the hash of its own
bytes. A library is tried out in a process of its own before it is kept, so one that stands in the
folder whole has given right results on this machine.
"""

import contextlib
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jaxlib.version

log = logging.getLogger("fer_jax")

SOURCES = Path(__file__).with_name("cpp")
_PROCESSOR = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
# Warnings are errors in the tests only: a compiler newer than this code may have new ones.
FLAGS = ("-O3", _PROCESSOR, "-std=c++17", "-Wall", "-Wextra", "-shared", "-fPIC")
# A compiler that shares its cores with trainings takes several times as long as alone.
_VERSION_LIMIT_S, _COMPILE_LIMIT_S, _TEST_LIMIT_S = 20, 900, 300
_UNUSED_LIMIT_S = 30 * 24 * 3600


class NativeError(RuntimeError):
    """The library cannot be built or loaded here."""


def library(folder: Path) -> Path:
    """Returns the path of a library for this processor, compiled unless `folder` has it.

    Args:
      folder: this user's own, where it is kept; several processes may build at once.

    Raises:
      NativeError: without a compiler, if compilation fails or takes too long, if what is compiled
        does not work, or if `folder` cannot be written.
    """
    compiler = find_compiler()
    key = _key(compiler)
    try:
        return _find(key, folder) or _build(compiler, key, folder)
    except OSError as error:
        raise NativeError(f"cannot write in {folder}: {error.strerror}") from error


def kept(folder: Path) -> Path | None:
    """Returns the path of a library that :func:`library` has made for this processor, or None.

    Args:
      folder: as there.

    Raises:
      NativeError: without a compiler, whose version is part of what tells libraries apart.
      OSError: if `folder` cannot be read.
    """
    return _find(_key(find_compiler()), folder)


def _find(key: str, folder: Path) -> Path | None:
    for path in folder.glob(f"native_{key}_*.so"):
        if _is_whole(path):
            with contextlib.suppress(OSError):
                os.utime(path)  # when it was last used
            return path
        path.unlink(missing_ok=True)
    return None


def find_compiler() -> list[str]:
    """Returns the C++ compiler's path and arguments: of `$CXX`, or else the first there is.

    Raises:
      NativeError: if there is none.
    """
    names = [shlex.split(os.environ.get("CXX", "")), ["c++"], ["g++"], ["clang++"]]
    names = [name for name in names if name]
    for name, *arguments in names:
        if path := shutil.which(name):
            return [path, *arguments]
    raise NativeError(f"no C++ compiler ({', '.join(name for name, *_ in names)}) on the PATH")


def compile_library(compiler: list[str], path: Path, flags: tuple[str, ...] = FLAGS) -> None:
    """Compiles the library to `path`.

    Args:
      compiler: as :func:`find_compiler` returns it.
      path: of the library.
      flags: of the compiler.

    Raises:
      NativeError: if the compiler fails or takes too long.
    """
    include = ["-isystem", jax.ffi.include_dir()]
    source = str(SOURCES / "native.cc")
    _run([*compiler, *flags, *include, source, "-o", str(path)], _COMPILE_LIMIT_S)


def _build(compiler: list[str], key: str, folder: Path) -> Path:
    log.info("Compiling convolutions for this processor, once")
    _remove_unused(folder)
    with tempfile.TemporaryDirectory(prefix="native_", dir=folder) as scratch:
        made = Path(scratch) / "native.so"
        compile_library(compiler, made)
        _try_out(made)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        path = folder / f"native_{key}_{_hash(made.read_bytes())}.so"
        made.replace(path)
    return path


def _try_out(path: Path) -> None:
    """Runs :mod:`fer_jax.ops.selftest` apart: an illegal instruction must not end this process."""
    paths = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
    environment = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    # -P: what lies in the working directory is no module of ours.
    program = [sys.executable, "-P", "-m", "fer_jax.ops.selftest", str(path)]
    try:
        _run(program, _TEST_LIMIT_S, environment)
    except NativeError as error:
        raise NativeError(f"the compiled library does not work: {error}") from error


def _remove_unused(folder: Path) -> None:
    """Removes libraries of other keys, and what broken builds left, that nobody uses any more."""
    for path in folder.glob("native_*"):
        with contextlib.suppress(OSError):  # another process removes it too
            if time.time() - path.stat().st_mtime > _UNUSED_LIMIT_S:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_whole(path: Path) -> bool:
    """Whether a library is this user's and the one that was written."""
    owned = not hasattr(os, "getuid") or path.lstat().st_uid == os.getuid()
    return owned and path.stem.endswith(_hash(path.read_bytes()))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _key(compiler: list[str]) -> str:
    version = _run([*compiler, "--version"], _VERSION_LIMIT_S)
    sources = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir())]
    made_from = (sources, FLAGS, compiler, version, jaxlib.version.__version__, _processor())
    return _hash(repr(made_from).encode())[:16]


def _processor() -> str:
    """Returns what tells processors apart that the compiler tells apart."""
    if sys.platform == "darwin":
        return _run(["sysctl", "-n", "machdep.cpu.brand_string"], _VERSION_LIMIT_S)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features", "CPU ")  # the last two on ARM
    return "\n".join(sorted({x for x in lines if x.startswith(told)}))


def _run(command: list[str], limit_s: float, environment: dict[str, str] | None = None) -> str:
    """Returns what a program prints.

    Raises:
      NativeError: if it cannot be started, fails or runs for longer than `limit_s` seconds.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=os.environ | {"LC_ALL": "C"} | (environment or {}),
            start_new_session=True,  # so that what it starts can be ended with it
        )
    except OSError as error:
        raise NativeError(f"{command[0]}: {error.strerror}") from error
    with process:
        try:
            out, err = process.communicate(timeout=limit_s)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise NativeError(f"{command[0]} has not ended after {limit_s:g} s") from error
            raise
    if process.returncode < 0:
        raise NativeError(f"{command[0]} was ended: {signal.strsignal(-process.returncode)}")
    if process.returncode:
        lines = err.splitlines() or ["it does not say why"]
        line = next((x for x in lines if "error" in x), lines[-1])
        raise NativeError(f"{command[0]} fails: {line.strip()}")
    return out
