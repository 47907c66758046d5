"""Records -> tables, figures and pages: `launch.py --mode=report`.

* `paper`: what the study prints.
* `records`: reads the records of runs.
* `statistics`: calibration, paired tests and the like, of plain arrays.
* `tables`, `figures`: Markdown and drawings.
* `page`: docs/reproduction.md, the same as one HTML file, and README.md's tables.
"""

from fer_jax.report.page import replace_between
from fer_jax.report.paper import PAPER
from fer_jax.study.plan import ROOT

__all__ = ["PAPER", "ROOT", "replace_between"]
