"""What `launch.py` can do: a module for each mode, with the flags that only it reads.

The first line of a module's docstring is its help. `run(config, workdir)` does it: the whole
configuration and the folder of `--workdir`, None without one; it may return an exit status. Modules
import what is heavy inside their functions, so that `--help` answers at once.
"""

import logging
import signal
from collections.abc import Callable

from fer_jax.errors import FerError
from fer_jax.modes import benchmark, evaluate, report, study, summary, train

log = logging.getLogger("fer_jax")

MODES = {
    "train": train,
    "evaluate": evaluate,
    "study": study,
    "benchmark": benchmark,
    "summary": summary,
    "report": report,
}
WITHOUT_EXPERIMENT = ("study", "report")  # they need no --config


def status(mode: Callable[[], int | None]) -> int:
    """Runs a mode and returns the process's exit status; expected errors become one line."""
    import jax

    from fer_jax.runs.stop import Interrupted

    try:
        return mode() or 0
    except Interrupted as interrupted:
        log.info("%s", interrupted)
        return 128 + interrupted.signum
    except KeyboardInterrupt:  # while data was fetched or prepared, or a second Ctrl-C
        log.error("Stopped by SIGINT: what was saved before is kept")
        return 128 + signal.SIGINT
    except FerError as error:
        log.error("launch.py: %s", error)
        return 1
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        log.error(
            "launch.py: the device's memory does not suffice (%s). If other programs use the "
            "device, give this one a share with the environment's XLA_PYTHON_CLIENT_MEM_FRACTION, "
            "such as 0.4; else choose a smaller --config.train.batch_size",
            str(error).splitlines()[0],
        )
        return 1
