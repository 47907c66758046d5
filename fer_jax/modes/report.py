"""Make the tables and figures in README.md, docs/reproduction.md and docs/reliability.md from the
records in results, and the page as out/reproduction.html.

With --config.data.source instead the page with the data set's pictures, in out/reproduction.
"""

import logging
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

log = logging.getLogger("fer_jax")


def run(config: Any, workdir: Path | None) -> None:
    """Brings the documents up to date, or writes the page with pictures if data is named."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # networks are counted, not run
    given = config_flags.get_override_values(flags.FLAGS["config"])
    if flags.FLAGS["config"].present or given:
        write_illustrated(config.data, workdir or Path("out") / "reproduction")
        return
    from fer_jax.report import page

    page.write_docs()
    pages = (page.README, page.PAGE, page.reliability.PAGE)
    log.info("%s, %s and %s are up to date", *pages)


def write_illustrated(data: Any, folder: Path) -> None:
    """Writes the page with the pictures of the data set of `config.data`."""
    from fer_jax.data.prepare import load_dataset
    from fer_jax.report import page

    page.write_illustrated(load_dataset(data), folder)
    log.info("%s has the data set's pictures: do not publish it", folder)
