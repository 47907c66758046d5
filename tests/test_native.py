from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from test_ops import assert_equal_to_float64, conv, lax_conv, normal

from fer_jax import ops
from fer_jax.ops import native

needs_library = pytest.mark.skipif(not native.load(), reason="no C++ compiler here")
few_examples = settings(max_examples=8, deadline=None, derandomize=True)


@needs_library
@pytest.mark.parametrize("images", [1, 2])
def test_an_image_alone_is_left_to_xla(images):
    lhs, rhs = normal(images, 9, 9, 16), normal(3, 3, 16, 16)
    lowered = jax.jit(lambda *xs: conv(*xs, (1, 1), "SAME")).lower(lhs, rhs).as_text()
    assert ("fer_jax_convolution" in lowered) == (images > 1)


@pytest.mark.slow
@needs_library
@few_examples
@given(
    images=st.integers(2, 5),
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


@pytest.mark.slow
@needs_library
@few_examples
@given(
    images=st.integers(2, 4),
    size=st.tuples(st.integers(9, 16), st.integers(9, 16)),
    channels=st.sampled_from([1, 16, 24, 32]),
    features=st.sampled_from([16, 48]),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from(["SAME", "VALID", ((1, 0), (2, 1))]),
    window=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    strides=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_convolution_relu_and_pooling_in_one_equal_those_in_turn_in_float64(
    images, size, channels, features, kernel, padding, window, strides
):
    lhs, rhs = normal(images, *size, channels), normal(*kernel, channels, features)

    def in_one(lhs, rhs, bias):
        return ops.conv_relu_max_pool(lhs, rhs, bias, padding, window, strides)

    def in_turn(lhs, rhs, bias):
        out = jax.nn.relu(lax_conv(lhs, rhs, (1, 1), padding) + bias[None, None, None])
        return nn.max_pool(out, window, strides)

    assert "fer_jax_pooled" in jax.jit(in_one).lower(lhs, rhs, rhs[0, 0, 0]).as_text()
    assert_equal_to_float64(in_one, in_turn, lhs, rhs, normal(features))


@pytest.mark.slow
@needs_library
@settings(few_examples, max_examples=15)
@given(
    images=st.integers(2, 4),
    size=st.tuples(st.integers(3, 30), st.integers(3, 30)),
    channels=st.sampled_from([16, 32, 64]),
    features=st.sampled_from([16, 32, 96]),
    padding=st.sampled_from(["SAME", "VALID", ((1, 0), (2, 1))]),
)
@example(images=2, size=(26, 26), channels=64, features=64, padding="VALID")  # tiles of 4
@example(images=3, size=(7, 5), channels=128, features=128, padding="SAME")  # of 3
@example(images=3, size=(2, 13), channels=128, features=128, padding="SAME")  # of 2
@example(images=3, size=(3, 3), channels=16, features=32, padding="VALID")  # no tile pays
def test_3x3_convolutions_which_have_fewer_multiplications_equal_lax_in_float64(
    images, size, channels, features, padding
):
    assert_equal_to_float64(
        lambda *xs: conv(*xs, (1, 1), padding),
        lambda *xs: lax_conv(*xs, (1, 1), padding),
        normal(images, *size, channels),
        normal(3, 3, channels, features),
    )


@needs_library
def test_whether_the_processor_is_made_for_it_is_a_truth_value_and_of_the_vendor():
    processor = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert native._library.fer_jax_has_bfloat16() in (False, True)
    if "amx_bf16" not in processor:  # with it, the system decides
        fast = "AuthenticAMD" in processor and "avx512_bf16" in processor
        assert native.has_bfloat16() == fast


@needs_library
@pytest.mark.parametrize(("side", "channels"), [(44, 32), (6, 128)])  # in tiles of 4, and of 3 or 2
def test_3x3_convolutions_round_like_float32(side, channels):
    """Root mean square errors by the scale of the result, of which XLA's are 2e-7 and more."""
    lhs, rhs = normal(8, side + 2, side + 2, channels), normal(3, 3, channels, channels)
    cotangent = normal(8, side, side, channels)

    def all_three(f, lhs, rhs, cotangent):
        out, vjp = jax.vjp(f, lhs, rhs)
        return out, *vjp(cotangent)

    found = all_three(conv, *map(jnp.asarray, (lhs, rhs, cotangent)))
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x, jnp.float64) for x in (lhs, rhs, cotangent)]
        expected = [np.asarray(x) for x in all_three(lax_conv, *arrays)]
    errors = [
        np.sqrt(np.mean((x - y) ** 2) / np.mean(y**2)) for x, y in zip(found, expected, strict=True)
    ]
    assert max(errors[:2]) < 1.2e-6
    assert errors[2] < 5e-6


def rms_error(found, expected):
    return np.sqrt(np.mean((np.asarray(found) - expected) ** 2) / np.mean(expected**2))


@needs_library
def test_factors_in_bfloat16_that_need_no_rounding_give_the_exact_result():
    """Small whole numbers keep all bits in tiles of 2x2, of whose 9 one has no partner."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(-3, 4, (2, 2, 18, 32)), jnp.float32)
    kernel = jnp.asarray(4 * rng.integers(-1, 2, (3, 3, 32, 48)), jnp.float32)

    def all_three(f):
        out, vjp = jax.vjp(f, images, kernel)
        return out, *vjp(jnp.sign(out))

    with native.rounding(True):
        found = all_three(lambda *xs: conv(*xs, padding="SAME"))
    for x, y in zip(found, all_three(lambda *xs: lax_conv(*xs, padding="SAME")), strict=True):
        np.testing.assert_array_equal(x, y)


@needs_library
def test_images_whose_gradients_are_summed_up_together_leave_nothing_to_those_after(monkeypatch):
    """With AMX small images are stacked, here four and then two, in the same place."""
    monkeypatch.setattr(native, "_tasks", lambda: 1)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(-3, 4, (6, 13, 2, 16)), jnp.float32)
    grad = jnp.asarray(4 * rng.integers(-1, 2, (6, 13, 2, 32)), jnp.float32)

    def gradient(f):
        kernel = jnp.zeros((3, 3, 16, 32))
        return jax.vjp(lambda kernel: f(images, kernel, padding="SAME"), kernel)[1](grad)[0]

    with native.rounding(True):
        found = gradient(conv)
    np.testing.assert_array_equal(found, gradient(lax_conv))


@needs_library
@pytest.mark.parametrize(
    ("side", "channels", "error"),
    [(24, 32, 0.014), (6, 256, 0.0045)],  # tiles of 4x4 and of 2x2; without any, less
)
def test_factors_are_rounded_to_bfloat16_and_sums_are_not(side, channels, error):
    """Errors like those of rounding factors to 8 bits, of results that sum up to 2,304 products."""
    lhs, rhs = normal(4, side, side, channels), normal(3, 3, channels, channels)
    cotangent = normal(4, side, side, channels, seed=1)  # not the images over again

    def all_three(f):
        out, vjp = jax.vjp(lambda *xs: f(*xs, padding="SAME"), jnp.asarray(lhs), jnp.asarray(rhs))
        return out, *vjp(jnp.asarray(cotangent))

    with native.rounding(True):
        found = all_three(conv)
    for x, y in zip(found, all_three(lax_conv), strict=True):
        assert 0.002 < rms_error(x, y) < error


@needs_library
@pytest.mark.parametrize("channels", [16, 64])
@pytest.mark.parametrize("size", [(12, 12), (9, 14)], ids=str)
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_gradients_behind_strides_of_2_are_those_of_factors_in_bfloat16(channels, size, padding):
    """There they are computed as if the strides were 1."""
    lhs, rhs = normal(3, *size, channels), normal(3, 3, channels, 32)

    def both(f):
        out, vjp = jax.vjp(lambda *xs: f(*xs, (2, 2), padding), jnp.asarray(lhs), jnp.asarray(rhs))
        return vjp(jnp.asarray(normal(*out.shape)))

    with native.rounding(True):
        found = both(conv)
    for x, y in zip(found, both(lax_conv), strict=True):
        assert rms_error(x, y) < 0.014


@needs_library
@pytest.mark.parametrize(
    ("number", "nearest"),
    [
        (1 + 2**-8, 1.0),  # half way: to the even one
        (1 + 3 * 2**-8, 1 + 2**-6),
        (1 + 2**-8 + 2**-20, 1 + 2**-7),
        (-1 - 2**-8, -1.0),
        (np.inf, np.inf),
    ],
)
def test_a_factor_is_rounded_to_nearest(number, nearest):
    """One pixel and a kernel of one tap: corners of a tile are transformed to themselves."""
    image = np.zeros((2, 4, 4, 16), np.float32)
    image[0, 0, 0, 3] = number
    kernel = np.zeros((3, 3, 16, 16), np.float32)
    kernel[0, 0, 3, 5] = 1
    with native.rounding(True):
        out = conv(jnp.asarray(image), jnp.asarray(kernel))
    if np.isinf(number):
        assert not np.isfinite(out[0, 0, 0, 5])
    else:
        assert out[0, 0, 0, 5] == nearest


@needs_library
@pytest.mark.parametrize("rounded", [False, True])
def test_what_is_not_a_number_stays_so(rounded):
    with native.rounding(rounded):
        _test_what_is_not_a_number_stays_so()


def _test_what_is_not_a_number_stays_so():
    image, kernel = np.zeros((2, 18, 18, 16), np.float32), jnp.ones((3, 3, 16, 16))
    image[0, 9, 9] = np.nan
    for padding in ("VALID", "SAME"):
        out = ops.conv_relu(jnp.asarray(image), kernel, jnp.zeros(16), (1, 1), padding)
        assert np.isnan(out).any()
    assert np.isnan(ops.conv_relu(jnp.asarray(image), kernel[:2], jnp.zeros(16))).any()


@needs_library
@pytest.mark.parametrize("place", range(4))
def test_a_window_with_what_is_not_a_number_is_none(place):
    image = np.ones((2, 4, 4, 16), np.float32)
    image[0, place // 2, place % 2] = np.nan
    kernel = jnp.eye(16, dtype=jnp.float32)[None, None]

    def pooled(image):
        return ops.conv_relu_max_pool(image, kernel, jnp.zeros(16), "VALID", (2, 2), (2, 2))

    for out in (pooled(jnp.asarray(image)), jax.vjp(pooled, jnp.asarray(image))[0]):
        expected = np.ones((2, 2, 2, 16))
        expected[0, 0, 0] = np.nan
        np.testing.assert_array_equal(out, expected)


@pytest.mark.slow
@needs_library
@few_examples
@given(
    size=st.tuples(st.integers(5, 12), st.integers(5, 12)),
    channels=st.sampled_from([1, 16]),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.sampled_from(["SAME", "VALID"]),
)
def test_convolution_and_relu_in_one_equal_those_in_turn_in_float64(
    size, channels, strides, padding
):
    assert_equal_to_float64(
        lambda *xs: ops.conv_relu(*xs, strides, padding),
        lambda x, k, b: jax.nn.relu(lax_conv(x, k, strides, padding) + b[None, None, None]),
        normal(3, *size, channels),
        normal(3, 3, channels, 32),
        normal(32),
    )


@needs_library
def test_where_the_relu_is_zero_no_gradient_passes():
    image, kernel = jnp.ones((2, 4, 4, 16)), jnp.ones((1, 1, 16, 16))
    for bias, passes in ((-17.0, 0), (-16.0, 0), (-15.0, 16)):  # ReLU of -1, 0 and 1, all ties

        def total(image, bias=bias):
            pooled = ops.conv_relu_max_pool(
                image, kernel, jnp.full(16, bias), "VALID", (2, 2), (2, 2)
            )
            return pooled.sum()

        gradient = jax.grad(total)(image)[0, :, :, 0]
        np.testing.assert_array_equal(gradient, np.tile([[passes, 0], [0, 0]], (2, 2)))


@needs_library
def test_gradients_agree_with_finite_differences():
    lhs, rhs = jnp.asarray(normal(2, 6, 6, 16)), jnp.asarray(0.1 * normal(3, 3, 16, 16))
    bias = jnp.asarray(20 + normal(16))  # so large that no ReLU is near its edge
    for f in (
        lambda *xs: ops.conv_relu(*xs, (1, 1), "SAME"),
        lambda *xs: ops.conv_relu_max_pool(*xs, "SAME", (1, 1), (2, 2)),
        lambda lhs, rhs, bias: conv(lhs, rhs) + bias[None, None, None],
    ):
        check_grads(f, (lhs, rhs, bias), order=1, modes=["rev"], rtol=2e-2, eps=1e-2)


@pytest.mark.slow
@needs_library
def test_in_shard_map_a_gradient_is_that_of_one_device():
    lhs, rhs, bias = map(jnp.asarray, (normal(4, 9, 9, 16), normal(3, 3, 16, 32), normal(32)))

    def loss(rhs, bias, lhs):
        pooled = ops.conv_relu_max_pool(lhs, rhs, bias, "SAME", (2, 2), (2, 2))
        return ops.conv_relu(pooled, rhs.swapaxes(2, 3), bias[:16]).sum()

    for check_vma in (False, True):

        def local(rhs, bias, lhs, check_vma=check_vma):
            grads = jax.grad(loss, argnums=(0, 1))(rhs, bias, lhs)
            return grads if check_vma else lax.psum(grads, "batch")

        mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
        sharded = jax.shard_map(
            local, mesh=mesh, in_specs=(P(), P(), P("batch")), out_specs=P(), check_vma=check_vma
        )
        expected = jax.grad(loss, argnums=(0, 1))(rhs, bias, lhs)
        for one, other in zip(jax.jit(sharded)(rhs, bias, lhs), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


@needs_library
def test_one_program_carries_native_code_for_the_cpu_and_xlas_for_accelerators():
    def loss(rhs, lhs):
        pooled = ops.conv_relu_max_pool(lhs, rhs, jnp.zeros(16), "SAME", (2, 2), (2, 2))
        return ops.conv_relu(pooled, rhs, jnp.zeros(16)).sum()

    traced = jax.jit(jax.grad(loss)).trace(jnp.ones((3, 3, 16, 16)), jnp.ones((2, 9, 9, 16)))
    on_cpu, on_cuda = (
        traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda")
    )
    assert "fer_jax_pooled_kernel_gradient" in on_cpu
    assert "fer_jax" not in on_cuda


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
                native.convolution(lhs, rhs, jnp.ones(32), *arguments, relu=True),
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


# Of each function: what it is given and what it gives (shapes; bytes where a B stands first), and
# its attributes. Images are 6x6 with 16 channels, features 32, windows 2x2 with strides of 1.
POOLED = {"padding": [0, 0, 0, 0], "window": [2, 2, 1, 1], "bfloat16": False}
CALLS = {
    "convolution": (
        [(2, 6, 6, 16), (3, 3, 16, 32), (32,)],
        [(2, 4, 4, 32)],
        {"strides": [1, 1], "padding": [0, 0, 0, 0], "relu": True, "bfloat16": False},
    ),
    "transformed_convolution": (
        [(2, 6, 6, 16), (16, 512), (32,)],
        [(2, 4, 4, 32)],
        {"padding": [0, 0, 0, 0], "relu": False},
    ),
    "kernel_gradient": (
        [(2, 6, 6, 16), (2, 4, 4, 32)],
        [(3, 3, 16, 32)],
        {"strides": [1, 1], "padding": [0, 0, 0, 0], "bfloat16": False},
    ),
    "pooled_convolution": (
        [(2, 6, 6, 16), (3, 3, 16, 32), (32,)],
        [(2, 3, 3, 32), ("B", 2, 3, 3, 32)],
        POOLED,
    ),
    "pooled_kernel_gradient": (
        [(2, 6, 6, 16), (2, 3, 3, 32), ("B", 2, 3, 3, 32)],
        [(3, 3, 16, 32)],
        POOLED,
    ),
    "pooled_image_gradient": (
        [(3, 3, 32, 16), (2, 3, 3, 32), ("B", 2, 3, 3, 32)],
        [(2, 6, 6, 16)],
        POOLED | {"padding": [2, 2, 2, 2]},
    ),
    "norm_gradient_sums": (
        [(2, 6, 6, 16), (2, 6, 6, 16), (4, 16)],
        [(2, 16)],
        {"relu": True},
    ),
    "pooled_norm": ([(2, 6, 4, 16), (4, 16)], [(2, 3, 2, 16), ("B", 2, 3, 2, 16)], {}),
    "pooled_norm_gradient_sums": (
        [(2, 6, 4, 16), (2, 3, 2, 16), ("B", 2, 3, 2, 16), (4, 16)],
        [(2, 16)],
        {},
    ),
    "pooled_norm_gradient": (
        [(2, 6, 4, 16), (2, 3, 2, 16), ("B", 2, 3, 2, 16), (4, 16), (2, 16)],
        [(2, 6, 4, 16)],
        {},
    ),
    "depthwise": ([(2, 6, 6, 16), (3, 3, 1, 16)], [(2, 6, 6, 16)], {}),
    "depthwise_kernel_gradient": ([(2, 6, 6, 16), (2, 6, 6, 16)], [(3, 3, 1, 16)], {}),
}


def call(name, arrays, results, attributes):
    def typed(shape):
        return (shape[1:], jnp.int8) if shape[:1] == ("B",) else (shape, jnp.float32)

    out = [jax.ShapeDtypeStruct(*typed(shape)) for shape in results]
    told = {"tasks": np.int64(2)} | attributes
    told = {k: np.asarray(v, np.int64) if isinstance(v, list) else v for k, v in told.items()}
    given = [jnp.ones(*typed(shape)) for shape in arrays]
    return jax.block_until_ready(jax.ffi.ffi_call(f"fer_jax_{name}", out)(*given, **told))


@needs_library
@pytest.mark.parametrize("name", CALLS)
def test_calls_that_are_right_are_not_refused(name):
    call(name, *CALLS[name])


def wrong_shapes(name):
    """Every array of a call with each of its axes in turn a little longer, shorter, or empty."""
    arrays, results, _ = CALLS[name]
    shapes = [*arrays, *results]
    for i, shape in enumerate(shapes):
        for axis, length in enumerate(shape):
            if length == "B":
                continue
            for other in {0, length - 1, length + 1, length + 16}:
                if other or i < len(arrays):  # XLA calls nobody for a result that is empty
                    wrong = (*shape[:axis], other, *shape[axis + 1 :])
                    yield [*shapes[:i], wrong, *shapes[i + 1 :]]


@needs_library
@pytest.mark.parametrize(
    ("images", "result"),
    [
        ((2, 6, 6, 16), (2, 32)),
        ((2, 6, 6, 16), (3, 16)),
        ((2, 6, 6, 17), (2, 17)),
        ((0, 6, 6, 16), (2, 16)),
    ],
    ids=str,
)
def test_moments_of_other_shapes_are_refused(images, result):
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"INVALID_ARGUMENT.*fer_jax: .* must"):
        call("moments", [images], [result], {})


@needs_library
@pytest.mark.parametrize("name", CALLS)
def test_wrong_shapes_are_refused(name):
    arrays, _, attributes = CALLS[name]
    for shapes in wrong_shapes(name):
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"INVALID_ARGUMENT.*fer_jax: .* must"):
            call(name, shapes[: len(arrays)], shapes[len(arrays) :], attributes)


@needs_library
@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        *((name, "tasks", tasks) for name in CALLS for tasks in map(np.int64, (0, -1, 2**40))),
        *(
            ("convolution", "strides", value)
            for value in ([1], [0, 1], [1, -1], [1, 1, 1], [2**62, 1], [2, 1])
        ),
        *(
            (name, "padding", value)
            for name in CALLS
            if "padding" in CALLS[name][2]
            for value in ([0, 0], [-1, 0, 0, 0], [0, 0, 0, 2**62], [2**24] * 4, [3, 2, 2, 2])
        ),
        *(
            (name, "window", value)
            for name in CALLS
            if "window" in CALLS[name][2]
            for value in ([2, 2], [0, 2, 1, 1], [2, 2, 0, 1], [5, 2, 1, 1], [2, 2, 1, 2])
        ),
    ],
)
def test_wrong_attributes_are_refused(name, attribute, value):
    arrays, results, attributes = CALLS[name]
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"INVALID_ARGUMENT.*fer_jax: .* must"):
        call(name, arrays, results, attributes | {attribute: value})


@needs_library
def test_windows_that_an_int8_cannot_count_are_refused():
    arrays = [(1, 18, 18, 16), (1, 1, 16, 16), (16,)]
    attributes = POOLED | {"window": [16, 8, 1, 1]}
    with pytest.raises(jax.errors.JaxRuntimeError, match="size is 128; it must be 1 to 127"):
        call("pooled_convolution", arrays, [(1, 3, 11, 16), ("B", 0, 0, 0, 0)], attributes)


@needs_library
@pytest.mark.parametrize("argmax", [-128, -1, 4, 127])
def test_an_argmax_out_of_its_window_lets_no_gradient_pass(argmax):
    pool = native.Pool((2, 2), (2, 2))
    grad, index = jnp.ones((2, 2, 2, 32)), jnp.full((2, 2, 2, 32), argmax, jnp.int8)
    images = jnp.ones((2, 6, 6, 16))
    gradient = native.pooled_kernel_gradient(
        images, grad, index, (3, 3, 16, 32), ((0, 0), (0, 0)), pool
    )
    np.testing.assert_array_equal(gradient, 0)


@needs_library
@pytest.mark.parametrize("argmax", [-128, -1, 4, 127])
def test_behind_a_normalisation_neither(argmax):
    grad, index = jnp.ones((2, 2, 2, 32)), jnp.full((2, 2, 2, 32), argmax, jnp.int8)
    images, table = jnp.ones((2, 4, 4, 32)), jnp.ones((4, 32))
    sums = native.pooled_norm_gradient_sums(images, grad, index, table)
    np.testing.assert_array_equal(sums, 0)
    gradient = native.pooled_norm_gradient(images, grad, index, table, sums)
    np.testing.assert_array_equal(gradient, 0)


@needs_library
def test_a_bias_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"bias has shape \(1,\); it must be \(16,\)"):
        ops.conv_relu(jnp.ones((1, 5, 5, 16)), jnp.ones((3, 3, 16, 16)), jnp.ones(1))


@needs_library
def test_nothing_is_loaded_while_a_network_is_traced(monkeypatch):
    monkeypatch.setattr(native, "_library", None)
    monkeypatch.setattr(native.build, "library", None)
    lowered = jax.jit(conv).lower(jnp.ones((1, 5, 5, 16)), jnp.ones((3, 3, 16, 16)))
    assert "fer_jax_convolution" not in lowered.as_text()
