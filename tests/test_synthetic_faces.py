"""Drawn faces, and the builder that keeps them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fer_jax.config import get_config
from fer_jax.data import drawn as faces
from fer_jax.labels import CLASSES
from fer_jax.models import create_model

ANGER, DISGUST, FEAR, HAPPINESS, SADNESS, SURPRISE, NEUTRAL = range(7)


@pytest.fixture(scope="module")
def splits():
    return faces.draw_splits({"train": 700, "valid": 70, "test": 70})


def test_images_are_grey_bytes_that_use_the_range():
    images = faces.draw_faces(np.arange(140) % 7)
    assert images.shape == (140, 48, 48, 1)
    assert images.dtype == np.uint8
    assert images.min() < 10
    assert images.max() > 245
    assert images.std((1, 2, 3)).min() > 5  # none is blank
    assert faces.draw_faces(np.zeros(0, np.int64)).shape == (0, 48, 48, 1)


@given(
    labels=st.lists(st.integers(0, 6), min_size=2, max_size=80),
    seed=st.integers(0, 2**31 - 1),
    first=st.integers(0, 10_000),
    data=st.data(),
)
@settings(max_examples=10, deadline=None)
def test_an_image_is_a_function_of_seed_index_and_label(labels, seed, first, data):
    labels = np.array(labels)
    images = faces.draw_faces(labels, seed, first)
    start = data.draw(st.integers(0, len(labels) - 1))
    np.testing.assert_array_equal(
        faces.draw_faces(labels[start:], seed, first + start), images[start:]
    )
    assert not np.array_equal(faces.draw_faces(labels, seed + 1, first), images)


def test_every_expression_changes_the_same_person():
    for index in range(10):
        people = [faces.draw_faces(np.array([label]), 0, index) for label in range(7)]
        assert len({person.tobytes() for person in people}) == 7
        # Noise, light and background stay: most pixels hardly move.
        moved = [np.abs(person.astype(int) - people[NEUTRAL]) > 8 for person in people[:NEUTRAL]]
        assert all(0.005 < share.mean() < 0.4 for share in moved)


def _mean_measures(label: int) -> dict[str, float]:
    random = faces._Random(0, range(200))
    measures = faces._measures(np.full(200, label), random)
    return {name: float(value.mean()) for name, value in measures.items()}


def test_expressions_move_the_features_that_define_them():
    neutral, *shown = (_mean_measures(label) for label in (NEUTRAL, *range(6)))
    change = [{name: value[name] - neutral[name] for name in value} for value in shown]
    assert change[HAPPINESS]["corner_y"] < -2  # y points down
    assert change[SADNESS]["corner_y"] > 2
    assert change[SADNESS]["brow_inner_y"] < change[SADNESS]["brow_outer_y"] - 0.5
    assert change[SURPRISE]["brow_inner_y"] < -2
    assert change[SURPRISE]["open_down"] > 2
    assert change[ANGER]["brow_inner_y"] > 1
    assert change[ANGER]["lip_up"] < -0.3
    assert change[FEAR]["eye_up"] > 1
    assert change[FEAR]["mouth_half_width"] > 1
    assert change[DISGUST]["nose_wrinkle"] > 0.5
    assert change[DISGUST]["eye_down"] < 0


def test_splits_are_balanced_shuffled_and_apart(splits):
    for split, (images, labels, ids) in splits.items():
        assert images.shape == (len(labels), 48, 48, 1)
        assert labels.dtype == np.uint8
        assert np.ptp(np.bincount(labels, minlength=len(CLASSES))) <= 1
        assert (np.diff(labels.astype(int)) < 0).sum() > len(labels) / 4
        assert ids.dtype.kind == "S"
        assert len(set(ids.tolist())) == len(labels)
        assert ids[3] == f"{split}_00003".encode()
    every = [image.tobytes() for images, _, _ in splits.values() for image in images]
    assert len(set(every)) == len(every)


def test_the_drawing_is_the_one_of_this_version():
    # Where this changes, dataset.VERSIONS["synthetic_faces"] must change too.
    images = faces.draw_faces(np.arange(7))
    means = [101.96, 106.79, 85.57, 162.45, 62.33, 146.54, 112.88]
    spreads = [38.07, 29.28, 67.6, 50.45, 37.05, 61.18, 64.59]
    np.testing.assert_allclose(images.mean((1, 2, 3)), means, atol=0.1)
    np.testing.assert_allclose(images.std((1, 2, 3)), spreads, atol=0.1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 7], "0 to 7; allowed are 0 to 6"),
        ([-1, 3], "-1 to 3; allowed are 0 to 6"),
        ([0.0, 1.0], "must be `.n.` integers, not float64"),
        ([[0, 1]], r"must be `.n.` integers, not int64\[1, 2\]"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        faces.draw_faces(np.array(labels))


def _best_accuracy(apply, params, splits, epochs: int) -> float:
    """Trains with Adam at 1e-3, batch 96; returns the best epoch's accuracy on `test`."""
    (images, labels, _), (test_images, test_labels, _) = splits["train"], splits["test"]
    labels = labels.astype(np.int32)
    tx = optax.adam(1e-3)

    def scale(images):
        return images.astype(jnp.float32) / 255

    @jax.jit
    def step(params, opt_state, images, labels, key):
        def loss(params):
            logits = apply(params, scale(images), key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        grads = jax.grad(loss)(params)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 and float32
            updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    predict = jax.jit(lambda params, images: apply(params, scale(images), None).argmax(-1))
    opt_state, best = tx.init(params), 0.0
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(len(labels))
        for i in range(len(order) // 96):
            batch = order[96 * i : 96 * (i + 1)]
            key = jax.random.fold_in(jax.random.key(epoch), i)
            params, opt_state = step(params, opt_state, images[batch], labels[batch], key)
        accuracy = (np.asarray(predict(params, test_images)) == test_labels).mean()
        best = max(best, float(accuracy))
    return best


@pytest.mark.slow
def test_architecture_02_learns_them_and_a_linear_model_does_clearly_worse():
    splits = faces.draw_splits()
    model = create_model(get_config().model)

    def network(variables, images, key):
        if key is None:
            return model.apply(variables, images, train=False)
        return model.apply(variables, images, train=True, rngs={"dropout": key})

    def linear(params, images, key):
        del key
        kernel, bias = params
        return (images.reshape(len(images), -1) - 0.5) @ kernel + bias[None]

    variables = model.init(jax.random.key(0), jnp.zeros((1, 48, 48, 1)), train=False)
    zeros = (jnp.zeros((48 * 48, 7)), jnp.zeros(7))
    network_accuracy = _best_accuracy(network, variables, splits, epochs=8)
    linear_accuracy = _best_accuracy(linear, zeros, splits, epochs=100)  # its best: early stopping
    print(f"Architecture 02: {network_accuracy:.3f}, linear: {linear_accuracy:.3f}")
    assert network_accuracy >= 0.8
    assert 0.3 <= linear_accuracy <= network_accuracy - 0.15


@pytest.mark.slow
def test_the_builder_keeps_what_is_drawn(tmp_path):
    import tensorflow_datasets as tfds

    from fer_jax.data import load_dataset, register

    register()

    config = get_config().data
    with config.unlocked():
        config.update(name="synthetic_faces", data_dir=str(tmp_path))
    dataset = load_dataset(config)
    assert (dataset.name, dataset.kind) == ("synthetic_faces", "synthetic_faces")
    assert len(dataset.source_sha256) == 64
    drawn = faces.draw_splits()
    assert {name: len(split.labels) for name, split in dataset.splits.items()} == faces.COUNTS
    for name, split in dataset.splits.items():
        images, labels, ids = drawn[name]
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)
        np.testing.assert_array_equal(split.ids, ids)
        assert not split.in_train.any()
    records = tfds.load("synthetic_faces", split="test", data_dir=tmp_path, download=False)
    for record, image, label, identity in zip(tfds.as_numpy(records), *drawn["test"], strict=True):
        np.testing.assert_array_equal(record["image"], image)
        assert (record["label"], record["id"]) == (label, identity)
