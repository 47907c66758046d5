"""Convolutions with transformed kernels: as XLA's own in float64, whatever the shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import PADDINGS, lax_conv, normal

from fer_jax.ops import native, winograd

needs_library = pytest.mark.skipif(not native.load(), reason="no C++ compiler here")
few_examples = settings(max_examples=12, deadline=None, derandomize=True)


def lax_float64(images, kernel, padding):
    with jax.enable_x64():
        xs = (images.astype(np.float64), kernel.astype(np.float64))
        return lax_conv(*xs, padding=padding)


def assert_equals_lax(x, kernel, padding, panel):
    bias = normal(kernel.shape[3])
    expected = np.asarray(lax_float64(x, kernel, padding)) + np.asarray(bias, np.float64)
    transformed = jnp.asarray(winograd.transform(kernel, panel))
    convolve = jax.jit(winograd.convolution, static_argnums=(3, 4))
    tolerance = 1e-5 * np.abs(expected).max() + 1e-6
    for relu in (False, True):
        found = convolve(x, transformed, bias, padding, relu)
        expected = np.maximum(expected, 0) if relu else expected
        assert found.shape == expected.shape
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@few_examples
@given(
    images=st.integers(1, 3),
    size=st.tuples(st.integers(3, 13), st.integers(3, 13)),
    channels=st.sampled_from([1, 3, 16, 40]),
    features=st.sampled_from([1, 7, 32]),
    padding=st.sampled_from(PADDINGS),
)
def test_equals_lax_in_float64(images, size, channels, features, padding):
    x, kernel = normal(images, *size, channels), normal(3, 3, channels, features)
    assert_equals_lax(x, kernel, padding, None)


@needs_library
@few_examples
@given(
    images=st.integers(1, 3),
    size=st.tuples(st.integers(3, 19), st.integers(3, 19)),
    channels=st.sampled_from([16, 48]),
    features=st.sampled_from([16, 32, 48]),
    padding=st.sampled_from(PADDINGS),
)
def test_the_library_equals_lax_in_float64(images, size, channels, features, padding):
    x, kernel = normal(images, *size, channels), normal(3, 3, channels, features)
    assert_equals_lax(x, kernel, padding, native.panel())


@needs_library
@pytest.mark.parametrize(
    ("images", "side", "features"),
    # Of 400 tiles an image, in strips of 80 or 168, tasks share the tiles; of 9, the features.
    [(2, 40, 48), (1, 5, 208), (2, 5, 112)],
)
def test_tasks_that_share_a_convolution_in_the_library_change_no_bit(
    images, side, features, monkeypatch
):
    x, kernel, bias = normal(images, side, side, 48), normal(3, 3, 48, features), normal(features)
    transformed = jnp.asarray(winograd.transform(kernel, native.panel()))
    found = []
    for tasks in (1, 2, 7, 1000):
        monkeypatch.setattr(native, "_tasks", lambda tasks=tasks: tasks)
        found.append(winograd.convolution(x, transformed, bias, "SAME", False))
    expected = np.asarray(lax_float64(x, kernel, "SAME"))
    np.testing.assert_allclose(found[0], expected + np.asarray(bias), rtol=0, atol=1e-3)  # of 100
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


def test_a_transformed_kernel_lies_in_panels():
    kernel = np.asarray(normal(3, 3, 16, 48))
    plain, panels = winograd.transform(kernel), winograd.transform(kernel, 32)
    by_rows = plain.reshape(4, 4, 16, 48).swapaxes(0, 1).reshape(16, 16, 48)
    np.testing.assert_array_equal(panels[:, : 16 * 32], by_rows[..., :32].reshape(16, -1))
    np.testing.assert_array_equal(panels[:, 16 * 32 :], by_rows[..., 32:].reshape(16, -1))


@pytest.mark.parametrize("padding", PADDINGS)
def test_whole_numbers_come_out_exactly(padding):
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 9, (1, 7, 10, 16)).astype(np.float32)
    kernel = 4 * rng.integers(-4, 5, (3, 3, 16, 16)).astype(np.float32)  # halves of halves: whole
    expected = lax_float64(x, kernel, padding)
    for panel in (None, native.panel()) if native.available() else (None,):
        transformed = jnp.asarray(winograd.transform(kernel, panel))
        found = winograd.convolution(jnp.asarray(x), transformed, jnp.zeros(16), padding, False)
        np.testing.assert_array_equal(found, expected)
