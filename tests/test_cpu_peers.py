import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
PARAMETERS = {
    "arch01": 1_485_831,  # of figures 6 to 8
    "arch02": 420_199,
    "arch03": 290_023,
    "compact": 1_174_439,
    "resnet18": 2_796_263,
}
PEAKS = [
    {"numpy": 90.0, "xla": 100.0},
    {"numpy": 120.0, "xla": 100.0},
    {"numpy": 80.0, "xla": 130.0},
]


@pytest.fixture
def cpu_peers(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import cpu_peers

    return cpu_peers


def _run(turn, peer, train, **more):
    numbers = {"train_images_per_s": train, "start_s": 2.0 + turn, "parameters": 5}
    return {"case": "arch02_bs96", "peer": peer, "round": turn, **numbers, **more}


@pytest.fixture
def runs():
    """Three rounds: Keras failed in the second, torch.compile was in the first only."""
    ours = {"flops": 10_000_000}
    return [
        _run(0, "fer_jax", 1000.0, eval_images_per_s=5000.0, **ours),
        _run(0, "keras", 500.0, eval_images_per_s=2500.0),
        _run(0, "torch_compile", 400.0),
        _run(1, "fer_jax", 1200.0, eval_images_per_s=4000.0, **ours),
        {"case": "arch02_bs96", "peer": "keras", "round": 1, "error": "exit status -6: abort"},
        _run(2, "keras", 400.0, eval_images_per_s=1000.0),
        _run(2, "fer_jax", 1400.0, eval_images_per_s=4500.0, **ours),
    ]


def test_ratios_are_paired_by_round(cpu_peers, runs):
    train = cpu_peers.summarize(runs, PEAKS)["cases"]["arch02_bs96"]["train"]
    assert train["images_per_s"] == {
        "fer_jax": {"median": 1200.0, "n": 3},
        "keras": {"median": 450.0, "n": 2},
        "torch_compile": {"median": 400.0, "n": 1},
    }
    assert train["ratio"]["keras"] == {"median": 2.75, "min": 2.0, "max": 3.5, "n": 2}
    assert train["ratio"]["torch_compile"] == {"median": 2.5, "min": 2.5, "max": 2.5, "n": 1}


def test_bfloat16_is_compared_with_bfloat16_where_it_was_measured(cpu_peers):
    runs = [_run(0, "fer_jax", 1000.0, flops=1), _run(0, "torch_bf16", 500.0)]
    ratio = cpu_peers.summarize(runs, PEAKS)["cases"]["arch02_bs96"]["train"]["ratio"]
    assert ratio["torch_bf16"]["median"] == 2.0
    runs += [_run(0, "fer_jax_bf16", 1500.0), _run(0, "torch", 250.0)]
    ratio = cpu_peers.summarize(runs, PEAKS)["cases"]["arch02_bs96"]["train"]["ratio"]
    assert ratio["torch_bf16"]["median"] == 3.0
    assert ratio["torch"]["median"] == 4.0


def test_share_of_peak_counts_three_passes_in_training_and_one_in_evaluation(cpu_peers, runs):
    summary = cpu_peers.summarize(runs, PEAKS)
    case = summary["cases"]["arch02_bs96"]
    assert summary["matmul_gflops_per_s"] == 100.0  # XLA's median; NumPy's is 90
    assert case["train"]["peak_share"] == pytest.approx(3 * 10e6 * 1200 / 100e9)
    assert case["eval"]["peak_share"] == pytest.approx(10e6 * 4500 / 100e9)


def test_first_start_is_kept_apart_from_later_ones(cpu_peers, runs):
    starts = cpu_peers.summarize(runs, PEAKS)["cases"]["arch02_bs96"]["start_s"]
    assert starts["fer_jax"] == {"first": 2.0, "later": 3.5}
    assert starts["torch_compile"] == {"first": 2.0, "later": None}


def test_tables_show_what_there_is(cpu_peers, runs):
    tables = cpu_peers.format_tables(
        cpu_peers.summarize(runs, PEAKS), ["fer_jax", "keras", "torch_compile"]
    ).split("\n\n")
    assert tables[0].splitlines()[2] == (
        "| Architecture 02, batch 96 | 1200 (n=3) | 450 (n=2) | 400 (n=1) "
        "| 2.75 (2.00 to 3.50) | 2.50 (2.50 to 2.50) | 36% |"
    )
    assert tables[1].splitlines()[2] == (
        "| Architecture 02, batch 96 | 4500 (n=3) | 1750 (n=2) | - "
        "| 3.25 (2.00 to 4.50) | - | 45% |"
    )
    assert tables[2].splitlines()[2] == (
        "| Architecture 02, batch 96 | 2.0 | 3.5 | 2.0 | 4.0 | 2.0 | - |"
    )
    for table in tables[:3]:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_peer_that_never_ran_leaves_the_rest_standing(cpu_peers):
    broken = {"case": "arch02_bs96", "peer": "fer_jax", "round": 0, "error": "exit status 1: x"}
    summary = cpu_peers.summarize([broken, _run(0, "keras", 500.0)], PEAKS)
    row = cpu_peers.format_tables(summary, ["fer_jax", "keras"]).splitlines()[2]
    assert row == "| Architecture 02, batch 96 | - | 500 (n=1) | - | - |"


def test_networks_that_differ_are_refused(cpu_peers, runs):
    cpu_peers.check_same_network(runs)
    runs[1]["parameters"] = 6
    with pytest.raises(ValueError, match="arch02_bs96: the peers' parameters differ"):
        cpu_peers.check_same_network(runs)


def test_peers_take_turns_in_coming_first(cpu_peers):
    orders = [cpu_peers.order_of(turn, True, turn == 0) for turn in range(7)]
    assert sorted(orders[0]) == sorted(cpu_peers.PEERS)
    first = {order[0] for order in orders[1:]}
    assert first == {p for p in cpu_peers.PEERS if not p.endswith("_compile")}
    names = ["fer_jax_bf16", "fer_jax_xla", "keras", "fer_jax"]
    assert cpu_peers.order_of(1, False, False) == names
    names = ["fer_jax_xla", "keras", "fer_jax"]
    assert cpu_peers.order_of(1, False, False, [cpu_peers.BFLOAT16]) == names


def test_bfloat16_that_is_emulated_takes_part_in_the_first_round_alone(cpu_peers):
    orders = [cpu_peers.order_of(turn, True, False, [cpu_peers.BFLOAT16]) for turn in range(3)]
    assert ["torch_bf16" in order for order in orders] == [True, False, False]
    assert "torch_bf16" in cpu_peers.order_of(1, True, False)


def test_a_failed_worker_leaves_its_last_words(cpu_peers):
    command = [sys.executable, "-c", "import sys; sys.exit('line 1\\nout of luck')"]
    assert cpu_peers._run(command, dict(os.environ)) == {"error": "exit status 1: out of luck"}


def _parameters(python: str, peer: str) -> dict[str, int]:
    code = (
        f"import json, workload, {peer} as peer\n"
        "models = {name: peer.create_model(name) for name in workload.NETWORKS}\n"
        "print(json.dumps({n: peer.count_parameters(m) for n, m in models.items()}))"
    )
    done = subprocess.run([python, "-c", code], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_keras_trains_the_same_networks():
    assert _parameters(sys.executable, "peer_keras") == PARAMETERS


@pytest.mark.slow
def test_pytorch_trains_the_same_networks():
    python = os.environ.get("FER_JAX_TORCH_PYTHON")
    if not python:
        pytest.skip("set FER_JAX_TORCH_PYTHON to a Python that has PyTorch")
    assert _parameters(python, "peer_torch") == PARAMETERS


def test_the_document_shows_the_committed_records(cpu_peers):
    text = cpu_peers.DOCUMENT.read_text()
    assert cpu_peers.updated_document(text) == text


def test_each_kind_of_processor_has_a_record_of_its_own(cpu_peers):
    amd = {"kind": "AMD EPYC", "cpu_features": ["avx2", "avx512f", "avx512_bf16"]}
    intel = {"kind": "Intel(R) Xeon(R) Processor", "cpu_features": ["avx512_bf16", "amx_bf16"]}
    old = {"kind": "Intel(R) Xeon(R) CPU", "cpu_features": []}
    assert [cpu_peers.record_of(device).name for device in (amd, intel, old)] == [
        "cpu_peers_amd_epyc_avx512_bf16.json",
        "cpu_peers_intel_xeon_amx_bf16.json",
        "cpu_peers_intel_xeon.json",
    ]
