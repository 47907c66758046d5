"""Damages single bytes and bits of every kind of file that a run reads, and reads it again.

uv run python tests/fuzz.py --count=2000 --output=results/reliability.json

Of each damage one of four things comes: it is noticed (an expected error, or a warning), it is
harmless (what is read is the same), or it is wrong: another number without a word, or an error that
nobody expected. Formats that carry no checksum and that others wrote are counted apart.
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import logging
import random
import shutil
import sys
import tarfile
import tempfile
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import helpers  # noqa: E402 - registers the tiny network
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from PIL import Image  # noqa: E402
from test_keras_import import _keras2_layers, _write_keras2  # noqa: E402

from fer_jax import config as config_lib  # noqa: E402
from fer_jax import models, seal, teachers  # noqa: E402
from fer_jax.data import arrays, sources  # noqa: E402
from fer_jax.errors import FerError  # noqa: E402
from fer_jax.ops import build  # noqa: E402
from fer_jax.report import reliability  # noqa: E402
from fer_jax.runs import checkpoint, openings, record  # noqa: E402
from fer_jax.runs import workdir as wd  # noqa: E402
from fer_jax.state import create_state  # noqa: E402
from fer_jax.weights import keras, store  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
      name: for the table.
      make: writes the files into an empty folder.
      read: reads the folder as a run does; what it returns must not change.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]


def _hash(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


# Data


_faces = functools.cache(helpers.tiny_examples)


def _names() -> Iterator[tuple[str, int, np.ndarray, str]]:
    for split, usage in (("train", "Training"), ("valid", "PublicTest"), ("test", "PrivateTest")):
        images, labels, _ = _faces()[split]
        for i in range(14):
            yield usage, i, images[i], int(labels[i])


def _make_archive(folder: Path) -> None:
    folders = list(sources._LABEL_OF_FOLDER)
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for usage, number, image, label in _names():
            data = io.BytesIO()
            Image.fromarray(image[..., 0]).save(data, "JPEG")
            top = "train" if usage == "Training" else "test"
            archive.writestr(f"{top}/{folders[label]}/{usage}_{number}.jpg", data.getvalue())


@functools.cache
def _csv_text() -> str:
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["emotion", "pixels", "Usage"])
    for usage, _, image, label in _names():
        rows.writerow([label, " ".join(map(str, image.ravel())), usage])
    return text.getvalue()


def _make_csv(folder: Path) -> None:
    (folder / "fer2013.csv").write_text(_csv_text(), encoding="utf-8", newline="")


def _make_tar(folder: Path) -> None:
    data = _csv_text().encode()
    with tarfile.open(folder / "fer2013.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("fer2013/fer2013.csv")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def _read_source(folder: Path) -> str:
    """Reads a source whose counts and MD5 are taken for the published ones."""
    counts = dict.fromkeys(("train", "valid", "test"), (2,) * 7)
    md5 = hashlib.md5(_csv_text().encode()).hexdigest()
    with (
        mock.patch.object(sources, "COUNTS", counts),
        mock.patch.object(sources, "MD5", {"csv": md5, "icml_csv": md5}),
    ):
        (path,) = folder.iterdir()
        splits = sources.read_source(path, False)
    return _hash(*(array for split in splits.values() for array in split))


def _make_prepared(folder: Path) -> None:
    source = {"name": "fer2013", "kind": "jpeg", "sha256": "0123456789abcdef" * 4}
    arrays.write_arrays(folder / "arrays", helpers.tiny_examples(), source)


def _read_prepared(folder: Path) -> str:
    found = arrays.open_arrays(folder / "arrays")
    fields = [(s.images, s.labels, s.ids, s.in_train) for s in found.splits.values()]
    flat = [np.asarray(array) for split in fields for array in split]
    return _hash(found.name, found.kind, found.source_sha256, found.classes, *flat)


# A run's folder


def _state(step: int) -> Any:
    config = helpers.tiny_config(config_lib.get_config(), "data")
    with jax.numpy_dtype_promotion("standard"):
        state = create_state(models.create_model(config.model), optax.adam(1e-3), jnp.uint32(0))
    moved = jax.tree.map(lambda p: p + step, state.params)
    return state.replace(step=jnp.int32(step), params=moved)


def _make_checkpoints(folder: Path) -> None:
    history: list[Any] = []
    config = config_lib.flatten(helpers.tiny_config(config_lib.get_config(), "data"))
    with checkpoint.Checkpointer(folder) as checkpoints:
        for epoch, score in enumerate((0.3, 0.9, 0.5, 0.4), start=1):
            history.append({"epoch": epoch, "step": epoch, "valid/accuracy": score})
            progress = {"config": config, "history": history, "seconds": {"total": 1.25}}
            checkpoints.save(_state(epoch), progress, score)


def _read_checkpoints(folder: Path) -> str:
    before = checkpoint.read_progress(folder)
    with checkpoint.Checkpointer(folder) as checkpoints:
        restored = checkpoints.restore_latest(_state(0))
        steps = checkpoints.steps()
        best = checkpoints._manager.best_step()
    assert restored is not None
    variables = checkpoint.load_variables(folder, 2)
    state, progress = restored
    return _hash(
        *(before["history"] if before else None, progress, steps, best),
        *(checkpoint.fingerprint(state), checkpoint.fingerprint(variables)),
    )


def _only(pattern: str) -> Callable[[Path], list[Path]]:
    return lambda folder: sorted(p for p in folder.glob(pattern) if p.is_file())


_RECORD = ROOT / "results" / "runs"


def _make_record(folder: Path) -> None:
    found = record.read(sorted(_RECORD.glob("arch02*.json"))[0])
    wd.write_sealed(folder / "results.json", found)


def _without_seal(found: dict[str, Any], like: Any) -> dict[str, Any]:
    """Returns the fields that are known: a seal whose name is damaged is a field nobody reads."""
    return {name: value for name, value in found.items() if name in like}


def _read_record(folder: Path) -> str:
    found, again = record.read(folder / "results.json"), wd.read_json(folder / "results.json")
    assert found == again
    known = set(record.read(sorted(_RECORD.glob("arch02*.json"))[0]))
    return _hash(json.dumps(_without_seal(found, known), sort_keys=True))


def _make_openings(folder: Path) -> None:
    rows = np.log(np.random.default_rng(0).dirichlet(np.ones(7), 50)).astype(np.float32)
    openings.keep(folder, 2, "ab" * 32, rows)
    openings.keep(folder, 3, "cd" * 32, rows + 1)


def _read_openings(folder: Path) -> str:
    found = [openings.find(folder, key) for key in ("ab" * 32, "cd" * 32)]
    return _hash(*(part for pair in found for part in pair))


_HISTORY = [{"epoch": e, "step": 4 * e, "valid/accuracy": 0.1 * e} for e in range(1, 9)]


def _make_log(folder: Path) -> None:
    with contextlib.closing(wd.Log(folder, _HISTORY)):
        pass


def _read_log(folder: Path) -> str:
    _make_log(folder)
    return (folder / "log.jsonl").read_text(encoding="utf-8")


def _make_soft_labels(folder: Path) -> None:
    import base64

    rows = np.random.default_rng(0).dirichlet(np.ones(7), 50).astype("<f4")
    packed = {
        "source_sha256": "cd" * 32,
        "names": ["teacher"],
        "said": ["ef" * 32],
        "teachers": [{"experiment": "a", "seed": 0, "fold": None, "sha256": "ab" * 32}],
        "probabilities": base64.b64encode(rows.tobytes()).decode(),
    }
    wd.write_sealed(folder / teachers.KEPT, packed)


def _read_soft_labels(folder: Path) -> str:
    packed = wd.read_json(folder / teachers.KEPT)
    if packed is None:
        raise FerError("the teachers are asked again")
    return _hash(teachers._unpack(packed["probabilities"], 50), packed["teachers"])


# Code and weights


def _make_library(folder: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    (folder / f"native_key_{build._hash(data)}.so").write_bytes(data)


def _read_library(folder: Path) -> str:
    (path,) = folder.iterdir()
    if not build._is_whole(path):
        raise FerError("it is compiled again")
    return _hash(path.read_bytes())


def _make_keras(folder: Path) -> None:
    _write_keras2(folder / "weights.hdf5", _keras2_layers())


def _tree(variables: Any) -> list[Any]:
    return [np.asarray(x) for x in jax.tree.leaves(variables)]


def _read_keras(folder: Path) -> str:
    return _hash(*_tree(keras.import_keras_hdf5(folder / "weights.hdf5")))


def _make_safetensors(folder: Path) -> None:
    config = helpers.tiny_config(config_lib.get_config(), "data").model
    classes = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    store.save(folder, jax.device_get(_state(1).variables), config, classes, {"accuracy": 0.5})


def _read_safetensors(folder: Path) -> str:
    found = []
    for path in (folder / store.ARRAYS, folder):
        model, variables, metadata = store.load(path)
        known = sorted(_without_seal(metadata, set(metadata) - {seal.KEY}).items())
        found += [repr(model), *_tree(variables), known[:20]]
    return _hash(*found)


KINDS = [
    Kind("archive of pictures", _make_archive, _read_source),
    Kind("CSV", _make_csv, _read_source),
    Kind("CSV in tar.gz", _make_tar, _read_source),
    Kind("prepared arrays and metadata", _make_prepared, _read_prepared),
    Kind("checkpoints", _make_checkpoints, _read_checkpoints),
    Kind("progress and score", _make_checkpoints, _read_checkpoints),
    Kind("record", _make_record, _read_record),
    Kind("openings of test", _make_openings, _read_openings),
    Kind("log", _make_log, _read_log),
    Kind("soft labels", _make_soft_labels, _read_soft_labels),
    Kind("compiled library", _make_library, _read_library),
    Kind("safetensors weights", _make_safetensors, _read_safetensors),
    Kind("Keras weights", _make_keras, _read_keras),
]
# Written by others, and their format carries no checksum: another weight is as good as the right.
WITHOUT_CHECKSUM = {"Keras weights"}
_FILES = {
    "progress and score": ("checkpoints/*/progress/*", "checkpoints/*/metrics/*"),
    "log": ("log.jsonl",),
}


class _Warnings(logging.Handler):
    """Notes whether the project warned."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def damage(path: Path, random_: random.Random) -> str:
    """Changes a byte, or a bit, of a file; returns what was done."""
    data = bytearray(path.read_bytes())
    at = random_.randrange(len(data))
    before = data[at]
    if random_.random() < 0.5:
        data[at] ^= 1 << random_.randrange(8)
    else:
        data[at] = random_.choice([value for value in range(256) if value != before])
    path.write_bytes(data)
    return f"{path.name}: byte {at} of {len(data)} from {before} to {data[at]}"


def try_damages(kind: Kind, count: int, seed: int) -> tuple[collections.Counter, list[str]]:
    """Damages and reads files of a kind; returns how often what came, and what was wrong."""
    random_ = random.Random(f"{seed} {kind.name}")
    counts, wrong = collections.Counter(damages=count), []
    with tempfile.TemporaryDirectory(prefix="fuzz_") as scratch:
        whole, broken = Path(scratch) / "whole", Path(scratch) / "broken"
        whole.mkdir()
        kind.make(whole)
        patterns = _FILES.get(kind.name, ("**/*",))

        def fresh() -> None:
            shutil.rmtree(broken, ignore_errors=True)
            shutil.copytree(whole, broken)

        fresh()
        expected, lines = _read(kind, broken)
        assert not lines, f"{kind.name}: warned without damage: {lines}"
        for _ in range(count):
            fresh()
            paths = sorted(p for x in patterns for p in broken.glob(x) if p.is_file())
            path = random_.choice([p for p in paths if p.stat().st_size])
            what = damage(path, random_)
            came, why = _came(kind, broken, expected)
            if came == "wrong" and kind.name in WITHOUT_CHECKSUM and "Traceback" not in why:
                came = "undetectable"
            counts[came] += 1
            if came == "wrong":
                wrong.append(f"{kind.name}: {path.relative_to(broken)}, {what}: {why}")
    return counts, wrong


def _read(kind: Kind, folder: Path) -> tuple[str, list[str]]:
    """Returns what is read, and the warnings meanwhile."""
    warnings = _Warnings()
    logger = logging.getLogger("fer_jax")
    logger.addHandler(warnings)
    try:
        return kind.read(folder), warnings.lines
    finally:
        logger.removeHandler(warnings)


def _came(kind: Kind, folder: Path, expected: str) -> tuple[str, str]:
    try:
        found, lines = _read(kind, folder)
    except FerError as error:
        lines = str(error).splitlines()
        return ("noticed", "") if len(lines) == 1 else ("wrong", f"{len(lines)} lines: {error}")
    except Exception:
        return "wrong", traceback.format_exc()
    if lines:
        return "noticed", ""
    return ("harmless", "") if found == expected else ("wrong", "another result")


def main() -> None:
    """Does what the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000, help="damages of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="only the kinds whose names hold this")
    parser.add_argument("--output", type=Path, help="the record that the counts go into")
    options = parser.parse_args()
    logging.getLogger("fer_jax").propagate = False
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    kinds = [kind for kind in KINDS if (options.kind or "") in kind.name]
    shares = [options.count * (i + 1) // len(kinds) for i in range(len(kinds))]
    rows, wrong = {}, []
    for kind, first, last in zip(kinds, [0, *shares], shares, strict=False):
        counts, these = try_damages(kind, last - first, options.seed)
        names = ("damages", "noticed", "harmless", "undetectable", "wrong")
        rows[kind.name] = {name: counts[name] for name in names}
        wrong += these
        print(f"{kind.name}: {rows[kind.name]}", *these, sep="\n  ", flush=True)
    if options.output:
        reliability.add(options.output, {"seed": options.seed, "damages": rows})
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
