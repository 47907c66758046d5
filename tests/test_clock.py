import contextlib
import time

import pytest

from fer_jax.runs import clock as clock_lib
from fer_jax.runs.clock import Clock


@pytest.fixture
def now(monkeypatch):
    """A clock's times, to be moved by hand: `{"wall": seconds, "cpu": seconds}`."""
    times = {"wall": 100.0, "cpu": 7.0}
    monkeypatch.setattr(time, "perf_counter", lambda: times["wall"])
    monkeypatch.setattr(time, "process_time", lambda: times["cpu"])
    assert clock_lib.time is time
    return times


def test_spans_add_up_by_name_and_an_inner_one_is_not_the_outer_ones(now):
    clock = Clock()
    for _ in range(2):
        with clock.span("train"):
            now["wall"] += 5
            now["cpu"] += 8
            with clock.span("compile"):
                now["wall"] += 3
                now["cpu"] += 4
            now["wall"] += 1
    now["wall"] += 10
    assert clock.seconds() == {
        "train": 12,
        "train_cpu": 16,
        "compile": 6,
        "compile_cpu": 8,
        "total": 28,
    }


def test_spans_that_are_open_count_as_far_as_they_are(now):
    clock = Clock()
    with clock.span("train"):
        now["wall"] += 5
        with clock.span("compile"):
            now["wall"] += 1
        now["wall"] += 2
        with clock.span("checkpoint"):
            now["wall"] += 3
            saved = clock.seconds()
        now["wall"] += 4
    assert {k: v for k, v in saved.items() if not k.endswith("_cpu")} == {
        "train": 7,
        "compile": 1,
        "checkpoint": 3,
        "total": 11,
    }
    assert clock.seconds()["train"] == 11


def test_a_clock_goes_on_where_an_earlier_one_was_saved(now):
    first = Clock()
    with first.span("train"):
        now["wall"] += 5
    saved = first.seconds()
    now["wall"] += 1000  # lost: after the last checkpoint, or between the sessions
    second = Clock()
    now["wall"] += 2
    second.resume(saved)
    with second.span("train"):
        now["wall"] += 7
    assert second.seconds()["train"] == 12
    assert second.seconds()["total"] == 14
    assert saved["total"] == 5


def test_a_span_that_raises_counts_and_leaves_the_outer_one_right(now):
    clock = Clock()
    with clock.span("outer"):
        with contextlib.suppress(KeyError), clock.span("inner"):
            now["wall"] += 2
            raise KeyError
        now["wall"] += 1
    assert (clock.seconds()["inner"], clock.seconds()["outer"]) == (2, 1)
