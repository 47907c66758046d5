"""Architecture 02 at batch 96 with factors in bfloat16, see `fer_jax.precision`.

uv run launch.py --mode=study --experiments=arch02_bs96,arch02_bs96_bfloat16 --seeds=3
"""

import runpy
from pathlib import Path


def get_config():
    """Returns the experiment's configuration."""
    config = runpy.run_path(str(Path(__file__).with_name("arch02_bs96.py")))["get_config"]()
    config.experiment = "arch02_bs96_bfloat16"
    config.model.dtype = "bfloat16"
    return config
