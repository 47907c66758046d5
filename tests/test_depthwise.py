import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fer_jax.ops import native
from fer_jax.ops.depthwise import depthwise_conv


def _reference(images, kernel):
    return lax.conv_general_dilated(
        images,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
        precision="highest",
    )


# Rows of fewer numbers than a vector has, of whole vectors, and of a part of one at their end.
SHAPES = [(1, 1, 1, 3), (3, 2, 5, 1), (2, 4, 4, 16), (3, 8, 8, 8), (5, 7, 4, 6), (2, 3, 3, 40)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("in_library", [True, False])
def test_output_and_gradients_are_xlas(shape, in_library, monkeypatch):
    if in_library and not native.load():
        pytest.skip("no C++ compiler here")
    monkeypatch.setattr(native, "available", lambda: in_library)
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, shape[-1])), jnp.float32)
    grad = jnp.asarray(rng.normal(size=shape), jnp.float32)

    def run(conv):
        output, vjp = jax.vjp(conv, images, kernel)
        return output, *vjp(grad)

    ours = jax.jit(lambda: run(lambda x, k: depthwise_conv(x, k, (1, 1), "SAME"))).lower()
    fits = shape[2] * shape[3] >= native.CHANNELS
    assert ("fer_jax_depthwise_kernel_gradient" in ours.as_text()) == (in_library and fits)
    for mine, theirs in zip(ours.compile()(), jax.jit(lambda: run(_reference))(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_do_is_refused():
    images, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))
    with pytest.raises(ValueError, match=r"strides \(2, 2\)"):
        depthwise_conv(images, kernel, (2, 2), "SAME")
    with pytest.raises(ValueError, match="padding is 'VALID'"):
        depthwise_conv(images, kernel, (1, 1), "VALID")
    with pytest.raises(ValueError, match=r"kernel \(5, 5, 1, 2\).*needs \(3, 3, 1, 2\)"):
        depthwise_conv(images, jnp.ones((5, 5, 1, 2)), (1, 1), "SAME")
