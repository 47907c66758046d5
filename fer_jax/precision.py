"""What `config.model.dtype` means on the machine that trains.

On an accelerator `bfloat16` is the type of activations. A processor with fast instructions for it
(AMD's AVX512_BF16, Intel's AMX) trains faster if activations stay float32 and the C++ rounds what
it multiplies in convolutions: the factors of Winograd's filtering (`ops/cpp/winograd.h`), or images
and kernels as they are (`ops/cpp/amx.h`). Sums, and all else, are float32. `auto` is that where the
processor has it, and float32 elsewhere. A trained network is asked in what activations are on the
machine that asks: on a CPU in float32, whatever it was trained in.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple

import jax

from fer_jax.ops import native


class Precision(NamedTuple):
    """How a step computes."""

    activations: str  # float32 or bfloat16
    rounds_factors: bool  # whether the C++ multiplies in bfloat16

    def products(self) -> AbstractContextManager[None]:
        """Has convolutions that are traced in it multiply so."""
        return native.rounding(self.rounds_factors)

    def convolutions(self) -> str:
        """Returns what runs convolutions, as a record names it."""
        return native.convolutions() + (" bfloat16" if self.rounds_factors else "")


def choose(dtype: str) -> Precision:
    """Decides how this machine computes; call it once devices have been started.

    Args:
      dtype: `config.model.dtype`.

    Returns:
      The precision. On a CPU without instructions for bfloat16 it is float32, whatever was asked
      for: XLA's bfloat16 takes five times as long there.
    """
    if dtype == "float32":  # no question for devices, which would be started
        return Precision("float32", rounds_factors=False)
    if jax.default_backend() != "cpu":
        return Precision("float32" if dtype == "auto" else dtype, rounds_factors=False)
    return Precision("float32", rounds_factors=native.has_bfloat16())
