import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.data import pipeline


def order(seed, epoch, count=70):
    return np.asarray(pipeline.epoch_order(jnp.uint32(seed), jnp.int32(epoch), count))


def test_an_epoch_visits_every_image_once_in_an_order_of_seed_and_epoch_alone():
    np.testing.assert_array_equal(np.sort(order(0, 0)), np.arange(70))
    np.testing.assert_array_equal(order(3, 5), order(3, 5))
    assert not np.array_equal(order(0, 0), order(0, 1))
    assert not np.array_equal(order(0, 0), order(1, 0))


def test_a_batch_larger_than_the_split_is_refused():
    with pytest.raises(ValueError, match="batch_size is 71, but the train split has 70"):
        pipeline.steps_per_epoch(70, 71)
    assert pipeline.steps_per_epoch(70, 16) == 4


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [8, 32, 1024])
@pytest.mark.parametrize("first", [0, 3])
def test_streamed_batches_follow_the_order_and_drop_the_rest(dataset, first, chunk, monkeypatch):
    monkeypatch.setattr(pipeline, "_CHUNK_IMAGES", chunk)
    split = dataset.splits["train"]
    expected = order(0, 1)
    batches = list(pipeline.stream_batches(split, expected, 16, first))
    assert len(batches) == 4 - first
    for i, (images, labels) in enumerate(batches, start=first):
        rows = expected[16 * i : 16 * (i + 1)]
        np.testing.assert_array_equal(images, split.images[rows])
        np.testing.assert_array_equal(labels, split.labels[rows])
        assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
