import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import assert_equal_to_float64, conv, lax_conv, normal

from fer_jax import native

needs_library = pytest.mark.skipif(not native.available(), reason="no C++ compiler here")
few_examples = settings(max_examples=12, deadline=None, derandomize=True)


def test_the_library_is_built_where_there_is_a_compiler():
    import shutil

    assert native.available() == any(map(shutil.which, ("c++", "g++", "clang++")))


@needs_library
@few_examples
@given(
    images=st.integers(1, 5),
    size=st.tuples(st.integers(5, 20), st.integers(5, 20)),
    channels=st.sampled_from([1, 3, 16, 20, 32]),
    features=st.sampled_from([16, 32, 48, 64]),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(["SAME", "VALID", ((1, 0), (2, 1)), ((4, 5), (0, 6))]),
)
def test_equals_lax_in_float64(images, size, channels, features, kernel, strides, padding):
    lhs, rhs = normal(images, *size, channels), normal(*kernel, channels, features)
    lowered = jax.jit(lambda *xs: conv(*xs, strides, padding)).lower(lhs, rhs).as_text()
    assert "fer_jax_convolution" in lowered
    assert_equal_to_float64(
        lambda *xs: conv(*xs, strides, padding),
        lambda *xs: lax_conv(*xs, strides, padding),
        lhs,
        rhs,
    )


@needs_library
def test_more_tasks_than_images_give_the_same(monkeypatch):
    lhs, rhs = jnp.asarray(normal(2, 9, 9, 16)), jnp.asarray(normal(3, 3, 16, 32))
    grad = jnp.asarray(normal(2, 7, 7, 32))
    arguments = ((1, 1), ((0, 0), (0, 0)))
    found = []
    for tasks in (1, 5):
        monkeypatch.setattr(native, "_tasks", lambda tasks=tasks: tasks)
        found.append(
            (
                native.convolution(lhs, rhs, *arguments),
                native.kernel_gradient(lhs, grad, rhs.shape, *arguments),
            )
        )
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-4)


@needs_library
def test_repeats_are_equal_to_the_bit():
    lhs, rhs = jnp.asarray(normal(17, 12, 12, 16)), jnp.asarray(normal(3, 3, 16, 32))
    step = jax.jit(jax.grad(lambda *xs: (conv(*xs) ** 2).sum(), argnums=(0, 1)))
    for one, other in zip(step(lhs, rhs), step(lhs, rhs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_the_library_does_not_take_runs_in_xla():
    lhs = jnp.asarray(normal(2, 9, 9, 16))
    for features, dtype in ((24, jnp.float32), (32, jnp.bfloat16)):
        rhs = jnp.ones((3, 3, 16, features), dtype)
        lowered = jax.jit(conv).lower(lhs.astype(dtype), rhs).as_text()
        assert "fer_jax_convolution" not in lowered


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"PATH": "/nowhere"}, "no C++ compiler"),
        ({"CXX": "/bin/false"}, "/bin/false fails"),
        ({"FER_JAX_CACHE": "/proc/nowhere"}, "cannot write in /proc/nowhere"),
        ({"FER_JAX_NATIVE": "0"}, ""),
    ],
)
def test_without_the_library_a_line_says_why_and_xla_takes_over(variables, reason, tmp_path):
    program = (
        "import jax, logging; logging.basicConfig(format='%(message)s')\n"
        "from fer_jax import ops; import jax.numpy as jnp\n"
        "f = lambda k: ops.conv_general_dilated(jnp.ones((2, 9, 9, 16)), k, (1, 1), 'VALID',"
        " dimension_numbers=('NHWC', 'HWIO', 'NHWC')).sum()\n"
        "print(float(jax.grad(f)(jnp.ones((3, 3, 16, 32))).sum()))\n"
    )
    environment = os.environ | {"FER_JAX_CACHE": str(tmp_path), "JAX_PLATFORMS": "cpu"} | variables
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == 2 * 49 * 9 * 16 * 32
    assert (reason in done.stderr) if reason else done.stderr == ""
    assert done.stderr.count("\n") <= 1


@needs_library
def test_two_builds_at_once_and_one_again_give_one_library(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(native.build, [tmp_path, tmp_path])
    changed = first.stat().st_mtime_ns
    assert first == second == native.build(tmp_path)
    assert first.stat().st_mtime_ns == changed
    assert list(tmp_path.iterdir()) == [first]
