import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from fer_jax import ops
from fer_jax.ops import conv as conv_ops

NHWC = ("NHWC", "HWIO", "NHWC")
PADDINGS = ["SAME", "VALID", ((1, 0), (2, 1))]
few_examples = settings(max_examples=8, deadline=None, derandomize=True)


@pytest.fixture(autouse=True, scope="module")
def blocked():
    """Small maps, too, take the path that the hand-written gradient keeps for large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv_ops, "_MIN_POSITIONS", 1)
        yield


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def conv(lhs, rhs, strides=(1, 1), padding="VALID"):
    return ops.conv_general_dilated(lhs, rhs, strides, padding, dimension_numbers=NHWC)


def lax_conv(lhs, rhs, strides=(1, 1), padding="VALID"):
    return lax.conv_general_dilated(lhs, rhs, strides, padding, dimension_numbers=NHWC)


def value_and_gradients(f, *xs):
    """Value and gradients of a function that weighs every output differently."""

    def total(*xs):
        y = f(*xs)
        weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jnp.sum(y * weights)

    return jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(xs)))))(*xs)


def assert_equal_to_float64(f, reference, *xs):
    """`f` in float32 agrees with `reference` in float64 to the rounding of float32."""
    value, gradients = value_and_gradients(f, *map(jnp.asarray, xs))
    with jax.enable_x64(True):
        xs = [jnp.asarray(x, jnp.float64) for x in xs]
        expected_value, expected = jax.tree.map(np.asarray, value_and_gradients(reference, *xs))
    scale = 1e-5 * (1 + max(np.abs(x).max() for x in expected))
    np.testing.assert_allclose(value, expected_value, rtol=1e-4, atol=100 * scale)
    for gradient, one in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, one, rtol=1e-4, atol=scale)


@pytest.mark.slow
@few_examples
@given(
    images=st.integers(1, 40),
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(PADDINGS),
)
def test_convolution_equals_lax_in_float64(images, size, channels, kernel, strides, padding):
    lhs, rhs = normal(images, *size, channels[0]), normal(*kernel, *channels)
    assert_equal_to_float64(
        lambda *xs: conv(*xs, strides, padding),
        lambda *xs: lax_conv(*xs, strides, padding),
        lhs,
        rhs,
    )


@pytest.mark.slow
@few_examples
@given(
    images=st.integers(1, 3),
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    window=st.tuples(st.integers(3, 5), st.integers(3, 5)),
    strides=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    padding=st.sampled_from(PADDINGS),
    ties=st.booleans(),
)
def test_pooling_equals_xla_in_float64(images, size, window, strides, padding, ties):
    x = normal(images, *size, 3)
    x = np.round(x) if ties else x  # at ties too: XLA's gradient goes to the first maximum as well

    def average(x):
        explicit = padding if isinstance(padding, str) else ((0, 0), *padding, (0, 0))
        total = lax.reduce_window(
            x, x.dtype.type(0), lax.add, (1, *window, 1), (1, *strides, 1), explicit
        )
        return total / x.dtype.type(window[0] * window[1])

    assert_equal_to_float64(
        lambda x: ops.max_pool(x, window, strides, padding),
        lambda x: nn.max_pool(x, window, strides, padding),
        x,
    )
    assert_equal_to_float64(lambda x: ops.avg_pool(x, window, strides, padding), average, x)


def test_gradients_agree_with_finite_differences():
    x, kernel = normal(2, 6, 6, 2), normal(3, 3, 2, 3)
    check_grads(conv, (jnp.asarray(x), jnp.asarray(kernel)), order=1, modes=["rev"], rtol=2e-2)
    distinct = np.random.default_rng(0).permutation(2 * 7 * 7 * 2).reshape(2, 7, 7, 2) / 10
    for pool in (ops.max_pool, ops.avg_pool):
        f = functools.partial(pool, window_shape=(3, 3), strides=(2, 2))
        check_grads(
            f, (jnp.asarray(distinct, jnp.float32),), order=1, modes=["rev"], rtol=2e-2, eps=1e-2
        )


def test_gradient_of_tied_maxima_goes_to_the_first():
    gradient = jax.grad(lambda x: ops.max_pool(x, (2, 2), (2, 2)).sum())(jnp.zeros((1, 4, 4, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], np.tile([[1, 0], [0, 0]], (2, 2)))


def test_gradients_handed_out_sum_to_what_came_in():
    x = jnp.asarray(np.round(normal(3, 11, 11, 2)))  # ties in nearly every window
    out = ops.max_pool(x, (5, 5), (2, 2))
    gradient = jax.grad(lambda x: (2 * ops.max_pool(x, (5, 5), (2, 2))).sum())(x)
    assert float(gradient.sum()) == 2 * out.size


def test_padding_never_wins():
    x = -1 - jnp.abs(jnp.asarray(normal(1, 5, 5, 1)))
    assert float(ops.max_pool(x, (3, 3), (2, 2), "SAME").max()) < -1


def test_two_calls_give_the_same_bits():
    x, kernel = jnp.asarray(normal(37, 12, 12, 3)), jnp.asarray(normal(3, 3, 3, 8))

    def f(x, kernel):
        return ops.avg_pool(ops.max_pool(conv(x, kernel), (5, 5), (2, 2)), (2, 2)).sum() ** 2

    step = jax.jit(jax.grad(f, argnums=(0, 1)))
    for one, other in zip(step(x, kernel), step(x, kernel), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_not_plain_goes_to_lax_unchanged():
    x, depthwise = jnp.asarray(normal(2, 6, 6, 4)), jnp.asarray(normal(3, 3, 1, 4))
    args = ((1, 1), "SAME", None, (2, 2), NHWC, 4)
    np.testing.assert_array_equal(
        ops.conv_general_dilated(x, depthwise, *args), lax.conv_general_dilated(x, depthwise, *args)
    )
    half, kernel = x.astype(jnp.bfloat16), jnp.ones((3, 3, 4, 2), jnp.bfloat16)
    gradient = jax.grad(lambda k: conv(half, k).astype(jnp.float32).sum())(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert ops.max_pool(half, (2, 2), (2, 2)).dtype == jnp.bfloat16
    assert jax.grad(lambda x: ops.avg_pool(x, (2, 2)).astype(jnp.float32).sum())(half).dtype == (
        jnp.bfloat16
    )


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises((TypeError, ValueError), match="3"):
        conv(jnp.ones((1, 5, 5, 3)), jnp.ones((3, 3, 2, 4)))
    with pytest.raises(ValueError, match=r"window \(6, 6\) does not fit"):
        ops.max_pool(jnp.ones((1, 5, 5, 3)), (6, 6))
    with pytest.raises(ValueError, match="height, width"):
        ops.avg_pool(jnp.ones((5, 5, 3)), (2, 2))


@pytest.mark.slow
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("replicated", [True, False])
def test_gradients_inside_shard_map_and_scan(check_vma, replicated):
    x, kernel = jnp.asarray(normal(20, 9, 9, 2)), jnp.asarray(normal(3, 3, 2, 4))

    def loss(kernel, x):
        return ops.max_pool(conv(x, kernel), (3, 3), (2, 2)).sum()

    def local(kernel, x):
        if not replicated and check_vma:
            kernel = lax.pcast(kernel, "batch", to="varying")

        def half(total, x):
            return total + jax.grad(loss)(kernel, x), None

        start = jax.grad(loss)(kernel, x[:5])
        total, _ = lax.scan(half, start, x[5:].reshape(1, 5, *x.shape[1:]))
        return total if replicated and check_vma else lax.psum(total, "batch")

    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("batch")), out_specs=P(), check_vma=check_vma
    )
    np.testing.assert_allclose(
        jax.jit(sharded)(kernel, x), jax.grad(loss)(kernel, x), rtol=1e-4, atol=1e-4
    )


def test_one_program_carries_the_native_gradient_for_accelerators():
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))

    def f(kernel, x):
        return ops.max_pool(conv(x, kernel), (2, 2), (2, 2)).sum()

    lowered = {
        platform: jax.jit(jax.grad(f, argnums=(0, 1)))
        .trace(kernel, x)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ("cpu", "cuda")
    }
    assert "select_and_scatter" not in lowered["cpu"]
    assert "select_and_scatter" in lowered["cuda"]
