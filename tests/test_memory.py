import subprocess
import sys

import pytest

# Arrays of 64 MB, more than glibc keeps by default, made and dropped in turn.
PROGRAM = """
import resource
import numpy as np
from fer_jax.machine import memory
if {keep} and not memory.keep_freed_memory():
    print(-1), exit()
np.ones(2**23)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    program = PROGRAM.format(keep=keep)
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_kept_memory_is_not_mapped_anew():
    kept = faults(keep=True)
    if kept < 0:
        pytest.skip("this C library has no mallopt")
    assert kept < faults(keep=False) / 10
