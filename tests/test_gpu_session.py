"""The script for a rented GPU, from end to end on drawn faces and the CPU."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fer_jax.data import arrays
from fer_jax.data import drawn as faces
from fer_jax.data.dataset import VERSIONS

ROOT = Path(__file__).parent.parent
COUNTS = {"train": 100, "valid": 20, "test": 20}  # the largest batch of the dry run has 96


@pytest.fixture
def faces_dir(tmp_path):
    splits = {}
    for i, (split, count) in enumerate(COUNTS.items()):
        labels = (np.arange(count) % 7).astype(np.uint8)
        ids = np.array([f"{split}_{k}" for k in range(count)], "S")
        splits[split] = (faces.draw_faces(labels, seed=i), labels, ids)
    folder = tmp_path / "data" / "synthetic_faces" / VERSIONS["synthetic_faces"] / "arrays"
    source = {"name": "synthetic_faces", "kind": "synthetic_faces", "sha256": "0" * 64}
    arrays.write_arrays(folder, splits, source)
    return tmp_path / "data"


@pytest.mark.slow
def test_a_dry_run_measures_trains_and_packs_every_part(faces_dir, tmp_path, clean_environment):
    run = subprocess.run(
        ["bash", ROOT / "benchmarks" / "gpu_session.sh"],
        env=clean_environment
        | {
            "OUT": str(tmp_path / "out"),
            "DRY_RUN": "1",
            "JOBS": "2",
            "PARTS": "speed bfloat16 scaling accuracy strong distilled related record",
            "PYTHON": f"{sys.executable} tests/dry_launch.py",
            "TFDS_DATA_DIR": str(faces_dir),
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "FAILED" not in run.stdout
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as archive:
        records = {
            Path(name).name: json.load(archive.extractfile(name))
            for name in archive.getnames()
            if name.endswith(".json")
        }
    measured = [record for name, record in records.items() if name.startswith("benchmark_")]
    entries = {name for record in measured for name in record["entries"]}
    assert entries == {
        f"{name}{dtype}"
        for name in ("arch02_bs96", "arch02_bs32", "compact")
        for dtype in ("", "_bfloat16")
    }
    trained = {name for name in records if not name.startswith("benchmark_")}
    assert trained == {
        "arch02_bs96_seed0.json",
        "arch02_bs96_bfloat16_seed0.json",
        "arch02_bs96_100_epochs_seed0.json",
        "compact_seed0.json",
        "arch03_strong_seed0.json",
        "compact_distilled_seed0.json",
        "compact_ensemble_seed0.json",
        "mini_xception_seed0.json",
        "record_seed0.json",
        "record_ensemble_seed0.json",
    }
    for name in trained:
        assert records[name].get("epochs_run", 1) == 1
        assert name.removesuffix("_seed0.json") in run.stdout
    assert records["compact_distilled_seed0.json"]["teachers"][0]["experiment"] == "compact"
