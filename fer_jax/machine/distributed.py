"""Several processes that train one network: how they find each other, and who writes.

Every process runs the same program and holds the whole state. Only process 0 touches the run's
folder; what it reads there, and the errors it meets, all processes get (:func:`on_first`).
"""

import atexit
import functools
import os
import pickle
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fer_jax.errors import ConfigError

# What launchers set for each process: Slurm's srun, Open MPI's mpirun.
_PROCESS_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")


def initialize(address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes, if there are any. Must run before JAX touches a device.

    Args:
      address: `host:port` of process 0, free on its machine; None to find it, the number of
        processes and their ids from the cluster's environment (Slurm, Open MPI).
      num_processes: how many there are.
      process_id: 0 to `num_processes - 1`, another one for each process.

    Raises:
      ConfigError: if only some of the three are given, or they contradict each other.
    """
    given = (address, num_processes, process_id)
    if given == (None, None, None):
        if any(int(os.environ.get(name, 1)) > 1 for name in _PROCESS_COUNTS):
            _join()
        return
    if address is None or num_processes is None or process_id is None:
        raise ConfigError(
            f"--coordinator_address is {address}, --num_processes {num_processes} and --process_id "
            f"{process_id}: give all three to every process, or none inside Slurm or Open MPI"
        )
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id is {process_id}; with --num_processes={num_processes} it must lie "
            f"between 0 and {num_processes - 1}"
        )
    _join(address, num_processes, process_id, cluster_detection_method="deactivate")


def _join(*args, **kwargs) -> None:
    jax.distributed.initialize(*args, shutdown_timeout_seconds=30, **kwargs)
    # Before the interpreter takes apart what the connection still uses.
    atexit.register(jax.distributed.shutdown)


def is_first() -> bool:
    """Returns whether this process is the one that writes; true where there is only one."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def on_first[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function run on process 0 alone; every process gets its result or its exception.

    All processes must call it, in the same order. With one process nothing changes.

    Args:
      function: whose result and exceptions can be pickled.

    Returns:
      A function with the same arguments; those of other processes are not looked at.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not jax.distributed.is_initialized():
            return function(*args, **kwargs)
        outcome = b""
        if is_first():
            try:
                outcome = pickle.dumps((function(*args, **kwargs), None))
            except Exception as error:
                outcome = pickle.dumps((None, error))
        result, error = pickle.loads(_broadcast(outcome))
        if error is not None:
            raise error
        return result

    return call


def _broadcast(data: bytes) -> bytes:
    """Returns process 0's bytes on every process."""
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    # One program is compiled for each shape: sizes are rounded up to a power of two.
    padded = np.zeros(1 << size.bit_length(), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes()[:size]


def largest(value: int) -> int:
    """Returns the largest of the values that the processes call this with, each at least 0."""
    if not jax.distributed.is_initialized():
        return value
    from jax.experimental import multihost_utils

    gathered: Any = multihost_utils.process_allgather(np.int32(value))
    return int(np.max(gathered))
