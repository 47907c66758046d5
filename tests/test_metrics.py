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
LABELS = np.array([0, 2, 3, 4, 6], np.uint8)


LOG_PROBS = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=1, keepdims=True))


def test_metrics_of_a_case_worked_out_by_hand():
    found = metrics.compute(LABELS, LOG_PROBS)
    log_sums = np.log(np.exp(LOGITS.astype(np.float64)).sum(axis=1))
    loss = np.mean(log_sums - LOGITS[np.arange(5), LABELS])
    assert found["loss"] == pytest.approx(loss, rel=1e-12)
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
    labels, predicted = (
        np.repeat(side, table_3.ravel()) for side in np.indices((7, 7)).reshape(2, -1)
    )
    found = metrics.compute(labels, np.log(np.eye(7)[predicted] + 1e-9))
    assert found["confusion"] == table_3.tolist()
    assert found["count"] == 3589
    assert found["accuracy"] == pytest.approx(1997 / 3589)
    assert found["one_vs_rest_accuracy"] == pytest.approx(0.873, abs=5e-4)


def test_images_left_out_do_not_count_even_if_their_loss_is_nan():
    log_probs = np.concatenate([LOG_PROBS, np.full((2, 7), np.nan)])
    labels = np.concatenate([LABELS, [0, 1]])
    where = np.array([True] * 5 + [False] * 2)
    assert metrics.compute(labels, log_probs, where) == metrics.compute(LABELS, LOG_PROBS)


def test_the_sum_over_many_images_is_taken_in_float64():
    count = 2**20
    log_probs = np.log(np.tile([[0.9, 0.1]], (count, 1))).astype(np.float32)
    found = metrics.compute(np.zeros(count, np.uint8), log_probs, classes=("a", "b"))
    assert found["loss"] == pytest.approx(-float(log_probs[0, 0]), rel=1e-12)
    assert found["recall"] == {"a": 1.0, "b": None}


def test_no_image_and_shapes_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="no image"):
        metrics.compute(LABELS, LOG_PROBS, np.zeros(5, bool))
    with pytest.raises(ValueError, match=r"\[5, 7\] for 4 labels and 7 classes"):
        metrics.compute(LABELS[:4], LOG_PROBS)
    with pytest.raises(ValueError, match="5 labels and 2 classes"):
        metrics.compute(LABELS, LOG_PROBS, classes=("a", "b"))


def test_unique_images_are_those_that_do_not_also_stand_in_train():
    in_train = np.array([True, True, False, False, False])
    found = metrics.of_split(LABELS, in_train, LOG_PROBS)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["accuracy_unique"] == pytest.approx(2 / 3)
    assert found["count_unique"] == 3
    found = metrics.of_split(LABELS, np.ones(5, bool), LOG_PROBS)
    assert (found["accuracy_unique"], found["count_unique"]) == (None, 0)
