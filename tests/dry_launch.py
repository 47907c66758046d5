"""Stands for `python` in a dry run: `launch.py --mode=benchmark` takes moments, on few images.

python dry_launch.py launch.py FLAGS...
python dry_launch.py - ARGUMENTS... <PROGRAM
"""

import runpy
import sys

from fer_jax.bench import table

table.BUDGET_S = 0.0
table.COUNTS = {"train": (100,), "valid": (20,), "test": (20,)}

if __name__ == "__main__":
    program, *_ = sys.argv = sys.argv[1:]
    if program == "-":
        exec(compile(sys.stdin.read(), "<stdin>", "exec"))
    else:
        runpy.run_path(program, run_name="__main__")
