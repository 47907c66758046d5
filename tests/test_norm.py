import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from test_ops import assert_equal_to_float64, normal

from fer_jax import ops
from fer_jax.ops import native

EPSILON = 1e-3
needs_library = pytest.mark.skipif(not native.load(), reason="no C++ compiler here")


def by_definition(x, scale, bias, relu=False):
    """Ioffe & Szegedy 2015, algorithm 1, differentiated by JAX."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes, keepdims=True)
    var = jnp.square(x - mean).mean(axes, keepdims=True)
    scale, bias = (v.reshape(mean.shape) for v in (scale, bias))
    out = (x - mean) / jnp.sqrt(var + EPSILON) * scale + bias
    return jax.nn.relu(out) if relu else out


def ours(x, scale, bias, relu=False):
    return ops.batch_norm(x, scale, bias, epsilon=EPSILON, relu=relu)[0]


# In C++, with channels that are no multiple of 16, and of images that are one row of numbers.
SHAPES = [(5, 7, 9, 32), (1, 3, 1, 16), (5, 3, 4, 12), (6, 16)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_values_and_gradients_equal_the_definition_in_float64(shape, relu):
    x = 3 * normal(*shape) + normal(shape[-1])
    scale, bias = normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    f, reference = (functools.partial(g, relu=relu) for g in (ours, by_definition))
    assert_equal_to_float64(f, reference, x, scale, bias)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_statistics_are_the_batchs(shape):
    x = normal(*shape) + 2
    c = shape[-1]
    _, mean, var = ops.batch_norm(jnp.asarray(x), jnp.ones(c), jnp.zeros(c), epsilon=EPSILON)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2), np.float64), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(var, x.var((0, 1, 2), np.float64), rtol=1e-5, atol=1e-5)


def pooled_by_definition(x, scale, bias):
    out = by_definition(x, scale, bias, relu=True)
    n, h, w, c = out.shape
    windows = out[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
    return windows.max((2, 4))


# In C++; with channels that are no multiple of 16, and of images with an odd side.
@pytest.mark.parametrize("shape", [(5, 6, 10, 32), (1, 2, 2, 16), (5, 4, 6, 12), (3, 5, 4, 16)])
def test_a_pool_behind_it_gives_what_the_definition_does_in_float64(shape):
    def in_one(x, scale, bias):
        return ops.batch_norm_relu_max_pool(x, scale, bias, epsilon=EPSILON)[0]

    x = 3 * normal(*shape) + normal(shape[-1])
    scale, bias = normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    assert_equal_to_float64(in_one, pooled_by_definition, x, scale, bias)


@needs_library
def test_with_a_pool_one_program_carries_native_code_and_xlas():
    def loss(x, scale, bias):
        return (ops.batch_norm_relu_max_pool(x, scale, bias, epsilon=EPSILON)[0] ** 2).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    arrays = normal(4, 6, 6, 16), normal(16, seed=1), normal(16, seed=2)
    on_cpu = gradients.lower(*arrays).as_text()
    for name in ("pooled_norm", "pooled_norm_gradient_sums", "pooled_norm_gradient"):
        assert f"@fer_jax_{name}(" in on_cpu
    elsewhere = gradients.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert "fer_jax_" not in elsewhere


@needs_library
def test_a_mean_far_from_0_does_not_swallow_the_variance():
    """Differences of squares would leave nothing of it: 1e4 ** 2 has no digit for 1 in float32."""
    x = normal(8, 12, 12, 16) + 1e4
    mean, var = native.moments(jnp.asarray(x))
    np.testing.assert_allclose(mean, x.mean((0, 1, 2), np.float64), rtol=1e-6)
    np.testing.assert_allclose(var, x.var((0, 1, 2), np.float64), rtol=1e-3)


@needs_library
@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 7])
def test_any_number_of_tasks_sums_up_the_same(tasks, monkeypatch):
    monkeypatch.setattr(native, "_tasks", lambda: tasks)
    x, grad = normal(5, 3, 3, 32), normal(5, 3, 3, 32, seed=1)
    mean, var = map(np.asarray, native.moments(jnp.asarray(x)))
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-5)
    table = np.stack([mean, 1 / np.sqrt(var), np.ones_like(mean), np.zeros_like(mean)])
    sums = native.norm_gradient_sums(*map(jnp.asarray, (x, grad, table)), relu=False)
    np.testing.assert_allclose(sums[0], grad.sum((0, 1, 2)), atol=1e-5)
    expected = (grad * (x - mean) / np.sqrt(var)).sum((0, 1, 2))
    np.testing.assert_allclose(sums[1], expected, atol=1e-5)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("channels", [32, 12])
def test_a_batch_over_devices_is_normalised_as_a_whole(channels, pooled):
    """Values, statistics and gradients are those of one device with all images."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("batch",))
    x = jnp.asarray(normal(8, 6, 6, channels) + np.arange(8)[:, None, None, None])
    scale, bias = jnp.asarray(normal(channels)), jnp.asarray(normal(channels, seed=1))
    weights = jnp.asarray(normal(*((8, 3, 3, channels) if pooled else x.shape), seed=2))

    def loss(x, scale, bias, weights, axis_name):
        norm = ops.batch_norm_relu_max_pool
        if not pooled:
            norm = functools.partial(ops.batch_norm, relu=True)
        out, mean, var = norm(x, scale, bias, epsilon=EPSILON, axis_name=axis_name)
        total = (out * weights).sum()
        return (lax.psum(total, axis_name) if axis_name else total), (mean, var)

    def value_and_grad(axis_name, *arguments):
        f = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        return f(*arguments, axis_name)

    whole = value_and_grad(None, x, scale, bias, weights)
    sharded = jax.shard_map(
        functools.partial(value_and_grad, "batch"),
        mesh=mesh,
        in_specs=(P("batch"), P(), P(), P("batch")),
        out_specs=((P(), (P(), P())), (P("batch"), P(), P())),
    )(x, scale, bias, weights)
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@needs_library
@pytest.mark.parametrize("relu", [False, True])
def test_what_is_not_a_number_stays_so(relu):
    x = normal(2, 3, 3, 16)
    x[1, 2, 0, 5] = np.nan
    out = ours(jnp.asarray(x), jnp.ones(16), jnp.zeros(16), relu=relu)
    assert np.isnan(out[..., 5]).all()
    assert np.isfinite(out[..., :5]).all()


@needs_library
@pytest.mark.parametrize("place", range(4))
def test_a_window_with_what_is_not_a_number_is_none(place):
    x = np.ones((2, 4, 4, 16), np.float32)
    x[0, place // 2, place % 2] = np.nan
    table = jnp.asarray([[0.0], [1.0], [1.0], [0.0]]) * jnp.ones((4, 16))
    out, argmax = native.pooled_norm(jnp.asarray(x), table)
    expected = np.ones((2, 2, 2, 16))
    expected[0, 0, 0] = np.nan
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(argmax, np.where(np.isnan(expected), -1, 0))


@needs_library
@pytest.mark.parametrize(
    ("images", "out"),
    [((2, 3, 3, 24), (2, 24)), ((0, 3, 3, 16), (2, 16)), ((2, 3, 3, 16), (3, 16))],
)
def test_moments_refuse_what_does_not_fit(images, out):
    call = jax.ffi.ffi_call("fer_jax_moments", jax.ShapeDtypeStruct(out, jnp.float32))
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"INVALID_ARGUMENT.*fer_jax: .* must"):
        jax.block_until_ready(call(jnp.ones(images), tasks=np.int64(2)))
