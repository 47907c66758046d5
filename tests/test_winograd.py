"""Convolutions with transformed kernels: XLA's own in float64, whatever the shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ops import PADDINGS, lax_conv, normal

from fer_jax.ops import winograd

few_examples = settings(max_examples=12, deadline=None, derandomize=True)


def lax_float64(images, kernel, padding):
    with jax.enable_x64():
        xs = (images.astype(np.float64), kernel.astype(np.float64))
        return lax_conv(*xs, padding=padding)


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
    expected = lax_float64(x, kernel, padding)
    found = jax.jit(winograd.convolution, static_argnums=2)(x, winograd.transform(kernel), padding)
    assert found.shape == expected.shape
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max() + 1e-6)


@pytest.mark.parametrize("padding", PADDINGS)
def test_whole_numbers_come_out_exactly(padding):
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 9, (1, 7, 10, 16)).astype(np.float32)
    kernel = 4 * rng.integers(-4, 5, (3, 3, 16, 16)).astype(np.float32)  # halves of halves: whole
    transformed = jnp.asarray(winograd.transform(kernel))
    found = winograd.convolution(jnp.asarray(x), transformed, padding)
    np.testing.assert_array_equal(found, lax_float64(x, kernel, padding))
