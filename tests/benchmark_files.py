"""Programs of `benchmarks/` as modules, for tests."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from absl import flags

FOLDER = Path(__file__).parent.parent / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Imports a program without its flags, whose names other programs have as well."""
    for define in ("integer", "string", "list", "enum"):
        monkeypatch.setattr(flags, f"DEFINE_{define}", lambda *arguments: None)
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location(f"{name}_program", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
