"""Checkpoints of a run. The only file that imports orbax.

A checkpoint holds the training state and, beside it, what the run knows at that point: its
configuration, its history and its clock, and the SHA-256 of every array, which is checked when it
is read. The two latest and the best on valid are kept.
"""

import contextlib
import functools
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn
from orbax.checkpoint import checkpoint_managers as policies

from fer_jax import seal
from fer_jax.errors import CheckpointError
from fer_jax.labels import IMAGE_SHAPE
from fer_jax.state import TrainState, variables_of

log = logging.getLogger("fer_jax")


class Checkpointer:
    """Writes and reads the checkpoints under `<workdir>/checkpoints`; a context manager.

    Saving returns as soon as the state has been copied; the write goes on behind. Leaving the
    context waits for it. Only one process of a run may enter it: the others get what it returns
    through `distributed.on_first`.
    """

    def __init__(self, workdir: Path):
        """Touches nothing yet; `workdir` may be relative."""
        self.folder = Path(workdir).resolve() / "checkpoints"
        self._manager: Any = None

    def __enter__(self) -> "Checkpointer":
        """Opens the folder, created if missing.

        Raises:
          CheckpointError: if that fails.
        """

        def score(metrics: dict[str, float]) -> float:
            return metrics["score"]

        best = policies.BestN(get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(n=2), best]),
            best_fn=score,  # without it, orbax would not write the scores down
            enable_async_checkpointing=True,
            create=False,  # orbax does not create folders for one process among several
            multiprocessing_options=_only_this_process(),
        )
        self._set_aside_damaged()
        with self._explained("open"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        return self

    def _set_aside_damaged(self) -> None:
        """Renames checkpoints whose score is not what was saved.

        Orbax would refuse to open the folder, or keep another one for the best.
        """
        for path in self.folder.glob("*[0-9]/metrics/metrics"):
            step = path.parent.parent
            try:
                score = json.loads(path.read_text(encoding="utf-8"))
                if score != _read_progress(step)["score"]:
                    raise ValueError(f"{path.name} holds {score}, which is not what was saved")
            except (OSError, ValueError, KeyError) as error:
                log.warning("%s cannot be read (%s); set aside as %s.damaged", step, error, step)
                aside = step.with_suffix(".damaged")
                with self._explained("set aside"):
                    shutil.rmtree(aside, ignore_errors=True)  # damaged there before
                    step.rename(aside)

    def __exit__(self, kind, *_) -> None:
        """Waits for writes under way; after an error, only closes."""
        try:
            self.wait()
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
                    state=ocp.args.StandardSave(arrays),
                    progress=ocp.args.JsonSave(
                        seal.add(progress | {"score": metrics, "sha256": checksums(arrays)})
                    ),
                ),
                metrics=metrics,
            )

    def _require_space(self, needed: int) -> None:
        """Finds out before writing: a write that fails half-way is reported by every thread."""
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"it takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free")

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          CheckpointError: if a write failed.
        """
        with self._explained("write"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints that are there, oldest first."""
        return sorted(self._manager.all_steps())

    def restore(self, state: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
        """Reads one checkpoint.

        Args:
          state: of the same structure and shapes; only these are used.
          step: one of :meth:`steps`.

        Returns:
          The state as host arrays, and the progress saved with it.

        Raises:
          CheckpointError: if it cannot be read, is damaged or has other shapes.
        """
        # NumPy leaves restore as host arrays: a checkpoint moves between numbers of devices.
        abstract = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
        folder = self.folder / str(step)
        with _named(folder):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
                ),
            )
        state, progress = restored["state"], restored["progress"]
        if seal.is_broken(progress):
            raise CheckpointError(f"checkpoint {folder} is damaged: progress is not what was saved")
        for ours, theirs in zip(jax.tree.leaves(abstract), jax.tree.leaves(state), strict=True):
            if ours.shape != theirs.shape:
                raise CheckpointError(
                    f"checkpoint {folder} holds an array {theirs.shape} where the network has "
                    f"{ours.shape}: it belongs to another model"
                )
        _verify(folder, state, progress["sha256"])
        ours = ("score", "sha256", seal.KEY)
        return state, {name: value for name, value in progress.items() if name not in ours}

    def restore_latest(self, state: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads the newest readable checkpoint, and removes newer ones that are not.

        Returns:
          As :meth:`restore`, or None if there is no checkpoint.

        Raises:
          CheckpointError: if there are checkpoints but none can be read.
        """
        steps = self.steps()
        unreadable = []
        for step in reversed(steps):
            try:
                restored = self.restore(state, step)
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


def steps_in(workdir: Path) -> list[int]:
    """Returns the steps of the checkpoints in a run's folder, oldest first; it is only read."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


def read_progress(workdir: Path) -> dict[str, Any] | None:
    """Returns the progress saved with the newest checkpoint that has it readable, else None."""
    for step in reversed(steps_in(workdir)):
        folder = workdir / "checkpoints" / str(step)
        try:
            return _read_progress(folder)
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s); looking at the one before", folder, error)
    return None


def _read_progress(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "progress" / "metadata").read_text(encoding="utf-8"))
    if seal.is_broken(found):
        raise ValueError("its progress is not what was saved")
    return found


def load_variables(workdir: Path, step: int) -> dict[str, Any]:
    """Reads what is evaluated of one checkpoint; the folder need not be writable.

    Args:
      workdir: the run's folder.
      step: one of :func:`steps_in`.

    Returns:
      `{"params", "batch_stats"}` of host arrays; see `TrainState.variables`.

    Raises:
      CheckpointError: if it cannot be read or is damaged.
    """
    folder = workdir.resolve() / "checkpoints" / str(step)
    options = _only_this_process()
    with (
        _named(folder),
        ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer,
    ):
        state = checkpointer.restore(folder / "state")
        sha256 = _read_progress(folder)["sha256"]
        variables = variables_of(state)
    # What is evaluated does not hang on the optimiser.
    _verify(folder, {n: x for n, x in state.items() if n != "opt_state"}, sha256)
    return variables


def check_variables(variables: dict[str, Any], model: nn.Module, folder: Path) -> None:
    """Raises a CheckpointError if variables that were read in a folder are not a network's."""
    images = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), np.float32)
    key = jax.random.key(0)
    expected = {"batch_stats": {}} | jax.eval_shape(
        functools.partial(model.init, train=False), key, images
    )
    ours, theirs = ({n: x.shape for n, x in _by_path(tree)} for tree in (expected, variables))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise CheckpointError(
                f"the checkpoint in {folder} belongs to another network: {name} is "
                f"{theirs.get(name, 'not there')}, not {ours.get(name, 'there')}"
            )


def checksums(arrays: Any) -> dict[str, str]:
    """Returns the SHA-256 of every array of a tree, by its path."""
    leaves = _by_path(arrays)
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        digests = pool.map(lambda leaf: _sha256(leaf[1]), leaves)
    return {path: digest for (path, _), digest in zip(leaves, digests, strict=True)}


def fingerprint(arrays: Any) -> str:
    """Returns one SHA-256 of all arrays of a tree and their paths."""
    return hashlib.sha256(json.dumps(checksums(arrays), sort_keys=True).encode()).hexdigest()


def _sha256(array: Any) -> str:
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8))
    return digest.hexdigest()


def _by_path(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree.leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), x) for path, x in leaves]


def _verify(folder: Path, arrays: Any, sha256: dict[str, str]) -> None:
    """Raises a CheckpointError that names the first array that is not what was saved."""
    for path, digest in checksums(arrays).items():
        if sha256.get(path) != digest:
            raise CheckpointError(f"checkpoint {folder} is damaged: {path} is not what was saved")


@functools.cache
def _pass_over_late_reads() -> None:
    """Silences reads that end after another one has failed.

    TensorStore's threads tell them to a loop that orbax has closed by then, and Python would print
    a traceback of each.
    """
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Names the checkpoint in whatever goes wrong while it is read."""
    try:
        yield
    except Exception as error:
        _pass_over_late_reads()
        raise CheckpointError(
            f"checkpoint {folder} cannot be read: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
