"""A run from configuration to record: train, validate, keep the best, open test once."""

import contextlib
import dataclasses
import logging
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fer_jax import ensemble, evaluate, loop, precision, progressive, seal, teachers
from fer_jax.config import Config, flatten, validate
from fer_jax.data import select
from fer_jax.data.dataset import Dataset, Split
from fer_jax.data.prepare import load_dataset
from fer_jax.errors import TrainingError
from fer_jax.loop import OnStep, Training
from fer_jax.machine import devices, distributed
from fer_jax.predict import Predict, make_predict
from fer_jax.runs import checkpoint, openings, record, resume
from fer_jax.runs import workdir as wd
from fer_jax.runs.checkpoint import Checkpointer
from fer_jax.runs.clock import Clock
from fer_jax.runs.progress import Progress
from fer_jax.runs.resume import SCORE
from fer_jax.runs.stop import Interrupted, StopRequest
from fer_jax.state import TrainState

log = logging.getLogger("fer_jax")

type Row = dict[str, Any]  # of the history: an epoch
type Save = Callable[[TrainState, float | None], None]


def train_and_evaluate(
    config: Config, workdir: Path, on_step: OnStep = lambda state: None
) -> dict[str, Any]:
    """Trains, or goes on training, and returns the run's record.

    Args:
      config: the whole configuration.
      workdir: the run's folder; locked while this runs. A run that is complete there is not
        repeated.
      on_step: called with the state after every step, or after several that are one program.

    Returns:
      What `results.json` holds.

    Raises:
      ConfigError: for a configuration that makes no sense.
      DataError: if the data set cannot be read.
      TrainingError: if the folder holds another run, or the loss is not finite.
      WorkdirError: if the folder cannot be used.
      CheckpointError: if a checkpoint cannot be written or read.
      Interrupted: after a signal of `fer_jax.runs.stop.SIGNALS`, with the state saved.
    """
    validate(config)
    with evaluate.locked(workdir), StopRequest() as stop:
        clock = Clock()
        with clock.span("load"):
            dataset = load_dataset(config.data)
        done = distributed.on_first(resume.finished)(config, workdir, dataset)
        if done is not None:
            log.info("This run is complete: %s", workdir / "results.json")
            return done
        if config.ensemble.members:
            return distributed.on_first(_combine)(config, workdir, dataset, clock)
        before = distributed.on_first(resume.read_before)(config, workdir, dataset)
        run = _build(config, workdir, dataset, before, clock, stop)
        with _opened(workdir) as checkpoints:
            state, history, resumed_at = _start(run, checkpoints)
            save = _make_save(run, checkpoints, history, resumed_at)
            _train(run, state, history, save, on_step)
            distributed.on_first(checkpoints.wait)()
        results = seal.add(_finish(run, history, resumed_at))
        distributed.on_first(record.write)(results, workdir)
        return results


# Before training


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a run is built of, once; nothing in it changes but the clock and the stop request.

    Attributes:
      train: the images that are trained on, perhaps not all of the data set's.
      teachers: what the record says of those that gave soft labels.
      start: the variables to begin with, on the host; None: those that the seed gives.
      origin: hash of these variables and of the names of the images that are trained on.
      arithmetic: what results depend on by their rounding.
    """

    config: Config
    workdir: Path
    dataset: Dataset
    train: Split
    training: Training
    predict: Predict
    pipeline: str
    teachers: list[dict[str, Any]]
    start: Any | None
    origin: str | None
    arithmetic: dict[str, Any]
    clock: Clock
    stop: StopRequest


@contextlib.contextmanager
def _opened(workdir: Path) -> Iterator[Checkpointer]:
    """Opens the checkpoints on the first process; the others have one that they may not use."""
    checkpoints = Checkpointer(workdir)
    with contextlib.ExitStack() as stack:
        distributed.on_first(lambda: bool(stack.enter_context(checkpoints)))()
        yield checkpoints


def _build(
    config: Config,
    workdir: Path,
    dataset: Dataset,
    before: dict[str, Any] | None,
    clock: Clock,
    stop: StopRequest,
) -> _Run:
    if before:
        resume.refuse_shorter(config, before["history"], workdir)
    classes = len(dataset.classes)
    model, mesh = _create_network(config, classes, before)
    precise = precision.choose(config.model.dtype)
    arithmetic = {
        "platform": mesh.devices.flat[0].platform,
        "devices": mesh.size,
        "convolutions": precise.convolutions(),
    }
    if config.model.dtype == "bfloat16" and precise == ("float32", False):
        log.warning(
            "Training in float32: config.model.dtype is bfloat16, for which a CPU must be one "
            "of AMD's with AVX512_BF16 or of Intel's with AMX, and the convolutions in C++"
        )
    for name, value in arithmetic.items():
        if before and before[name] != value:
            log.warning(
                "Going on with %s %s instead of %s: from here on it rounds otherwise",
                *(value, name, before[name]),
            )
    predict = make_predict(model, mesh, config.eval.batch_size, clock)
    train, told, start, origin = dataset.splits["train"], [], None, None
    if config.train.teachers:
        soft = distributed.on_first(teachers.soft_labels)(config, dataset, workdir)
        softened = teachers.soften(soft.probabilities, config.train.temperature)
        train, told = dataclasses.replace(train, soft=softened), soft.teachers
    if config.data.drop_contradicting or config.train.fold is not None:
        train = select.take(train, select.chosen(train, config))
    if config.train.start_from is not None:
        folder = Path(config.train.start_from).expanduser()
        start = distributed.on_first(progressive.best_variables)(
            folder, "config.train.start_from", dataset.classes
        )
        checkpoint.check_variables(start, model, folder)
        if config.train.drop_disagreeing:
            placed = devices.put(start, devices.replicated(mesh))
            train = progressive.drop_disagreeing(train, predict(placed, train.images))
            log.info(
                "Keeping the %d of %d training images that %s agrees with",
                *(len(train.labels), len(dataset.splits["train"].labels), folder),
            )
        origin = checkpoint.fingerprint({"variables": start, "images": train.ids})
        if before and before["origin"] != origin:
            raise TrainingError(
                f"config.train.start_from: what {folder} holds, or what it says of the training "
                f"images, is not what the run in {workdir} began with. Give that back to go on, or "
                "--workdir=PATH for a new run"
            )
    training = loop.create_training(config, model, mesh, train.labels, classes)
    pipeline = loop.choose_pipeline(config.data.pipeline, mesh)
    return _Run(
        *(config, workdir, dataset, train, training, predict, pipeline, told, start, origin),
        *(arithmetic, clock, stop),
    )


def _create_network(config: Config, classes: int, before: dict[str, Any] | None) -> Any:
    """Builds network and mesh; a run goes on with its number of devices if they are there."""
    if before and not config.train.devices and before["platform"] == jax.default_backend():
        with contextlib.suppress(ValueError):  # they are not there
            return loop.create_network(config, classes, before["devices"])
    return loop.create_network(config, classes)


def _start(run: _Run, checkpoints: Checkpointer) -> tuple[TrainState, list[Row], list[int]]:
    """Returns the state to go on from, on the devices, the history and where it was resumed."""
    fresh = run.training.create_state()
    restored = distributed.on_first(checkpoints.restore_latest)(fresh)
    if restored is None:
        if run.start is not None:
            fresh = fresh.replace(**run.training.place(run.start))
        return fresh, [], []
    state, progress = restored
    run.clock.resume(progress["seconds"])
    log.info("Going on from step %d of %s", int(state.step), run.workdir)
    resumed_at = [*progress["resumed_at"], int(state.step)]
    return run.training.place(state), progress["history"], resumed_at


# Training


def _make_save(
    run: _Run, checkpoints: Checkpointer, history: list[Row], resumed_at: list[int]
) -> Save:
    def save(state: TrainState, score: float | None) -> None:
        with run.clock.span("checkpoint"):
            progress = {
                "config": flatten(run.config),
                **run.arithmetic,
                "origin": run.origin,
                "source_sha256": run.dataset.source_sha256,
                "content": run.dataset.content,
                "classes": list(run.dataset.classes),
                "history": history,
                "seconds": run.clock.seconds(),
                "resumed_at": resumed_at,
            }
            distributed.on_first(checkpoints.save)(state, progress, score)
            if score is None:  # asked to stop
                distributed.on_first(checkpoints.wait)()

    return save


def _train(run: _Run, state: TrainState, history: list[Row], save: Save, on_step: OnStep) -> None:
    """Trains to the end, a checkpoint and a row of the history after every epoch."""
    per_epoch, batch_size = run.training.per_epoch, run.training.batch_size
    first, epochs = int(state.step) // per_epoch, run.config.train.epochs
    train_epoch = None
    with (
        Progress(max(epochs - first, 0) * per_epoch * batch_size) as bar,
        _log(run, history) as add,
    ):

        def watch(state: TrainState) -> None:
            step = int(state.step)
            bar.at(step * batch_size)
            _refuse_not_finite(int(state.bad_step), per_epoch)
            on_step(state)
            # At an epoch's end it is evaluated first; several processes stop together, there.
            if step % per_epoch and jax.process_count() == 1:
                _stop_if_asked(run, run.stop.signum or 0, state, save)

        bar.at(int(state.step) * batch_size)
        for epoch in range(first, epochs):
            if resume.is_out_of_patience(run.config.train.patience, history):
                log.info("No better %s for %d epochs", SCORE, run.config.train.patience)
                break
            _stop_if_asked(run, _signal_to_any(run), state, save)
            train_epoch = train_epoch or loop.make_epoch(
                run.training, run.train, run.pipeline, run.clock
            )
            before_s = run.clock.seconds().get("train", 0.0)
            with run.clock.span("train"):
                state = train_epoch(state, epoch, watch)
                jax.block_until_ready(state)
            train_s = run.clock.seconds()["train"] - before_s
            row = _end_epoch(run, state, epoch, train_s)
            history.append(row)
            add(row)
            if distributed.is_first():
                bar.epoch(row, epochs)
            save(state, row[SCORE])
        _stop_if_asked(run, _signal_to_any(run), state, save)


@contextlib.contextmanager
def _log(run: _Run, history: list[Row]) -> Iterator[Callable[[Row], None]]:
    """Opens the run's log on the first process; yields what adds a row to it."""
    if not distributed.is_first():
        yield lambda row: None
        return
    with contextlib.closing(wd.Log(run.workdir, history)) as rows:
        yield rows.add


def _refuse_not_finite(bad_step: int, per_epoch: int) -> None:
    if bad_step >= 0:
        raise TrainingError(
            f"the loss is not finite at step {bad_step} (epoch {bad_step // per_epoch + 1}). The "
            "last good checkpoint is kept; try a lower --config.train.learning_rate in a new "
            "--workdir"
        )


def _signal_to_any(run: _Run) -> int:
    """Returns the signal that asked one of the processes to stop, 0 if none did; all call it."""
    return distributed.largest(run.stop.signum or 0)


def _stop_if_asked(run: _Run, signum: int, state: TrainState, save: Save) -> None:
    if not signum:
        return
    save(state, None)
    raise Interrupted(
        signum,
        f"Stopped by {signal.Signals(signum).name} at step {int(state.step)}; saved in "
        f"{run.workdir}. The same command goes on from there",
    )


def _end_epoch(run: _Run, state: TrainState, epoch: int, train_s: float) -> Row:
    """Evaluates the state after an epoch and returns its row."""
    row: Row = {"epoch": epoch + 1, "step": int(state.step)}
    row |= {f"train_running/{name}": value for name, value in state.running.means().items()}
    for split in ["valid"] + ["train"] * run.config.train.eval_on_train:
        log_probs = run.predict(state.variables, run.dataset.splits[split].images)
        found = evaluate.measure(run.dataset, split, log_probs)
        names = ("loss", "accuracy", "accuracy_unique", "macro_f1")
        row |= {f"{split}/{name}": found[name] for name in names}
    row["train_s"] = round(train_s, 3)
    if not math.isfinite(row["valid/loss"]):
        raise TrainingError(
            f"the valid loss is not finite after epoch {epoch + 1}. The last good checkpoint is "
            "kept; try a lower --config.train.learning_rate in a new --workdir"
        )
    return row


# The end


def _end_if_asked(run: _Run) -> None:
    """Ends between two evaluations, after the last epoch, if there was a signal."""
    if signum := _signal_to_any(run):
        raise Interrupted(
            signum,
            f"Stopped by {signal.Signals(signum).name} after the last epoch; all are saved in "
            f"{run.workdir}. The same command then writes the record",
        )


def _finish(run: _Run, history: list[Row], resumed_at: list[int]) -> dict[str, Any]:
    """Evaluates the best checkpoint on every split and returns the record."""
    config = run.config
    best = distributed.on_first(resume.best_row)(history, run.workdir)
    variables = distributed.on_first(checkpoint.load_variables)(run.workdir, best["step"])
    placed = run.training.place(variables)
    log_probs = {}
    for split in ("train", "valid"):
        log_probs[split] = run.predict(placed, run.dataset.splits[split].images)
        _end_if_asked(run)
    if config.eval.open_test:
        opened, log_probs["test"] = evaluate.open_test(
            run.dataset, run.predict, placed, best, run.workdir
        )
    else:
        opened = distributed.on_first(openings.count)(run.workdir)
    found = {
        split: evaluate.measure(run.dataset, split, values) for split, values in log_probs.items()
    }
    evaluate.compare(found["valid"], "valid", best)
    described = record.describe(config, run.dataset)
    if described["device"]["platform"] != "cpu":  # there all cores are one device
        described["device"]["count"] = run.training.mesh.size  # not all that are there
    results = {
        **described,
        "convolutions": run.arithmetic["convolutions"],
        "devices": run.training.mesh.size,
        "pipeline": run.pipeline,
        "train_images": len(run.train.labels),
        "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
        "epochs_run": len(history),
        "best_epoch": best["epoch"],
        "best_step": best["step"],
        "resumed_at": resumed_at,
        "test_evaluations": opened,
        "history": history,
        "metrics": found,
        "predictions": {
            split: record.encode_predictions(run.dataset, split, np.exp(values))
            for split, values in log_probs.items()
            if split != "train" or config.eval.train_predictions
        },
    }
    if run.origin:
        results["origin"] = run.origin
    if run.teachers:
        results["teachers"] = run.teachers
    if config.eval.views != "none":
        results["views"] = evaluate.predict_views(
            *(config, run.dataset, run.predict, placed),
            [split for split in log_probs if split != "train"],
            before_split=lambda: _end_if_asked(run),
        )
    seconds = run.clock.seconds().items()
    return results | {"seconds": {name: round(value, 3) for name, value in seconds}}


def _combine(config: Config, workdir: Path, dataset: Dataset, clock: Clock) -> dict[str, Any]:
    """Averages the members of an ensemble and writes its record."""
    with clock.span("evaluate"):
        found = ensemble.combine(config, dataset)
    results = {
        **record.describe(config, dataset),
        "test_evaluations": int("test" in found["metrics"]),
        "history": [],
        **found,
        "seconds": {name: round(value, 3) for name, value in clock.seconds().items()},
    }
    results = seal.add(results)
    record.write(results, workdir)
    return results
