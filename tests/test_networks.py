"""What holds for every network of the registry: a new one is tested by its line there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from fer_jax import config as config_lib
from fer_jax import models
from fer_jax.errors import ConfigError
from fer_jax.labels import IMAGE_SHAPE
from fer_jax.machine import devices
from fer_jax.machine.devices import BATCH_AXIS
from fer_jax.models import contract, layers, summary

SLOW_TO_TRACE = {"googlenet", "resnet50", "xception"}
QUICK_TO_COMPILE = {"arch02", "tiny"}
TOO_LARGE_TO_RUN = {"alexnet", "caffenet", "googlenet", "gudi", "resnet18", "resnet50", "xception"}


def _model(name, num_classes=7, axis_name=None, dtype=None, **changes):
    config = config_lib.get_config().model
    if name == "family":
        changes = {"conv_layers": 3, "hidden_layers": 1} | changes
    config.update({"name": name, **changes})
    model = models.create_model(config, num_classes, axis_name)
    return model.clone(dtype=jnp.dtype(dtype)) if dtype and hasattr(model, "dtype") else model


def _apply(model, train, variables, images):
    return model.apply(
        variables,
        images,
        train=train,
        rngs={"dropout": jax.random.key(1)},
        mutable=["batch_stats", "aux_logits"] if train else [],
    )


def _slow_if(slow, *values):
    return pytest.param(*values, marks=pytest.mark.slow if slow else [])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        _slow_if(name in SLOW_TO_TRACE, name, dtype)
        for dtype in ("float32", "bfloat16")
        for name in models.MODELS
    ],
)
def test_shapes_and_dtypes_in_both_modes(name, dtype):
    model = _model(name, num_classes=5, dtype=dtype)
    variables = summary.variable_shapes(model)
    images = jax.ShapeDtypeStruct((3, *IMAGE_SHAPE), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    for train in (False, True):
        apply = functools.partial(_apply, model, train)
        logits, new = jax.eval_shape(apply, variables, images)
        assert (logits.shape, logits.dtype) == ((3, 5), jnp.float32)
        if train:
            stats = [jax.tree.map(jnp.shape, v.get("batch_stats")) for v in (new, variables)]
            assert stats[0] == stats[1]
            aux = jax.tree.leaves(new.get("aux_logits"))
            assert {(a.shape, a.dtype) for a in aux} <= {((3, 5), jnp.dtype("float32"))}


@pytest.mark.parametrize("name", [_slow_if(name in SLOW_TO_TRACE, name) for name in models.MODELS])
def test_rows_of_the_table_sum_to_the_total(name):
    model = _model(name)
    rows = summary.layer_table(model)
    assert sum(row.parameters for row in rows) == summary.parameter_counts(model)[0]
    assert not [row.name for row in rows if row.name == "other"]
    assert len({row.name for row in rows}) == len(rows)
    assert summary.flops(model) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        _slow_if(name not in QUICK_TO_COMPILE, name)
        for name in models.MODELS
        if name not in TOO_LARGE_TO_RUN
    ],
)
def test_two_devices_train_as_one_does(name):
    model = _model(name, axis_name=BATCH_AXIS)
    images = np.random.default_rng(0).uniform(size=(4, *IMAGE_SHAPE)).astype(np.float32)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *IMAGE_SHAPE)), train=False)

    def train_on(count):
        mapped = jax.shard_map(
            functools.partial(_apply, model, True, variables),
            mesh=devices.create_mesh(count, 4),
            in_specs=P(BATCH_AXIS),
            out_specs=(P(BATCH_AXIS), P()),
            check_vma=False,
        )
        return jax.device_get(jax.jit(mapped)(images))

    (one, one_stats), (two, two_stats) = train_on(1), train_on(2)
    np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-3)
    assert np.abs(one[:2] - one[2:]).max() > 1e-3  # the test would see examples exchanged
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), two_stats, one_stats
    )


# ------------------------------------------------------------- networks that break the contract


class _Network(nn.Module):
    num_classes: int = 7
    axis_name: str | None = None

    def inner(self, x, train):
        return x

    @nn.compact
    def __call__(self, images, *, train):
        x = self.inner(images.reshape(len(images), -1), train)
        return nn.Dense(self.num_classes, name="logits")(x)


class _NoClasses(_Network):
    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(7)(images.reshape(len(images), -1))


class _Half(_Network):
    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(7, dtype=jnp.bfloat16)(images.reshape(len(images), -1))


class _HalfParameters(_Network):
    @nn.compact
    def __call__(self, images, *, train):
        scale = self.param("scale", nn.initializers.ones_init(), (7,), jnp.bfloat16)
        x = nn.Dense(7)(images.reshape(len(images), -1))
        return x * scale[None].astype(jnp.float32)


class _Pair(_Network):
    @nn.compact
    def __call__(self, images, *, train):
        logits = nn.Dense(7)(images.reshape(len(images), -1))
        return logits, logits


class _Positional(_Network):
    @nn.compact
    def __call__(self, images, train=True):
        return nn.Dense(7)(images.reshape(len(images), -1))


class _Untrained(_Network):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(7)(images.reshape(len(images), -1))


class _FlaxNorm(_Network):
    def inner(self, x, train):
        return nn.BatchNorm(use_running_average=not train, name="norm1")(x)


class _FlaxDropout(_Network):
    def inner(self, x, train):
        return nn.Dropout(0.5, deterministic=not train, name="drop")(x)


class _AxisKept(_Network):
    def inner(self, x, train):
        return layers.Dropout(0.5, name="drop")(x, train=train)


class _NoAxis(nn.Module):
    num_classes: int = 7

    @nn.compact
    def __call__(self, images, *, train):
        x = layers.BatchNorm(name="norm1")(images.reshape(len(images), -1), train=train)
        return nn.Dense(self.num_classes)(x)


class _Collection(_Network):
    def inner(self, x, train):
        self.variable("cache", "seen", jnp.zeros, ())
        return x


@pytest.mark.parametrize(
    ("network", "num_classes", "message"),
    [
        (_Untrained, 7, r"_Untrained is called with \(self, images\); it must be \(self, images, "),
        (_Positional, 7, r"called with \(self, images, train=True\)"),
        (_NoClasses, 5, r"returns float32 \[2, 7\] for 2 images; it must be float32 \[2, 5\]"),
        (_Half, 7, r"returns bfloat16 \[2, 7\]"),
        (_HalfParameters, 7, r"has bfloat16 variables .*scale"),
        (_Pair, 7, "returns tuple for 2 images"),
        (_FlaxNorm, 7, r"uses flax.linen.BatchNorm \(`norm1`\).*layers\.BatchNorm"),
        (_FlaxDropout, 7, r"uses flax.linen.Dropout \(`drop`\).*layers\.Dropout"),
        (_AxisKept, 7, "does not pass its `axis_name` on to `drop`"),
        (_NoAxis, 7, "has no field `axis_name`, which its `norm1` needs"),
        (_Collection, 7, "has variables cache; only params and batch_stats are kept"),
    ],
)
def test_a_network_that_breaks_the_contract_is_refused_in_one_line(
    monkeypatch, network, num_classes, message
):
    monkeypatch.setitem(models.MODELS, "wrong", network)
    for axis_name in (None, BATCH_AXIS):
        with pytest.raises(ConfigError, match=message) as error:
            _model("wrong", num_classes, axis_name)
        assert "\n" not in str(error.value)
        assert "docs/architecture.md" in str(error.value)


@pytest.mark.parametrize("name", ["arch02", "compact"])
def test_the_contract_holds_with_activations_in_bfloat16(name):
    contract.check(_model(name, dtype="bfloat16"), 7)


def test_a_plain_network_keeps_the_contract(monkeypatch):
    monkeypatch.setitem(models.MODELS, "plain", _Network)
    assert _model("plain", 5, BATCH_AXIS) == _Network(5, BATCH_AXIS)


@pytest.mark.slow
def test_bfloat16_is_near_float32_in_a_program_of_its_own():
    images = jnp.asarray(np.random.default_rng(0).random((2, *IMAGE_SHAPE), np.float32))
    half, single = (_model("compact", dtype=dtype) for dtype in ("bfloat16", "float32"))
    variables = jax.jit(functools.partial(single.init, train=False))(jax.random.key(0), images)
    outputs = [
        jax.jit(functools.partial(model.apply, train=False))(variables, images)
        for model in (half, single)
    ]
    np.testing.assert_allclose(*outputs, atol=0.1)  # logits of about 1, to two or three digits


def test_fields_that_a_network_does_not_have_are_refused():
    with pytest.raises(ConfigError, match=r"width is only for .*`compact`; `arch02` has no such"):
        _model("arch02", width=32)
    with pytest.raises(ConfigError, match="width is 24; it must be 16, 32"):
        _model("compact", width=24)


# ----------------------------------------------------------------------------------- `compact`


def test_compact_keeps_its_budget():
    model = _model("compact")
    pairs = [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256)]
    kernels = sum(9 * a * b for a, b in pairs)
    total, trained = summary.parameter_counts(model)
    assert total == kernels + 4 * sum(b for _, b in pairs) + 257 * 7 == 1_176_359 <= 1.5e6
    assert trained == total - 2 * sum(b for _, b in pairs) == 1_174_439
    flops = sum(2 * (48 // 2 ** (i // 2)) ** 2 * 9 * a * b for i, (a, b) in enumerate(pairs))
    assert summary.flops(model) == flops + 2 * 256 * 7 <= 250e6


@pytest.mark.slow
def test_compacts_options_change_what_they_say():
    plain = _model("compact", width=16)
    key, images = jax.random.key(0), jnp.ones((2, *IMAGE_SHAPE))
    kinds = lambda model: [row.kind for row in summary.layer_table(model)]  # noqa: E731
    blurred = _model("compact", width=16, blur_pool=True)
    assert kinds(blurred) == [k.replace("MaxPool", "BlurPool") for k in kinds(plain)]
    assert kinds(blurred).count("BlurPool") == 3
    excited = _model("compact", width=16, squeeze_excitation=True)
    assert kinds(excited).count("SqueezeExcitation") == 4

    # Without its second convolution a stage gives nothing, or its first activations.
    variables = jax.jit(functools.partial(plain.init, train=False))(key, images)
    params = {
        name: jax.tree.map(jnp.zeros_like, leaf) if name.endswith("_2") else leaf
        for name, leaf in variables["params"].items()
    }
    residual = _model("compact", width=16, residual=True)
    for model, silent in ((plain, True), (residual, False)):
        logits = model.apply(variables | {"params": params}, images, train=False)
        assert (np.abs(logits).max() == 0) == silent

    dirac = _model("compact", width=16, dirac_init=True)
    kernel = jax.jit(functools.partial(dirac.init, train=False))(key, images)
    kernel = kernel["params"]["conv2_2"]["kernel"]
    np.testing.assert_array_equal(kernel[1, 1], np.eye(32))
