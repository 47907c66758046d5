"""Seven emotions in faces with JAX and Flax.

`fer_jax.load` loads a trained network; `fer_jax.CLASSES` names what it tells apart.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fer_jax.apps.load import load
    from fer_jax.labels import CLASSES

__all__ = ["CLASSES", "load"]


def __getattr__(name: str) -> Any:
    """Imports what is asked for, so that `import fer_jax` alone imports nothing heavy."""
    if name == "load":
        from fer_jax.apps.load import load

        return load
    if name == "CLASSES":
        from fer_jax.labels import CLASSES

        return CLASSES
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
