import importlib.util
import json
from pathlib import Path

import pytest
from absl import flags

FILE = Path(__file__).parent.parent / "benchmarks" / "ops.py"


@pytest.fixture
def benchmark(monkeypatch):
    for define in ("DEFINE_integer", "DEFINE_string"):  # names that other benchmarks have as well
        monkeypatch.setattr(flags, define, lambda *arguments: None)
    spec = importlib.util.spec_from_file_location("ops_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_shows_the_committed_records(benchmark):
    text = benchmark.DOCUMENT.read_text()
    assert benchmark.updated_document(text) == text


def test_records_are_with_and_without_the_library(benchmark):
    found, without = (
        json.loads(path.read_text()) for path in (benchmark.RECORD, benchmark.RECORD_XLA)
    )
    assert found["environment"]["convolutions"] == "native"
    assert without["environment"]["convolutions"] == "xla"
    assert found["layers"].keys() == without["layers"].keys()
    rounded = json.loads(benchmark.RECORD_BFLOAT16.read_text())
    assert "avx512_bf16" in rounded["environment"]["device"]["cpu_features"]
    assert rounded["layers"].keys() == found["layers"].keys()
