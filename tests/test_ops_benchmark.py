import json

import benchmark_files
import pytest


@pytest.fixture
def benchmark(monkeypatch):
    return benchmark_files.load("ops", monkeypatch)


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
