import itertools
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from fer_jax.machine import environment
from fer_jax.ops import build, native

ROOT = Path(__file__).parent.parent
needs_library = pytest.mark.skipif(not native.load(), reason="no C++ compiler here")

PROGRAM = """
import jax, logging; logging.basicConfig(format='%(message)s')
from fer_jax import ops; import jax.numpy as jnp
from fer_jax.ops import native
native.load()
f = lambda k: ops.conv_general_dilated(jnp.ones((2, 9, 9, 16)), k, (1, 1), 'VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC')).sum()
print(native.convolutions(), float(jax.grad(f)(jnp.ones((3, 3, 16, 32))).sum()))
"""


def run(program, **variables):
    """Runs a program in a process of its own; a variable that is None is not there."""
    variables = {"JAX_PLATFORMS": "cpu"} | variables
    env = {k: v for k, v in (os.environ | variables).items() if v is not None}
    return subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    )


def script(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def copying(tmp_path_factory):
    """A compiler that takes no time: it copies the library that is here, and notes its calls."""
    folder = environment.cache_folder()
    assert folder is not None
    path = tmp_path_factory.mktemp("compiler")
    text = f"""#!/bin/sh
case "$*" in *--version) echo 1.0; exit;; esac
echo "$@" >> {path / "calls"}
while [ $# -gt 1 ]; do shift; done
cp {build.library(folder)} "$1"
"""
    script(path / "copy", text)
    return path


@pytest.fixture
def compiler(copying, monkeypatch):
    """The file where the copying compiler notes its calls."""
    monkeypatch.setenv("CXX", str(copying / "copy"))
    (copying / "calls").write_text("")
    return copying / "calls"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "kept"
    path.mkdir()
    return path


# ---------------------------------------------------------------------------- what is kept, and how


@pytest.mark.slow
@needs_library
def test_two_builds_at_once_and_one_again_give_one_library(compiler, folder):
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(build.library, [folder, folder])
    called = compiler.read_text()
    assert first == second == build.library(folder)
    assert compiler.read_text() == called
    assert list(folder.iterdir()) == [first]

    # A library that is not what was written is made again.
    whole = first.read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", whole[:-1], whole[:middle] + b"!!" + whole[middle + 2 :], whole[:middle]):
        first.write_bytes(damaged)
        assert not build._is_whole(first)
    assert build.library(folder) == first
    assert first.read_bytes() == whole
    assert len(compiler.read_text().splitlines()) == len(called.splitlines()) + 1


@pytest.mark.slow
@needs_library
def test_what_must_start_soon_takes_a_library_that_is_there_and_compiles_none(
    compiler, tmp_path, folder
):
    program = "from fer_jax.ops import native; print(native.load_kept(), native.available())"
    variables = {"CXX": os.environ["CXX"], "FER_JAX_CACHE": str(tmp_path)}
    assert run(program, **variables).stdout == "False False\n"
    assert compiler.read_text() == ""

    kept = tmp_path / "compiled"  # made private by the process before
    path = build.library(folder)
    shutil.copy2(path, kept / path.name)
    assert run(program, **variables).stdout == "True True\n"
    assert run(program, **variables, FER_JAX_NATIVE="0").stdout == "False False\n"
    (kept / path.name).write_bytes(b"")
    assert run(program, **variables).stdout == "False False\n"
    again = "from fer_jax.ops import native; print(native.load_kept(), native.load())"
    assert run(again, **variables).stdout == "False True\n"


def test_another_compiler_or_jaxlib_or_processor_makes_another_library(
    tmp_path, folder, monkeypatch
):
    def keys():
        monkeypatch.setenv("CXX", script(tmp_path / "cc", "#!/bin/sh\necho 1.0"))
        yield build._key(build.find_compiler())
        script(tmp_path / "cc", "#!/bin/sh\necho 1.1")
        yield build._key(build.find_compiler())
        monkeypatch.setenv("CXX", f"{tmp_path / 'cc'} -pipe")
        yield build._key(build.find_compiler())
        monkeypatch.setattr(build.jaxlib.version, "__version__", "0.0")
        yield build._key(build.find_compiler())
        monkeypatch.setattr(build, "_processor", lambda: "another")
        yield build._key(build.find_compiler())
        yield build._key(build.find_compiler())

    *different, again = keys()
    assert len(set(different)) == 5
    assert again == different[-1]


def test_the_compiler_may_have_arguments(folder, tmp_path, monkeypatch):
    text = f"""#!/bin/sh
echo "$1|$2" >> {tmp_path / "calls"}
exit 1
"""
    monkeypatch.setenv("CXX", f"'{script(tmp_path / 'a compiler', text)}' -pipe -O1")
    with pytest.raises(build.NativeError, match="a compiler fails"):
        build.library(folder)
    assert (tmp_path / "calls").read_text() == "-pipe|-O1\n"


@pytest.mark.slow
@needs_library
def test_what_was_not_used_for_long_goes_when_another_is_made(compiler, folder):
    old, scratch, fresh, other = (
        folder / name for name in ("native_1_2.so", "native_x", "native_3_4.so", "other.so")
    )
    scratch.mkdir()
    (scratch / "native.so").touch()
    for path in (old, fresh, other):
        path.touch()
    long_ago = time.time() - 40 * 24 * 3600
    for path in (old, scratch, other):
        os.utime(path, (long_ago, long_ago))
    made = build.library(folder)
    assert set(folder.iterdir()) == {made, fresh, other}
    os.utime(made, (long_ago, long_ago))
    assert build.library(folder) == made  # now it has been used
    assert made.stat().st_mtime > long_ago + 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid(), reason="only root can give away")
@needs_library
def test_nothing_of_another_user_is_loaded(compiler, folder, tmp_path):
    path = build.library(folder)
    os.chown(path, 12345, -1)
    build.library(folder)
    assert path.stat().st_uid == 0
    assert len(compiler.read_text().splitlines()) == 2

    (tmp_path / "compiled").mkdir()
    os.chown(tmp_path / "compiled", 12345, -1)
    done = run(PROGRAM, FER_JAX_CACHE=str(tmp_path))
    assert done.stdout.startswith("native")
    assert f"{tmp_path / 'compiled'}: belongs to another user" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "compiled").iterdir()) == []


# ------------------------------------------------------------------------------- the cache's folder

SHOW = """
import logging; logging.basicConfig(format='%(message)s')
from fer_jax.machine import devices, environment
devices.setup()
print(environment.cache_folder())
"""


@pytest.fixture
def cache_folder(monkeypatch, caplog):
    """Asks for the folder anew: (variables) -> (the folder, what is logged)."""

    def ask(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        caplog.clear()
        return environment.cache_folder.__wrapped__(), caplog.messages

    return ask


def test_the_folder_is_closed_to_others(cache_folder, tmp_path):
    tmp_path.chmod(0o755)
    folder = tmp_path / "compiled"
    for _ in range(2):
        assert cache_folder(FER_JAX_CACHE=str(tmp_path)) == (folder, [])
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o775)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("given", ["~/x", "x"])
def test_the_folder_is_absolute(cache_folder, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _ = cache_folder(FER_JAX_CACHE=given, HOME=str(tmp_path))
    assert found == tmp_path / "x" / "compiled"


@pytest.mark.parametrize(
    ("given", "reason"),
    [("/proc/nowhere", "/proc/nowhere: No such file"), (__file__, "Not a directory")],
)
def test_without_a_folder_a_line_says_what_is_not_kept(cache_folder, given, reason):
    found, [message] = cache_folder(FER_JAX_CACHE=given)
    assert found is None
    assert reason in message
    assert "set FER_JAX_CACHE" in message
    assert "\n" not in message


@pytest.mark.slow
def test_the_line_is_said_once():
    done = run(SHOW, FER_JAX_CACHE="/proc/nowhere")
    assert done.stdout.strip() == "None"
    assert done.stderr.count("\n") == 1


def test_a_link_is_refused(cache_folder, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    (tmp_path / "compiled").symlink_to(tmp_path / "elsewhere")
    found, [message] = cache_folder(FER_JAX_CACHE=str(tmp_path))
    assert found is None
    assert "is a link" in message
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o755


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid(), reason="only root can be another")
def test_a_user_without_home_and_name_can_run():
    imported = "from fer_jax.machine import devices, environment"
    program = SHOW.replace(imported, f"{imported}; import os; os.setuid(12345)")
    done = run(program, HOME=None, FER_JAX_CACHE=None)
    assert done.stdout.strip() == "None"
    assert "there is no home folder" in done.stderr
    assert done.stderr.count("\n") == 1


# ----------------------------------------------------------------------- when it cannot be compiled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"PATH": "/nowhere", "CXX": "none -x"}, "no C++ compiler (none, c++"),
        ({"CXX": "/bin/false"}, "/bin/false fails: it does not say why"),
        ({"FER_JAX_NATIVE": "0"}, ""),
    ],
)
def test_without_the_library_a_line_says_why_and_xla_takes_over(variables, reason, tmp_path):
    done = run(PROGRAM, **({"FER_JAX_CACHE": str(tmp_path)} | variables))
    assert done.stdout.split() == ["xla", str(float(2 * 49 * 9 * 16 * 32))]
    assert (reason in done.stderr) if reason else done.stderr == ""
    assert done.stderr.count("\n") <= 1


def test_a_compiler_that_hangs_is_ended_with_all_it_started(folder, tmp_path, monkeypatch):
    child = tmp_path / "child"
    text = f"""#!/bin/sh
if [ "$1" = --version ]; then echo 1.0; exit; fi
sleep 300 &
echo $! > {child}
wait
"""
    monkeypatch.setenv("CXX", script(tmp_path / "hang", text))
    monkeypatch.setattr(build, "_COMPILE_LIMIT_S", 1)
    start = time.monotonic()
    with pytest.raises(build.NativeError, match="hang has not ended after 1 s"):
        build.library(folder)
    assert time.monotonic() - start < 60
    assert list(folder.iterdir()) == []
    status = Path(f"/proc/{child.read_text().strip()}/status")
    for _ in range(100):
        if not status.exists() or "Z (zombie)" in status.read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the compiler's child still runs")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo 'x.cc:1: error: no such thing' >&2; echo noise; exit 1", "error: no such thing"),
        ("printf '\\377 oh' >&2; exit 1", "oh"),
        ("kill -SEGV $$", "Segmentation fault"),
        ("exit 0", "No such file"),
    ],
)
def test_what_a_compiler_says_is_told_in_one_line(
    text, reason, folder, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv(
        "CXX", script(tmp_path / "bad", f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{text}\n')
    )
    with pytest.raises(build.NativeError, match=reason) as error:
        build.library(folder)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@needs_library
def test_a_library_that_ends_the_process_is_not_kept(folder, tmp_path, monkeypatch):
    source = tmp_path / "trap.cc"
    source.write_text("__attribute__((constructor)) void f() { __builtin_trap(); }")
    real = build.find_compiler()[0]
    text = f"""#!/bin/sh
if [ "$1" = --version ]; then exec {real} --version; fi
while [ $# -gt 1 ]; do shift; done
exec {real} -shared -fPIC {source} -o "$1"
"""
    monkeypatch.setenv("CXX", script(tmp_path / "trap", text))
    with pytest.raises(build.NativeError, match=r"does not work: .* was ended: (Illegal|Trace)"):
        build.library(folder)
    assert list(folder.iterdir()) == []


# --------------------------------------------------------------------------------- other compilers

COMPILERS = ["g++", "clang++"]
STRICT = ("-Wall", "-Wextra", "-Werror")
EMULATED = "-DFER_JAX_EMULATED_AMX"


def compiler_or_skip(name):
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"no {name} here: apt-get install {name.removesuffix('++')}")
    return path


def strict_flags(level):
    """Flags for a processor of x86-64 that need not be the one at hand."""
    flags = [flag for flag in build.FLAGS if not flag.startswith("-march")]
    return (*flags, f"-march={level}", *STRICT)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILERS)
def test_the_source_has_no_warnings(name, tmp_path):
    flags = [flag for flag in build.FLAGS if flag != "-shared"]  # Clang: unused without linking
    path = tmp_path / "native.so"
    build.compile_library([compiler_or_skip(name)], path, (*flags, *STRICT, "-fsyntax-only"))


@pytest.mark.slow
@pytest.mark.skipif(build.platform.machine() != "x86_64", reason="levels of x86-64")
@pytest.mark.parametrize(
    ("name", "level", "more"),
    [
        *itertools.product(COMPILERS, ["x86-64", "x86-64-v3"], [()]),  # vectors of 4 and 8
        ("clang++", "native", ()),  # all other tests run what is compiled for it, mostly by GCC
        ("g++", "native", (EMULATED,)),
        ("clang++", "x86-64", (EMULATED,)),
    ],
)
def test_every_length_of_vector_is_right_and_without_warnings(name, level, more, tmp_path):
    path = tmp_path / "native.so"
    if level == "x86-64-v3" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2")
    build.compile_library([compiler_or_skip(name)], path, (*strict_flags(level), *more))
    build._try_out(path)


@pytest.mark.slow
@pytest.mark.skipif(build.platform.machine() != "x86_64", reason="instructions of x86-64")
@pytest.mark.parametrize("name", COMPILERS)
def test_the_code_for_amx_is_compiled_without_warnings(name, tmp_path):
    path = tmp_path / "native.so"
    build.compile_library([compiler_or_skip(name)], path, strict_flags("sapphirerapids"))
    sums_0_add_4_times_6 = bytes.fromhex("c4e24a5cc4")  # tdpbf16ps tmm0, tmm4, tmm6
    assert sums_0_add_4_times_6 in path.read_bytes()


AMX_PROGRAM = """
#include <cstdio>
#include "amx.h"

int main() {
  if (!has_amx()) return 3;
  [[maybe_unused]] AmxScope scope;
  uint32_t tiles[3][16][16];
  if (std::fread(tiles, sizeof tiles, 1, stdin) != 1) return 1;
  load_tile<0>(tiles[0], 64);
  load_tile<4>(tiles[1], 64);
  load_tile<6>(tiles[2], 64);
  multiply_tiles<0, 4, 6>();
  store_tile<0>(tiles[0], 64);
  return std::fwrite(tiles[0], sizeof tiles[0], 1, stdout) != 1;
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(EMULATED,), ("-march=native",)], ids=["emulated", "real"])
def test_products_of_tiles_are_what_the_manual_says_to_the_bit(flags, tmp_path):
    rng = np.random.default_rng(0)

    def numbers(*shape):  # with all that bfloat16 rounds away, zeros, and what is too small
        scale = rng.choice([1, 2.0**-70, 2.0**-130, 0], shape, p=[0.7, 0.1, 0.1, 0.1])
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    def flushed(x):
        return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.float32(0), np.float32(x))

    sums, a, b = numbers(16, 16), numbers(16, 32), numbers(32, 16)
    a, b = ((x.view(np.uint32) & 0xFFFF0000).view(np.float32) for x in (a, b))
    parts = np.zeros((2, 16, 16), np.float32)
    for k in range(32):  # products of bfloat16 are exact in float64
        product = np.outer(flushed(a[:, k]).astype(float), flushed(b[k]).astype(float))
        with np.errstate(under="ignore"):
            parts[k % 2] = flushed((parts[k % 2] + product).astype(np.float32))
    expected = flushed(flushed(sums) + flushed(parts[0] + parts[1]))
    pairs = [
        (x.view(np.uint32)[0::2] >> 16) | (x.view(np.uint32)[1::2] & 0xFFFF0000)
        for x in (a.T.copy(), b)
    ]
    source, program = tmp_path / "tiles.cc", tmp_path / "tiles"
    source.write_text(AMX_PROGRAM)
    command = [compiler_or_skip("g++"), "-O2", "-std=c++17", *flags, f"-I{build.SOURCES}"]
    subprocess.run([*command, str(source), "-o", str(program)], check=True)
    given = b"".join(x.tobytes() for x in (sums, pairs[0].T.copy(), pairs[1]))
    done = subprocess.run([str(program)], input=given, capture_output=True)
    if done.returncode == 3 and flags != (EMULATED,):
        pytest.skip("this processor has no AMX, or the system does not permit it")
    assert done.returncode == 0
    np.testing.assert_array_equal(
        np.frombuffer(done.stdout, np.uint32), expected.view(np.uint32).ravel()
    )


@pytest.mark.slow
@needs_library
def test_a_miscompiled_library_is_not_kept(folder, tmp_path, monkeypatch):
    shutil.copytree(build.SOURCES, tmp_path / "cpp")
    header = tmp_path / "cpp" / "winograd.h"
    source = header.read_text()
    wrong = source.replace("to[1] = d[1] + d[2];", "to[1] = d[1] - d[2];")
    assert wrong != source
    header.write_text(wrong)
    monkeypatch.setattr(build, "SOURCES", tmp_path / "cpp")
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O0"))
    with pytest.raises(build.NativeError, match=r"does not work.* convolution is wrong: off by"):
        build.library(folder)
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "more", "tests"),
    [
        *((name, "", "float64 or xlas or refused or in_the_library") for name in COMPILERS),
        ("g++", f" {EMULATED}", "bfloat16 or in_the_library"),
    ],
    ids=[*COMPILERS, "amx"],
)
def test_the_operations_run_clean_under_the_sanitizers(name, more, tests, tmp_path):
    """The operations' tests in a library that ends the process at the first bad access."""
    compiler = compiler_or_skip(name)
    runtime = "libasan.so" if name == "g++" else f"libclang_rt.asan-{build.platform.machine()}.so"
    asan, standard = (
        subprocess.run(
            [compiler, f"-print-file-name={library}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for library in (runtime, "libstdc++.so.6")
    )
    if not Path(asan).is_absolute():
        pytest.skip(f"{name} has no {runtime}")
    # Last, where they win: at -O3 g++ takes minutes for a library with sanitizers.
    flags = f"-fsanitize=address,undefined -fno-sanitize-recover=all -g -O1{more}"
    flags += " -shared-libasan" if name == "clang++" else ""
    sanitizing = script(tmp_path / "sanitizing", f'#!/bin/sh\nexec {compiler} "$@" {flags}\n')
    program = [sys.executable, "-m", "pytest", "-n0", "-x", "-p", "no:cacheprovider"]
    program += [
        f"tests/test_{name}.py" for name in ("native", "winograd", "depthwise", "norm", "build")
    ]
    done = subprocess.run(
        [*program, "-k", tests],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "CXX": sanitizing,
            "FER_JAX_CACHE": str(tmp_path / "cache"),
            "LD_PRELOAD": f"{asan} {standard}",  # the second one for exceptions
            "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
            "JAX_PLATFORMS": "cpu",
        },
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


def test_convolutions_run_in_the_library_where_there_is_a_compiler():
    compilers = map(shutil.which, ("c++", "g++", "clang++"))
    off = os.environ.get("FER_JAX_NATIVE") == "0" or jax.default_backend() != "cpu"
    assert native.available() == (any(compilers) and not off)


@pytest.mark.slow
def test_a_summary_runs_no_compiler(tmp_path):
    calls = tmp_path / "calls"
    text = f"#!/bin/sh\necho called >> {calls}\nexit 1\n"
    arguments = ["--config=experiments/arch02_bs96.py", "--mode=summary"]
    done = subprocess.run(
        [sys.executable, "launch.py", *arguments],
        cwd=ROOT,
        env=os.environ
        | {"CXX": script(tmp_path / "noting", text), "FER_JAX_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "420,199" in done.stdout
    assert not calls.exists()
