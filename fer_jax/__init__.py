"""Seven emotions in faces with JAX and Flax.

After `import fer_jax`, `tfds.load("fer2013")` and `tfds.load("synthetic_faces")` work.
"""

import importlib
import importlib.machinery
import sys
from typing import Any

_TFDS = "tensorflow_datasets"


def _register_builders() -> None:
    """Imports the TFDS builders; a builder registers itself when it is defined."""
    for name in ("fer2013", "synthetic_faces"):
        importlib.import_module(f"fer_jax.data.{name}")


class _TfdsFinder:
    """Registers the builders as soon as TFDS is imported.

    TFDS takes a second to import, which a run on a prepared dataset does without.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
        spec = importlib.machinery.PathFinder.find_spec(name) if name == _TFDS else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _register_builders()

            spec.loader.exec_module = exec_module
        return spec


if _TFDS in sys.modules:
    _register_builders()
else:
    sys.meta_path.insert(0, _TfdsFinder)  # pyright: ignore[reportArgumentType]
