"""How fast this machine multiplies matrices: what a convolution cannot be expected to beat."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from workload import calls_per_s

SIDE = 1024


def main() -> None:
    """Prints GFLOP/s of a 1024^3 float32 product, by NumPy's BLAS and by XLA."""
    seconds = float(sys.argv[1])
    a, b = np.random.default_rng(0).standard_normal((2, SIDE, SIDE), np.float32)
    x, y, product = jnp.asarray(a), jnp.asarray(b), jax.jit(jnp.matmul)
    calls = {
        "numpy": lambda: a @ b,
        "xla": lambda: product(x, y).block_until_ready(),
    }
    gflop = 2e-9 * SIDE**3
    rates = {name: gflop * calls_per_s(f, lambda: None, seconds) for name, f in calls.items()}
    print(json.dumps({"gflops_per_s": rates}))


if __name__ == "__main__":
    main()
