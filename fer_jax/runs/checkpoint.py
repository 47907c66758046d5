"""Checkpoints of a run. The only file that imports orbax.

A checkpoint holds the training state and, beside it, what the run knows at that point: its
configuration, its history and its clock. The two latest and the best on valid are kept.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from fer_jax.errors import CheckpointError
from fer_jax.machine import distributed
from fer_jax.state import TrainState

log = logging.getLogger("fer_jax")


class Checkpointer:
    """Writes and reads the checkpoints under `<workdir>/checkpoints`; a context manager.

    Saving returns as soon as the state has been copied; the write goes on behind. Leaving the
    context waits for it. With several processes, each calls every method and process 0 alone
    touches the folder.
    """

    def __init__(self, workdir: Path):
        """Opens, or creates, the folder; `workdir` may be relative."""
        self.folder = Path(workdir).resolve() / "checkpoints"
        self._manager: Any = None
        self._open()

    @distributed.on_first
    def _open(self) -> None:
        def score(metrics: dict[str, float]) -> float:
            return metrics["score"]

        policy = policies.AnyPreservationPolicy(
            [
                policies.LatestN(n=2),
                policies.BestN(
                    get_metric_fn=score,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=score,  # without it, orbax would not write the scores down
            enable_async_checkpointing=True,
            create=False,  # orbax does not create folders for one process among several
            multiprocessing_options=_only_this_process(),
        )
        self._set_aside_damaged()
        with self._explained("open"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)

    def _set_aside_damaged(self) -> None:
        """Renames checkpoints whose score cannot be read: orbax would refuse to open the folder."""
        for path in self.folder.glob("*/metrics/metrics"):
            try:
                json.loads(path.read_text())
            except (OSError, ValueError) as error:
                step = path.parent.parent
                log.warning("%s cannot be read (%s); set aside as %s.damaged", step, error, step)
                step.rename(step.with_suffix(".damaged"))

    def __enter__(self) -> "Checkpointer":
        """Returns itself."""
        return self

    def __exit__(self, kind, *_) -> None:
        """Waits for writes under way; after an error, only closes."""
        if self._manager is None:
            return
        try:
            self._wait()
        except CheckpointError:
            if kind is None:
                raise
        finally:
            with contextlib.suppress(Exception):
                self._manager.close()

    @contextlib.contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(
                f"could not {verb} a checkpoint in {self.folder}: {_first_line(error)}. "
                "Checkpoints written before are intact; make room or allow writing there, then "
                "run the same command again"
            ) from error

    @distributed.on_first
    def save(self, state: TrainState, progress: dict[str, Any], score: float | None) -> None:
        """Starts writing a checkpoint named after `state.step`.

        Args:
          state: copied before this returns, so that later steps may take its memory.
          progress: JSON-serialisable.
          score: valid accuracy at the end of an epoch; None in mid-epoch.

        Raises:
          CheckpointError: if this write, or the one before it, failed.
        """
        step = int(state.step)
        # On CPU `np.asarray` would only look at the device's memory, which the next step reuses.
        arrays = jax.tree.map(lambda x: np.array(x, copy=True), state)
        # The earlier of two equal scores is the better: it was there first.
        metrics = None if score is None else {"score": score - step * 1e-12}
        with self._explained("write"):
            if step in self._manager.all_steps():
                return
            self._require_space(sum(x.nbytes for x in jax.tree.leaves(arrays)))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress)
                ),
                metrics=metrics,
            )

    def _require_space(self, needed: int) -> None:
        """Finds out before writing: a write that fails half-way is reported by every thread."""
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"it takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free")

    @distributed.on_first
    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          CheckpointError: if a write failed.
        """
        self._wait()

    def _wait(self) -> None:
        with self._explained("write"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    @distributed.on_first
    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints that are there, oldest first."""
        return self._steps()

    def _steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    @distributed.on_first
    def restore(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """Reads one checkpoint.

        Args:
          state: of the same structure and shapes; only these are used.
          step: one of :meth:`steps`.

        Returns:
          The state as host arrays, and the progress saved with it.

        Raises:
          CheckpointError: if it cannot be read or has other shapes.
        """
        return self._restore(state, step)

    def _restore(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        # NumPy leaves restore as host arrays: a checkpoint moves between numbers of devices.
        abstract = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
                ),
            )
            state, progress = restored["state"], restored["progress"]
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} cannot be read: {_first_line(error)}"
            ) from error
        for ours, theirs in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
            if ours.shape != theirs.shape:
                raise CheckpointError(
                    f"checkpoint {self.folder / str(step)} holds an array {theirs.shape} where the "
                    f"network has {ours.shape}: it belongs to another model"
                )
        return state, progress

    @distributed.on_first
    def restore_latest(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads the newest readable checkpoint, and removes newer ones that are not.

        Returns:
          As :meth:`restore`, or None if there is no checkpoint.

        Raises:
          CheckpointError: if there are checkpoints but none can be read.
        """
        steps = self._steps()
        unreadable = []
        for step in reversed(steps):
            try:
                restored = self._restore(state, step)
            except CheckpointError as error:
                log.warning("%s; trying the one before", error)
                unreadable.append(step)
                continue
            for bad in unreadable:
                shutil.rmtree(self.folder / str(bad), ignore_errors=True)
            self._manager.reload()
            return restored
        if steps or list(self.folder.glob("*.damaged")):
            raise CheckpointError(
                f"none of the checkpoints in {self.folder} can be read; move the folder away to "
                "start anew"
            )
        return None


def _only_this_process() -> ocp.options.MultiprocessingOptions:
    if not jax.distributed.is_initialized():
        return ocp.options.MultiprocessingOptions()
    this = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=this, active_processes={this}, barrier_sync_key_prefix="first"
    )


def read_progress(workdir: Path) -> dict[str, Any] | None:
    """Returns the progress saved with the newest checkpoint that has it readable, else None."""
    folder = Path(workdir) / "checkpoints"
    steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
    for step in sorted(steps, reverse=True):
        with contextlib.suppress(OSError, ValueError):
            return json.loads((folder / str(step) / "progress" / "metadata").read_text())
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
