"""Reads faces of one's own: pictures in `train|valid|test/<class>/`, in a folder or an archive."""

import collections
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from fer_jax.data import files
from fer_jax.data.dataset import Examples
from fer_jax.data.files import Member
from fer_jax.data.pictures import read_face
from fer_jax.errors import DataError
from fer_jax.labels import CLASS_OF_NAME, CLASSES, SPLITS

KIND_DIGITS = 12  # of the SHA-256, which name a prepared data set of this kind

_SPLIT_OF_FOLDER = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}
_PLACE = re.compile(
    rf"(?P<root>(?:.*/)?)(?P<split>{'|'.join(_SPLIT_OF_FOLDER)})/(?P<rest>.+)", re.IGNORECASE
)
_LAYOUT = "train/<class>/, valid/<class>/ and test/<class>/ with the pictures"
_MAX_PICTURE_BYTES = 2**27
_MAX_CLASSES = 256  # labels are bytes


class Faces:
    """Pictures in folders of splits and classes.

    Attributes:
      path: the folder or archive.
      count: pictures.
      classes: if all of a folder's names are names of the seven emotions, those of them that are
        there, in our order; else the names in lower case, sorted.
    """

    def __init__(self, path: str | os.PathLike):
        """Looks at the names; no picture is read yet.

        Raises:
          DataError: naming what is missing: a split, a class in a split, or folders of classes.
        """
        self.path = Path(path).expanduser()
        files.check_path(self.path)
        counts: dict[str, collections.Counter] = {}
        roots: set[str] = set()
        for member, root, split, name in self._members():
            roots.add(root)
            if len(roots) > 1:
                raise DataError(f"{self.path}: splits lie below {sorted(roots)}; keep one")
            counts.setdefault(split, collections.Counter())[self._key(member, name)] += 1
        self._check_splits(counts)
        names = sorted(set().union(*counts.values()))
        known = {CLASS_OF_NAME.get(name) for name in names}
        self._class_of = {name: CLASS_OF_NAME.get(name, name) for name in names}
        if None in known:
            self._class_of = {name: name for name in names}
            self.classes = tuple(names)
        else:
            self.classes = tuple(name for name in CLASSES if name in known)
        self._check_classes(counts)
        self.count = sum(sum(found.values()) for found in counts.values())

    def sha256(self) -> str:
        """Returns the SHA-256 of the pictures' names, sizes and bytes, however they are wrapped."""
        entries = []
        for member, root, _, _ in self._members():
            data = member.read(_MAX_PICTURE_BYTES)
            name = member.name.removeprefix(root).encode("utf-8", "surrogateescape")
            entries.append((name, len(data), hashlib.sha256(data).digest()))
        digest = hashlib.sha256()
        for name, size, content in sorted(entries):
            digest.update(name + f"\0{size}\0".encode() + content)
        return digest.hexdigest()

    def read(self) -> Mapping[str, Examples]:
        """Returns split -> (images `[n, 48, 48, 1]`, labels `[n]`, ids `[n]`), sorted by name.

        Raises:
          DataError: naming the picture that cannot be read.
        """
        found: dict[str, list[tuple[bytes, int, np.ndarray]]] = {split: [] for split in SPLITS}
        for member, root, split, name in self._members():
            label = self.classes.index(self._class_of[self._key(member, name)])
            image = read_face(member.place, member.read(_MAX_PICTURE_BYTES))
            below = member.name.removeprefix(root).partition("/")[2]
            found[split].append((below.encode("utf-8", "surrogateescape"), label, image))
        splits = {}
        for split, examples in found.items():
            examples.sort(key=lambda example: example[0])
            ids, labels, images = zip(*examples, strict=True)
            splits[split] = (np.stack(images), np.array(labels, np.uint8), np.array(ids, np.bytes_))
        return splits

    def _key(self, member: Member, name: str) -> str:
        parts = name.split("/")
        if len(parts) != 2:
            raise DataError(
                f"{member.place} must lie in <split>/<class>/, neither higher nor deeper"
            )
        return parts[0].strip().lower()

    def _members(self) -> Iterator[tuple[Member, str, str, str]]:
        """Yields each picture with root, split and the rest of its name."""
        stray = []
        any_found = False
        for member in self._all_members():
            match = _PLACE.fullmatch(member.name)
            if match is None:
                stray.append(member.name)
                continue
            any_found = True
            yield member, match["root"], _SPLIT_OF_FOLDER[match["split"].lower()], match["rest"]
        if not any_found:
            shown = f"it holds {', '.join(map(repr, stray[:3]))}" if stray else "it is empty"
            raise DataError(f"{self.path} must hold {_LAYOUT}; {shown}")

    def _all_members(self) -> Iterator[Member]:
        if self.path.is_dir():
            yield from files.folder_members(self.path)
            return
        with files.open_file(self.path) as file:
            yield from _unwrapped(str(self.path), file)

    def _check_splits(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        missing = [split for split in SPLITS if split not in counts]
        if not missing:
            return
        advice = {
            "train": "the network learns from it",
            "valid": "move about a tenth of train's pictures of each class there (the best epoch "
            "is chosen on it; chosen on test, test's figures would mean nothing)",
            "test": "move about a tenth of train's pictures of each class there",
        }
        said = "; ".join(f"no {split}/<class>/ ({advice[split]})" for split in missing)
        raise DataError(f"{self.path} must hold {_LAYOUT}: {said}")

    def _check_classes(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        if not 2 <= len(self.classes) <= _MAX_CLASSES:
            raise DataError(
                f"{self.path} has the classes {', '.join(map(repr, self.classes[:9]))}; there must "
                f"be 2 to {_MAX_CLASSES}"
            )
        for split in SPLITS:
            there = {self._class_of[name] for name in counts[split]}
            missing = [name for name in self.classes if name not in there]
            if missing:
                raise DataError(
                    f"{self.path}: {split} has no picture of {', '.join(missing)}; every split "
                    "needs some of every class"
                )


def _unwrapped(place: str, file) -> Iterator[Member]:
    form = files.form_of(file)
    if form is None:
        raise DataError(f"{place} is neither a folder nor an archive; it must hold {_LAYOUT}")
    for member in files.members(place, file, form):
        if member.name:
            yield member
        else:  # what a compressed file holds
            with member.open() as inner:
                yield from _unwrapped(place, inner)
