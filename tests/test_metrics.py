import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import metrics

LOGITS = np.array(
    [
        [4, 0, 0, 0, 0, 0, 0],  # Anger, right
        [4, 0, 0, 0, 0, 0, 0],  # Fear taken for Anger
        [0, 0, 0, 3, 0, 0, 0],  # Happiness, right
        [0, 0, 0, 0, 0, 0, 2],  # Sadness taken for Neutral
        [0, 0, 0, 0, 0, 0, 2],  # Neutral, right
    ],
    np.float32,
)
LABELS = np.array([0, 2, 3, 4, 6], np.int32)


def numbers(logits, labels, mask=None):
    mask = np.ones(len(labels), bool) if mask is None else mask
    return metrics.compute(metrics.batch_sums(jnp.asarray(logits), jnp.asarray(labels), mask))


def test_metrics_of_a_case_worked_out_by_hand():
    found = numbers(LOGITS, LABELS)
    log_sums = np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=1))
    loss = np.mean(log_sums - LOGITS[np.arange(5), LABELS])
    assert found["loss"] == pytest.approx(loss, rel=1e-6)
    assert found["accuracy"] == pytest.approx(3 / 5)
    # Two wrong images, each a false negative of one class and a false positive of another.
    assert found["one_vs_rest_accuracy"] == pytest.approx(1 - 4 / 5 / 7)
    assert found["one_vs_rest_accuracy"] == pytest.approx(1 - 2 * (1 - 3 / 5) / 7)
    # F1 of Anger 2/3, Happiness 1, Neutral 2/3; the other four 0.
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 7)
    assert found["recall"] == {
        "Anger": 1.0,
        "Disgust": None,
        "Fear": 0.0,
        "Happiness": 1.0,
        "Sadness": 0.0,
        "Surprise": None,
        "Neutral": 1.0,
    }
    confusion = np.zeros((7, 7), int)
    confusion[[0, 2, 3, 4, 6], [0, 0, 3, 6, 6]] = 1
    assert found["confusion"] == confusion.tolist()
    assert found["count"] == 5


def test_the_studys_own_confusion_matrix_gives_its_own_accuracies():
    table_3 = np.array(
        [
            [161, 4, 75, 65, 76, 10, 76],
            [9, 19, 6, 5, 10, 0, 7],
            [41, 1, 187, 49, 91, 47, 80],
            [26, 0, 33, 709, 36, 16, 75],
            [46, 2, 81, 79, 274, 21, 150],
            [16, 1, 46, 37, 7, 292, 16],
            [37, 0, 43, 83, 71, 18, 355],
        ]
    )
    found = metrics.compute(metrics.Sums(np.float32(0), table_3))
    assert found["count"] == 3589
    assert found["accuracy"] == pytest.approx(1997 / 3589)
    assert found["one_vs_rest_accuracy"] == pytest.approx(0.873, abs=5e-4)


def test_masked_images_do_not_count_even_if_their_loss_is_nan():
    logits = np.concatenate([LOGITS, np.full((2, 7), np.nan, np.float32)])
    labels = np.concatenate([LABELS, [0, 1]]).astype(np.int32)
    mask = np.array([True] * 5 + [False] * 2)
    assert numbers(logits, labels, mask) == numbers(LOGITS, LABELS)


def test_sums_of_parts_are_the_sum_of_the_whole():
    parts = [
        metrics.batch_sums(LOGITS[s], LABELS[s], np.ones(len(LABELS[s]), bool))
        for s in (slice(0, 2), slice(2, 5))
    ]
    total = metrics.create_sums() + parts[0] + parts[1]
    whole = metrics.batch_sums(LOGITS, LABELS, np.ones(5, bool))
    np.testing.assert_array_equal(total.confusion, whole.confusion)
    np.testing.assert_allclose(total.loss, whole.loss, rtol=1e-6)


def test_jitted_sums_equal_unjitted_ones():
    mask = np.ones(5, bool)
    with jax.disable_jit():
        plain = metrics.batch_sums(jnp.asarray(LOGITS), jnp.asarray(LABELS), mask)
    jitted = jax.jit(metrics.batch_sums)(LOGITS, LABELS, mask)
    np.testing.assert_array_equal(plain.confusion, jitted.confusion)
    np.testing.assert_allclose(plain.loss, jitted.loss, rtol=1e-6)


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="no image"):
        metrics.compute(metrics.create_sums())
