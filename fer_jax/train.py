"""A run from configuration to record: train, validate, keep the best, open test once."""

import contextlib
import logging
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax import optim, progressive, steps
from fer_jax.config import (
    Config,
    changed_fields,
    depends_on_length,
    flatten,
    format_changes,
    validate,
)
from fer_jax.data.dataset import Dataset
from fer_jax.data.pipeline import epoch_order, start_streaming, steps_per_epoch, stream_batches
from fer_jax.data.prepare import load_dataset
from fer_jax.errors import TrainingError
from fer_jax.evaluate import Evaluator
from fer_jax.machine import devices, distributed
from fer_jax.machine.devices import BATCH_AXIS
from fer_jax.models import create_model
from fer_jax.models.summary import parameter_counts
from fer_jax.ops import native
from fer_jax.runs import plots, record
from fer_jax.runs import workdir as wd
from fer_jax.runs.checkpoint import Checkpointer, read_progress
from fer_jax.runs.progress import Progress
from fer_jax.runs.stop import Interrupted, StopRequest
from fer_jax.state import RunningSums, TrainState, create_state

log = logging.getLogger("fer_jax")

SCORE = "valid/accuracy"  # what selects the best checkpoint


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Trains, or goes on training, and returns the run's record.

    Args:
      config: the whole configuration.
      workdir: the run's folder; locked while this runs. A run that is complete there is not
        repeated.

    Returns:
      What `results.json` holds.

    Raises:
      ValueError: for a configuration that makes no sense.
      TrainingError: if the folder holds another run, or the loss is not finite.
      Interrupted: after SIGINT or SIGTERM, with the state saved.
    """
    validate(config)
    with _locked(workdir), StopRequest() as stop:
        done = _finished(config, workdir)
        if done is not None:
            log.info("This run is complete: %s", workdir / "results.json")
            return done
        return _Run(config, workdir, stop).finish()


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Holds the folder for all processes of this run: the first one has the lock."""
    with contextlib.ExitStack() as stack:
        distributed.on_first(lambda: stack.enter_context(wd.locked(workdir)))()
        yield


def _refuse_changes(config: Config, before: dict[str, Any], workdir: Path) -> None:
    """Refuses fields that keep a run from going on; it may go on longer where that is the same."""
    changes = changed_fields(config, before, length=depends_on_length(config))
    if changes:
        raise TrainingError(
            f"{workdir} holds a run with another configuration ({format_changes(changes)}). Use "
            "the same configuration to go on, or --workdir=PATH for a new run"
        )


@distributed.on_first
def _finished(config: Config, workdir: Path) -> dict[str, Any] | None:
    """Returns the record of a complete run with this configuration, if there is one."""
    found = wd.read_json(workdir / "results.json")
    if found is None:
        return None
    _refuse_changes(config, found["config"], workdir)
    return None if changed_fields(config, found["config"]) else found


class _Run:
    """One run: what is built once from the configuration, and what changes from epoch to epoch."""

    def __init__(self, config: Config, workdir: Path, stop: StopRequest):
        self.config = config
        self.workdir = workdir
        self.stop = stop
        self.dataset: Dataset = load_dataset(config.data)
        self.checkpoints = Checkpointer(workdir)
        self.history: list[dict[str, Any]] = []
        # `train_cpu` is what the process used of all cores: it does not grow with other work there.
        names = ("compile", "train", "train_cpu", "evaluate", "checkpoint")
        self.seconds: dict[str, float] = dict.fromkeys(names, 0.0)
        self.resumed_at: list[int] = []

        before = self._read_before()
        self.model = create_model(config.model, axis_name=BATCH_AXIS)
        self.mesh = devices.create_mesh(
            config.train.devices or (before["devices"] if before else 0),
            config.train.batch_size,
            parameter_counts(self.model)[0],
        )
        self.arithmetic = {"devices": self.mesh.size, "convolutions": native.convolutions()}
        for name, value in self.arithmetic.items():
            if before and before[name] != value:
                log.warning(
                    "Going on with %s %s instead of %s: equal to rounding, not to the bit",
                    *(value, name, before[name]),
                )
        self.platform = self.mesh.devices.flat[0].platform
        pipeline = config.data.pipeline
        if pipeline == "auto":
            pipeline = "stream" if self.platform == "cpu" else "resident"
        self.pipeline = pipeline
        self.evaluator = Evaluator(self.model, self.mesh, self.dataset, config.eval.batch_size)
        fresh = self._create_state()
        if config.train.start_from is not None:
            fresh = self._start_from(Path(config.train.start_from), fresh)
        self.train = self.dataset.splits["train"]
        self.per_epoch = steps_per_epoch(len(self.train.labels), config.train.batch_size)
        self.tx = optim.create_optimizer(config, self.per_epoch)
        self.class_weights = (
            steps.balanced_class_weights(np.asarray(self.train.labels))
            if config.train.class_weights == "balanced"
            else None
        )
        self.state = self._restore_or(fresh)

    # Starting

    @distributed.on_first
    def _read_before(self) -> dict[str, Any] | None:
        before = read_progress(self.workdir)
        if before is None:
            return None
        _refuse_changes(self.config, before["config"], self.workdir)
        if before["source_sha256"] != self.dataset.source_sha256:
            raise TrainingError(
                f"{self.workdir} holds a run on other data (SHA-256 {before['source_sha256'][:12]} "
                f"-> {self.dataset.source_sha256[:12]}). Give the same data to go on, or "
                "--workdir=PATH for a new run"
            )
        return before

    def _create_state(self) -> TrainState:
        # The schedule's length, known later, changes no array of the optimiser's first state.
        tx = optim.create_optimizer(self.config, 1)
        create = jax.jit(create_state, static_argnums=(0, 1, 3))
        averaged = bool(self.config.train.ema_decay)
        return create(self.model, tx, jnp.uint32(self.config.seed), averaged)

    def _start_from(self, folder: Path, fresh: TrainState) -> TrainState:
        start = self._place(progressive.best_of(folder, fresh))
        if self.config.train.drop_disagreeing:
            before = len(self.dataset.splits["train"].labels)
            self.dataset = progressive.without_disagreement(
                self.dataset, self.evaluator, start.variables
            )
            kept = len(self.dataset.splits["train"].labels)
            log.info(
                "Keeping the %d of %d training images that %s agrees with", kept, before, folder
            )
        return fresh.replace(params=start.params, batch_stats=start.batch_stats)

    def _restore_or(self, fresh: TrainState) -> TrainState:
        restored = self.checkpoints.restore_latest(fresh)
        if restored is None:
            return self._place(fresh)
        state, progress = restored
        self.history = progress["history"]
        self.seconds = progress["seconds"]
        self.resumed_at = [*progress["resumed_at"], int(state.step)]
        log.info("Going on from step %d of %s", int(state.step), self.workdir)
        return self._place(state)

    def _place(self, state: Any) -> Any:
        return devices.put(jax.device_get(state), devices.replicated(self.mesh))

    # The run

    def finish(self) -> dict[str, Any]:
        """Trains to the end, evaluates the best checkpoint and writes the record."""
        start = time.perf_counter()
        rows = wd.Log(self.workdir, self.history) if distributed.is_first() else None
        try:
            with self.checkpoints:
                self._train(rows)
                self.checkpoints.wait()
                best = self.best()
                results = self._evaluate_best(self.best_state(best), best)
        finally:
            if rows:
                rows.close()
        self.seconds["total"] = self.seconds.get("total", 0.0) + time.perf_counter() - start
        results["seconds"] = {name: round(value, 3) for name, value in self.seconds.items()}
        self._write(results)
        return results

    @distributed.on_first
    def _write(self, results: dict[str, Any]) -> None:
        plots.learning_curves(self.history, self.workdir / "learning_curves.png")
        for split in ("valid", "test"):
            plots.confusion_matrix(
                results["metrics"][split]["confusion"],
                f"{self.config.experiment}, {split}",
                self.workdir / f"confusion_{split}.png",
            )
        wd.write_json(self.workdir / "results.json", results)

    def _train(self, rows: wd.Log | None) -> None:
        epochs = self.config.train.epochs
        first = int(self.state.step) // self.per_epoch
        images = self.config.train.batch_size
        total = max(epochs - first, 0) * self.per_epoch
        train_epoch = None
        with Progress(total * images) as progress:
            for epoch in range(first, epochs):
                if self._out_of_patience(epoch):
                    log.info("No better %s for %d epochs", SCORE, self.config.train.patience)
                    break
                train_epoch = train_epoch or self._make_epoch()
                started, cpu_started = time.perf_counter(), time.process_time()
                train_epoch(epoch, progress)
                jax.block_until_ready(self.state)
                train_s = time.perf_counter() - started
                self.seconds["train"] += train_s
                self.seconds["train_cpu"] += time.process_time() - cpu_started
                row = self._end_epoch(epoch, train_s)
                if rows:
                    rows.add(row)
                    progress.epoch(row, epochs)
                self._checkpoint(row[SCORE])
                self._stop_if_asked(distributed.largest(self.stop.signum or 0))

    def _make_epoch(self):
        """Compiles the steps; returns a function (epoch, progress) that trains one epoch."""
        build = (self.model, self.tx, self.config, self.mesh, self.class_weights)
        if self.pipeline == "stream":
            return self._make_streamed_epoch(steps.make_train_step(*build, self.per_epoch))
        return self._make_resident_epoch(steps.make_resident_steps(*build))

    def _make_streamed_epoch(self, train_step):
        batch_size = self.config.train.batch_size
        start_streaming()
        sharding = devices.sharded(self.mesh)
        zeros = np.zeros((batch_size, *self.train.images.shape[1:]), np.uint8)
        example = devices.put((zeros, np.zeros(batch_size, np.int32)), sharding)
        train_step = self._timed_compile(train_step, self.state, *example)

        def train_epoch(epoch: int, progress: Progress) -> None:
            order = np.asarray(self._order(epoch))
            first = self._enter_epoch(epoch)
            for batch in stream_batches(self.train, order, batch_size, first):
                placed = devices.put(batch, sharding)  # while the step before is still running
                self._after_step(progress)
                self.state = train_step(self.state, *placed)
            self._wait_for_step(progress)  # a signal is heard after the epoch's evaluation

        return train_epoch

    def _make_resident_epoch(self, train_steps):
        sharding = devices.replicated(self.mesh)
        images = devices.put(np.asarray(self.train.images), sharding)
        labels = devices.put(np.asarray(self.train.labels, np.int32), sharding)
        if steps.is_scanned(self.mesh):
            return self._make_scanned_epoch(train_steps, images, labels)
        example = self._order(0)
        train_step = self._timed_compile(train_steps, self.state, example, images, labels, 1)

        def train_epoch(epoch: int, progress: Progress) -> None:
            order = self._order(epoch)
            for _ in range(self._enter_epoch(epoch), self.per_epoch):
                self._after_step(progress)
                self.state = train_step(self.state, order, images, labels)
            self._wait_for_step(progress)  # a signal is heard after the epoch's evaluation

        return train_epoch

    def _make_scanned_epoch(self, train_steps, images, labels):
        compiled: dict[int, Any] = {}

        def train_epoch(epoch: int, progress: Progress) -> None:
            left = self.per_epoch - self._enter_epoch(epoch)
            number = devices.put(np.int32(epoch), devices.replicated(self.mesh))
            if left not in compiled:
                scanned = steps.make_resident_epoch(train_steps, left)
                compiled[left] = self._timed_compile(scanned, self.state, images, labels, number)
            self.state = compiled[left](self.state, images, labels, number)
            self._raise_if_not_finite()
            progress.advance(left * self.config.train.batch_size)

        return train_epoch

    def _timed_compile(self, function, *args):
        start = time.perf_counter()
        compiled = function.lower(*args).compile()
        self.seconds["compile"] += time.perf_counter() - start
        return compiled

    def _order(self, epoch: int) -> jax.Array:
        order = epoch_order(jnp.uint32(self.config.seed), jnp.int32(epoch), len(self.train.labels))
        return devices.put(np.asarray(order), devices.replicated(self.mesh))

    def _enter_epoch(self, epoch: int) -> int:
        """Returns the first step to take in an epoch; at its beginning, empties the sums."""
        first = int(self.state.step) - epoch * self.per_epoch
        if first == 0:
            self.state = self.state.replace(running=self._place(RunningSums.zeros()))
        return first

    def _after_step(self, progress: Progress) -> None:
        """Waits for the step under way, so that progress is true and a signal is heard soon."""
        self._wait_for_step(progress)
        if jax.process_count() == 1:  # several stop together, at the end of an epoch
            self._stop_if_asked(self.stop.signum or 0)

    def _wait_for_step(self, progress: Progress) -> None:
        jax.block_until_ready(self.state.step)
        self._raise_if_not_finite()
        progress.at(int(self.state.step) * self.config.train.batch_size)

    def _raise_if_not_finite(self) -> None:
        bad = int(self.state.bad_step)
        if bad >= 0:
            raise TrainingError(
                f"the loss is not finite at step {bad} (epoch {bad // self.per_epoch + 1}). The "
                "last good checkpoint is kept; try a lower --config.train.learning_rate in a new "
                "--workdir"
            )

    def _stop_if_asked(self, signum: int) -> None:
        if not signum:
            return
        self._checkpoint(None)
        self.checkpoints.wait()
        raise Interrupted(
            signum,
            f"Stopped by {signal.Signals(signum).name} at step {int(self.state.step)}; saved in "
            f"{self.workdir}. The same command goes on from there",
        )

    def _end_epoch(self, epoch: int, train_s: float) -> dict[str, Any]:
        running = self.state.running.means()
        row: dict[str, Any] = {"epoch": epoch + 1, "step": int(self.state.step)}
        row |= {f"train_running/{name}": running[name] for name in ("loss", "accuracy")}
        evaluate = ["valid"] + ["train"] * self.config.train.eval_on_train
        before = self._evaluator_seconds()
        for split in evaluate:
            found, _ = self.evaluator(self.state.variables, split)
            names = ("loss", "accuracy", "accuracy_unique", "macro_f1")
            row |= {f"{split}/{name}": found[name] for name in names}
        self._add_evaluator_seconds(before)
        row["train_s"] = round(train_s, 3)
        if not math.isfinite(row["valid/loss"]):
            raise TrainingError(
                f"the valid loss is not finite after epoch {epoch + 1}. The last good checkpoint "
                "is kept; try a lower --config.train.learning_rate in a new --workdir"
            )
        self.history.append(row)
        return row

    def _evaluator_seconds(self) -> tuple[float, float]:
        return self.evaluator.compile_s, self.evaluator.wall_s

    def _add_evaluator_seconds(self, before: tuple[float, float]) -> None:
        after = self._evaluator_seconds()
        self.seconds["compile"] += after[0] - before[0]
        self.seconds["evaluate"] += after[1] - before[1]

    def _checkpoint(self, score: float | None) -> None:
        start = time.perf_counter()
        progress = {
            "config": flatten(self.config),
            **self.arithmetic,
            "source_sha256": self.dataset.source_sha256,
            "history": self.history,
            "seconds": self.seconds,
            "resumed_at": self.resumed_at,
        }
        self.checkpoints.save(self.state, progress, score)
        self.seconds["checkpoint"] += time.perf_counter() - start

    def best(self) -> dict[str, Any]:
        """Returns the history's row with the best valid accuracy, the earliest of equals."""
        there = set(self.checkpoints.steps())
        rows = [row for row in self.history if row["step"] in there]
        if not rows:
            raise TrainingError(f"no epoch has been completed in {self.workdir}")
        return max(rows, key=lambda row: row[SCORE])

    def best_state(self, best: dict[str, Any]) -> TrainState:
        """Returns the state of a history's row, on the devices."""
        return self._place(self.checkpoints.restore(self.state, best["step"])[0])

    def _out_of_patience(self, epoch: int) -> bool:
        patience = self.config.train.patience
        if not patience or not self.history:
            return False
        return epoch - max(self.history, key=lambda row: row[SCORE])["epoch"] >= patience

    # The end

    def _evaluate_best(self, state: TrainState, best: dict[str, Any]) -> dict[str, Any]:
        before = self._evaluator_seconds()
        found, predictions = {}, {}
        for split in ("train", "valid", "test"):
            if split == "test":
                opened = distributed.on_first(wd.count_test_opening)(self.workdir)
            found[split], probabilities = self.evaluator(state.variables, split)
            if split != "train":
                predictions[split] = record.encode_predictions(self.dataset, split, probabilities)
        self._add_evaluator_seconds(before)
        return {
            "format": record.FORMAT,
            "experiment": self.config.experiment,
            "seed": self.config.seed,
            "config": record.describe_config(self.config),
            "dataset": record.describe_dataset(self.dataset),
            **record.environment(),
            "devices": self.mesh.size,
            "pipeline": self.pipeline,
            "train_images": len(self.train.labels),
            "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
            "epochs_run": len(self.history),
            "best_epoch": best["epoch"],
            "resumed_at": self.resumed_at,
            "test_evaluations": opened,
            "history": self.history,
            "metrics": found,
            "predictions": predictions,
        }


def evaluate_best(config: Config, workdir: Path, split: str) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run on one split.

    Args:
      config: the run's configuration.
      workdir: the run's folder; locked meanwhile.
      split: `train`, `valid` or `test`. Opening test is counted in the folder.

    Returns:
      The metrics, as `Evaluator` describes them.

    Raises:
      TrainingError: if there is no checkpoint, or one of another configuration.
    """
    if not distributed.on_first(lambda: (workdir / "checkpoints").is_dir())():
        raise TrainingError(
            f"no checkpoint in {workdir}; train first (--mode=train), or name the run's folder "
            "with --workdir=PATH"
        )
    with _locked(workdir), StopRequest() as stop:
        run = _Run(config, workdir, stop)
        with run.checkpoints:
            state = run.best_state(run.best())
        if split == "test":
            distributed.on_first(wd.count_test_opening)(workdir)
        return run.evaluator(state.variables, split)[0]
