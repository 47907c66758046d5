"""`benchmarks/step_profile.py`: whose time is whose."""

import json
from types import SimpleNamespace

import benchmark_files
import pytest


@pytest.fixture
def profile(monkeypatch):
    return benchmark_files.load("step_profile", monkeypatch)


def event(name, start, end, **stats):
    return SimpleNamespace(name=name, start_ns=start, end_ns=end, stats=list(stats.items()))


def trace(*threads):
    lines = [SimpleNamespace(events=list(events)) for events in threads]
    return SimpleNamespace(planes=[SimpleNamespace(lines=lines)])


def test_the_innermost_interval_has_the_time(profile):
    thread = [profile.Interval(0, 100, "conv"), profile.Interval(60, 90, "")]
    thread += [profile.Interval(70, 80, "norm"), profile.Interval(100, 150, "conv")]
    parts = {"conv": "Convolution, forward", "norm": "BatchNorm and ReLU, forward"}
    found = profile.attribute([thread, [profile.Interval(0, 7, "unheard of")]], parts)
    assert found["Convolution, forward"] == 60 + 10 + 50  # all but what was run within
    assert found["BatchNorm and ReLU, forward"] == 10
    assert found[profile.UPDATE] == 7
    assert sum(found.values()) == 60 + 10 + 10 + 50 + 7  # the work of no operation is nobody's


def test_work_that_was_handed_over_is_its_operations(profile):
    data = trace(
        [
            event("ThunkExecutor::Execute", 0, 20),
            event("call", 5, 15, hlo_op="call"),
            event("ThreadpoolListener::Record", 10, 10, _p=3),
        ],
        [
            event("ThreadpoolListener::StartRegion", 12, 12, _c=3),
            event("ThunkExecutor::Execute", 50, 80),
            event("next", 55, 75, hlo_op="next"),
            event("ThreadpoolListener::StopRegion", 85, 85),
            event("ThreadpoolListener::StartRegion", 90, 90, _c=4),  # of what nobody noted
            event("ThreadpoolListener::StopRegion", 99, 99),
        ],
    )
    parts = {"call": "Convolution, kernel gradient", "next": profile.WAITING}
    found = profile.attribute(profile.read_threads(data), parts)
    assert found["Convolution, kernel gradient"] == (15 - 5) + (85 - 12) - (80 - 50)
    assert found[profile.WAITING] == 20


STEP, FORWARD, BACKWARD = "jit(step)/shard_map", "jvp(Compact)", "transpose(jvp(Compact))"
OURS = 'custom-call(%x), custom_call_target="fer_jax_{}"'
LOOP = "fusion(%x), kind=kLoop"


@pytest.mark.parametrize(
    ("call", "name", "part"),
    [
        (OURS.format("convolution"), f"{FORWARD}/conv1/call", "Convolution, forward"),
        (OURS.format("convolution"), f"{BACKWARD}/conv1/call", "Convolution, image gradient"),
        (OURS.format("kernel_gradient"), f"{BACKWARD}/conv1/call", "Convolution, kernel gradient"),
        (LOOP, f"{BACKWARD}/conv1/reduce_sum", "Convolution, other gradients, kernels turned"),
        (LOOP, f"{FORWARD}/norm1_1/jit(relu)/max", "BatchNorm and ReLU, forward"),
        (LOOP, f"{BACKWARD}/stage2_block1/norm1/mul", "BatchNorm and ReLU, backward"),
        (LOOP, f"{BACKWARD}/pool1/select_n", "Pooling, and what is fused with it, backward"),
        (LOOP, f"{FORWARD}/dense1/convert_element_type", "Dense layers, dropout, forward"),
        (LOOP, "mul", "Everything else: input, loss, update, metrics"),
        ("all-reduce(%x)", f"{FORWARD}/norm1_1/psum", None),
    ],
)
def test_a_part_follows_from_layer_and_direction(profile, call, name, part):
    line = f'  ROOT %one.1 = (f32[2,4]{{1,0}}, s32[]) {call}, metadata={{op_name="{STEP}/{name}"}}'
    assert profile.parts_of(line) == {"one.1": part or profile.WAITING}
    assert (part or profile.WAITING) in profile.PARTS


def test_the_document_shows_the_committed_record(profile):
    record = json.loads(profile.RECORD.read_text())
    assert profile.format_table(record) in profile.DOCUMENT.read_text()
    assert (record["networks"].keys(), record["dtype"]) == (profile.CASES.keys(), "float32")
    for network in record["networks"].values():
        assert network["parts_ms"].keys() == set(profile.PARTS)
