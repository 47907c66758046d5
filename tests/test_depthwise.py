import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fer_jax.depthwise import depthwise_conv


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


@pytest.mark.parametrize("shape", [(5, 7, 4, 6), (1, 1, 1, 3), (3, 2, 5, 1)])
def test_output_and_gradients_are_xlas(shape):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 1, shape[-1])), jnp.float32)
    grad = jnp.asarray(rng.normal(size=shape), jnp.float32)

    def run(conv):
        output, vjp = jax.vjp(conv, images, kernel)
        return output, *vjp(grad)

    ours = jax.jit(lambda: run(lambda x, k: depthwise_conv(x, k, (1, 1), "SAME")))()
    for mine, theirs in zip(ours, jax.jit(lambda: run(_reference))(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_do_is_refused():
    images, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2))
    with pytest.raises(ValueError, match=r"strides \(2, 2\)"):
        depthwise_conv(images, kernel, (2, 2), "SAME")
    with pytest.raises(ValueError, match="padding is 'VALID'"):
        depthwise_conv(images, kernel, (1, 1), "VALID")
    with pytest.raises(ValueError, match=r"kernel \(5, 5, 1, 2\).*needs \(3, 3, 1, 2\)"):
        depthwise_conv(images, jnp.ones((5, 5, 1, 2)), (1, 1), "SAME")
