"""The core can be installed alone: looking at a picture needs no TensorFlow, pandas or OpenCV."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# What needs an extra to be imported: a room or a module -> the extra.
NEED = {
    "fer_jax.data.fer2013": "train",
    "fer_jax.data.synthetic_faces": "train",
    "fer_jax.data.builder": "train",
    "fer_jax.data.folder": "train",
    "fer_jax.report": "report",
    "fer_jax.study.analysis": "report",
    "fer_jax.study.effects": "report",
    "fer_jax.study.table": "report",
    "fer_jax.weights.keras": "keras",
}
HEAVY = ("cv2", "h5py", "matplotlib", "onnx", "onnxruntime", "pandas", "scipy.stats")
HEAVY = (*HEAVY, "statsmodels", "tensorboardX", "tensorflow", "tensorflow_datasets")

IMPORT_ALL = """
import importlib, importlib.util, pkgutil, sys
import fer_jax
need, heavy = eval(sys.argv[1])
names = [m.name for m in pkgutil.walk_packages(fer_jax.__path__, "fer_jax.", onerror=lambda _: 0)]
for name in names:
    if not any(name == part or name.startswith(part + ".") for part in need):
        importlib.import_module(name)
print(len(names), *[m for m in heavy if m in sys.modules])
"""


def test_every_extra_that_a_module_needs_is_declared():
    assert set(NEED.values()) <= set(PROJECT["optional-dependencies"])
    core = " ".join(PROJECT["dependencies"])
    for package in ("tensorflow", "opencv", "onnx", "matplotlib", "pandas", "statsmodels", "h5py"):
        assert package not in core


@pytest.mark.slow
def test_without_extras_all_else_is_imported_and_nothing_heavy_is_there(tmp_path):
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "this test installs with uv"
    python = tmp_path / "env" / "bin" / "python"
    lock = ["export", "-q", "--frozen", "--no-dev", "--no-emit-project", "--no-hashes"]
    locked = subprocess.run([uv, *lock], cwd=ROOT, capture_output=True, text=True, check=True)
    (tmp_path / "locked.txt").write_text(locked.stdout)
    subprocess.run([uv, "venv", "-q", "--python", "3.12", tmp_path / "env"], check=True)
    install = [uv, "pip", "install", "-q", "--python", python]
    subprocess.run([*install, "-r", tmp_path / "locked.txt", ROOT], cwd=ROOT, check=True)
    run = subprocess.run(
        [python, "-c", IMPORT_ALL, repr((tuple(NEED), HEAVY))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    count, *found = run.stdout.split()
    assert int(count) > 50
    assert found == []
    assert list((tmp_path / "env").rglob("fer_jax/py.typed"))
