"""A hash that a JSON object carries of itself, so that no flipped bit passes for another number."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "checksum"


def add(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the object, as JSON knows it, with the SHA-256 of all else in it under `KEY`."""
    plain = json.loads(json.dumps(value))
    return plain | {KEY: _sha256(plain)}


def is_broken(value: Any) -> bool:
    """Whether an object carries a hash, and is not what it was when that was added."""
    return isinstance(value, dict) and KEY in value and value[KEY] != _sha256(value)


def _sha256(value: Mapping[str, Any]) -> str:
    rest = {name: x for name, x in value.items() if name != KEY}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
