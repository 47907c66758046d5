import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from fer_jax import config as config_lib
from fer_jax import models
from fer_jax.models import layers, summary
from fer_jax.ops import native


def _model(name, **changes):
    config = config_lib.get_config().model
    config.update({"name": name, **changes})
    return models.create_model(config)


# Figures 6 to 8 of the study: the sides of the feature maps, the flattened length, the parameters.
@pytest.mark.parametrize(
    ("name", "sides", "flat", "parameters"),
    [
        ("arch01", [44, 20, 18, 16, 7, 5, 3, 1], 128, 1_485_831),
        ("arch02", [46, 23, 21, 10], 3200, 420_199),
        ("arch03", [46, 44, 22, 20, 18, 9, 7, 5, 2], 512, 290_023),
    ],
)
def test_table_is_the_studys(name, sides, flat, parameters):
    rows = summary.layer_table(_model(name))
    assert [row.shape[0] for row in rows if len(row.shape) == 3] == sides
    assert [row.shape for row in rows if row.kind == "Flatten"] == [(flat,)]
    assert sum(row.parameters for row in rows) == parameters
    assert summary.parameter_counts(_model(name)) == (parameters, parameters)


def test_rows_name_layers_in_the_order_of_the_studys_figure_7():
    rows = summary.layer_table(_model("arch02"))
    assert rows == [
        ("conv1", "ConvRelu", (46, 46, 32), 320),
        ("pool1", "MaxPool", (23, 23, 32), 0),
        ("conv2", "ConvRelu", (21, 21, 32), 9_248),
        ("pool2", "MaxPool", (10, 10, 32), 0),
        ("flatten", "Flatten", (3200,), 0),
        ("dense1", "Dense", (128,), 409_728),
        ("dropout1", "Dropout", (128,), 0),
        ("logits", "Dense", (7,), 903),
    ]


def test_flops_of_architecture_02_by_hand():
    convolutions = 46 * 46 * 32 * 9 + 21 * 21 * 32 * 9 * 32
    fully_connected = 3200 * 128 + 128 * 7
    assert summary.flops(_model("arch02")) == 2 * (convolutions + fully_connected)


@pytest.mark.parametrize("name", ["arch01", "arch03"])
def test_flops_are_most_of_what_xla_counts(name, monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)  # XLA does not see into the library
    model = _model(name)
    variables = summary.variable_shapes(model)
    images = jax.ShapeDtypeStruct((1, 48, 48, 1), jnp.float32)
    compiled = jax.jit(lambda v, x: model.apply(v, x, train=False)).lower(variables, images)
    counted = compiled.cost_analysis()["flops"]
    assert 0.95 * counted < summary.flops(model) <= counted


def test_flops_leave_out_what_only_training_uses():
    class TwoHeads(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            x = images.reshape(images.shape[0], -1)
            if train or self.is_initializing():
                nn.Dense(5, name="extra")(x)
            return nn.Dense(7, name="logits")(x)

    assert summary.flops(TwoHeads()) == 2 * 48 * 48 * 7
    assert [row.name for row in summary.layer_table(TwoHeads())] == ["extra", "logits"]


class _Odd(nn.Module):
    """A layer that the table does not know, and one that is called twice."""

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(images.shape[0], -1)
        again = nn.Dense(48 * 48, name="again")
        x = nn.LayerNorm(name="unknown")(again(again(x)))
        return nn.Dense(7, name="logits")(x)


def test_rows_sum_to_the_total_where_layers_are_unknown_or_called_twice():
    rows = summary.layer_table(_Odd())
    again = 48 * 48 * (48 * 48 + 1)
    assert [(row.name, row.parameters) for row in rows] == [
        ("again", again),
        ("again", 0),
        ("logits", 7 * (48 * 48 + 1)),
        ("other", 2 * 48 * 48),
    ]
    assert sum(row.parameters for row in rows) == summary.parameter_counts(_Odd())[0]
    assert f"{2 * 48 * 48:,}" in summary.format_table(_Odd())


def test_text_has_the_totals():
    text = summary.format_table(_model("arch02"))
    assert "420,199" in text
    assert "running statistics: 0" in text
    assert "46 x 46 x 32" in text


@pytest.mark.parametrize("name", ["arch01", "fathallah"])
def test_the_type_of_activations_changes_no_count(name):
    half = _model(name).clone(dtype=jnp.bfloat16)
    assert summary.flops(half) == summary.flops(_model(name))
    assert summary.layer_table(half) == summary.layer_table(_model(name))


def test_a_pooling_inside_a_part_of_a_network_has_that_parts_path():
    class Part(nn.Module):
        @nn.compact
        def __call__(self, images):
            x = layers.ConvReluMaxPool(16, (3, 3), name="conv1", pool_name="pool1")(images)
            return layers.BatchNorm(name="norm2", pool_name="pool2")(x, train=False)

    class Whole(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return Part(name="part")(images)

    rows = summary.layer_table(Whole())
    assert [(row.name, row.kind, row.shape) for row in rows] == [
        ("part/conv1", "ConvRelu", (48, 48, 16)),
        ("part/pool1", "MaxPool", (24, 24, 16)),
        ("part/norm2", "BatchNorm", (24, 24, 16)),
        ("part/pool2", "MaxPool", (12, 12, 16)),
    ]
