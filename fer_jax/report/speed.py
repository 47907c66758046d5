"""How fast training on a CPU is beside others, from the records of `benchmarks/cpu_peers.py`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fer_jax.report import markdown
from fer_jax.report.records import MISSING, NOT_MEASURED, Record
from fer_jax.runs.record import device_name
from fer_jax.study.plan import ROOT

RESULTS = ROOT / "results"
# Those that train in every round, as the records name them.
_PEERS = {
    "fer_jax_xla": "itself, without C++",
    "keras": "Keras on TensorFlow without XLA",
    "torch": "PyTorch",
    "torch_bf16": "PyTorch in bfloat16",
}
# What decides how convolutions run, best first, as `machine/environment.py` names it.
_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def load(folder: Path = RESULTS) -> list[Record]:
    """Returns the records of a folder, one for each kind of processor."""
    paths = sorted(folder.glob("cpu_peers_*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def table(found: Sequence[Record]) -> str:
    """Returns this package's images/s in training by those of others: medians over rounds.

    The paper's networks share a row for each processor, from the smallest ratio to the largest.
    """
    if not found:
        return f"{NOT_MEASURED.capitalize()}."
    rows = [row for record in found for row in _rows(record)]
    return markdown.table(("So many times as fast as", *_PEERS.values()), rows)


def _rows(record: Record) -> list[list[str]]:
    where = _processor(record["environment"]["device"])
    networks: dict[str, list[Mapping[str, Any]]] = {}
    for case, measured in record["cases"].items():
        name = "The paper's networks" if case.startswith("arch") else f"`{case.split('_bs')[0]}`"
        networks.setdefault(name, []).append(measured["train"]["ratio"])
    return [
        [f"{name}, {where}", *(_span([of[peer] for of in ratios if peer in of]) for peer in _PEERS)]
        for name, ratios in networks.items()
    ]


def _processor(device: Mapping[str, Any]) -> str:
    """Names a processor, and the best of what tells it from others of that name."""
    best = [name for name in _INSTRUCTIONS if name in device.get("cpu_features", ())][:1]
    return ", ".join([device_name(device), *best])


def _span(ratios: Sequence[Mapping[str, float]]) -> str:
    if not ratios:
        return MISSING
    medians = [f"{ratio['median']:.2f}" for ratio in sorted(ratios, key=lambda r: r["median"])]
    return " to ".join(dict.fromkeys((medians[0], medians[-1])))
