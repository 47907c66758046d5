import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "benchmarks" / "ops.py"


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("ops_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("batch", "repeats", "output"):  # other benchmarks define flags of these names
        delattr(module.flags.FLAGS, name)
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
