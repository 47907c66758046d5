"""Which training images a run is fitted on."""

import numpy as np
import pytest

from fer_jax.data import select
from fer_jax.data.dataset import Split
from fer_jax.errors import ConfigError


def split_of(pixels, labels):
    """Returns a split whose i-th image is grey `pixels[i]`."""
    images = np.repeat(np.array(pixels, np.uint8), 48 * 48).reshape(-1, 48, 48, 1)
    ids = np.array([f"train_{i}" for i in range(len(labels))], "S")
    return Split(images, np.array(labels, np.uint8), ids, np.zeros(len(labels), bool))


def test_all_copies_with_different_labels_contradict_each_other():
    split = split_of([1, 2, 1, 3, 3, 4, 1], [0, 5, 0, 2, 2, 2, 6])
    expected = [True, False, True, False, False, False, True]
    np.testing.assert_array_equal(select.contradicting(split), expected)


def test_parts_keep_copies_together_and_do_not_depend_on_other_images():
    pixels = np.arange(200) % 100
    split = split_of(pixels, np.arange(200) % 7)
    found = select.parts(split, 5)
    np.testing.assert_array_equal(found[:100], found[100:])
    np.testing.assert_array_equal(
        select.parts(select.take(split, np.arange(30, 60)), 5), found[30:60]
    )
    assert set(found) == set(range(5))


def test_parts_are_of_about_equal_size():
    images = np.random.default_rng(0).integers(0, 256, (2000, 48, 48, 1)).astype(np.uint8)
    labels = np.zeros(2000, np.uint8)
    found = select.parts(Split(images, labels, labels.astype("S"), labels.astype(bool)), 4)
    counts = np.bincount(found)
    assert len(counts) == 4
    assert np.abs(counts - 500).max() < 100  # five standard errors


def test_parts_are_the_same_everywhere():
    # What a teacher was fitted on is read from its record on another machine.
    found = select.parts(split_of(range(12), [0] * 12), 5)
    np.testing.assert_array_equal(found, [1, 4, 1, 1, 1, 0, 1, 2, 2, 4, 0, 2])


def test_what_is_chosen_leaves_out_contradictions_and_a_part(config):
    split = split_of([1, 2, 1, *range(3, 30)], [0, 5, 1, *[2] * 27])
    np.testing.assert_array_equal(select.chosen(split, config), np.arange(30))
    config.data.drop_contradicting = True
    np.testing.assert_array_equal(select.chosen(split, config), [1, *range(3, 30)])
    config.train.fold = "1/3"
    parts = select.parts(split, 3)
    expected = [i for i in range(30) if i not in (0, 2) and parts[i] != 1]
    np.testing.assert_array_equal(select.chosen(split, config), expected)
    assert len(expected) < 28


def test_folds_fit_on_everything_but_their_part():
    split = split_of(range(60), [0] * 60)
    parts = select.parts(split, 3)
    left_out = [np.flatnonzero(parts == select.parse_fold(f"{i}/3")[0]) for i in range(3)]
    np.testing.assert_array_equal(np.sort(np.concatenate(left_out)), np.arange(60))


@pytest.mark.parametrize("fold", ["3/3", "-1/3", "0/1", "a/b", "1", "1/2/3"])
def test_a_fold_that_makes_no_sense_is_refused(fold):
    with pytest.raises(ConfigError, match="it must be i/k"):
        select.parse_fold(fold)


def test_taking_keeps_what_belongs_together():
    split = split_of(range(5), [0, 1, 2, 3, 4])
    found = select.take(split, np.array([3, 1]))
    np.testing.assert_array_equal(found.images[:, 0, 0, 0], [3, 1])
    np.testing.assert_array_equal(found.labels, [3, 1])
    assert list(found.ids) == [b"train_3", b"train_1"]
