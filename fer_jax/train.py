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

from fer_jax import ensemble, loop, metrics, progressive, seal, teachers, tta
from fer_jax.config import (
    Config,
    changed_fields,
    depends_on_length,
    flatten,
    format_changes,
    validate,
)
from fer_jax.data import select
from fer_jax.data.dataset import Dataset, Split
from fer_jax.data.prepare import load_dataset
from fer_jax.errors import TrainingError, WorkdirError
from fer_jax.loop import OnStep, Training
from fer_jax.machine import devices, distributed
from fer_jax.ops import native
from fer_jax.predict import Predict, make_predict
from fer_jax.runs import checkpoint, openings, plots, record
from fer_jax.runs import workdir as wd
from fer_jax.runs.checkpoint import Checkpointer
from fer_jax.runs.clock import Clock
from fer_jax.runs.progress import Progress
from fer_jax.runs.stop import Interrupted, StopRequest
from fer_jax.state import TrainState

log = logging.getLogger("fer_jax")

SCORE = "valid/accuracy"  # what selects the best checkpoint

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
      Interrupted: after SIGINT or SIGTERM, with the state saved.
    """
    validate(config)
    with _locked(workdir), StopRequest() as stop:
        done = distributed.on_first(_finished)(config, workdir)
        if done is not None:
            log.info("This run is complete: %s", workdir / "results.json")
            return done
        clock = Clock()
        with clock.span("load"):
            dataset = load_dataset(config.data)
        if config.ensemble.members:
            return distributed.on_first(_combine)(config, workdir, dataset, clock)
        before = distributed.on_first(_read_before)(config, workdir, dataset)
        run = _build(config, workdir, dataset, before, clock, stop)
        with _opened(workdir) as checkpoints:
            state, history, resumed_at = _start(run, checkpoints)
            save = _make_save(run, checkpoints, history, resumed_at)
            _train(run, state, history, save, on_step)
            distributed.on_first(checkpoints.wait)()
        results = seal.add(_finish(run, history, resumed_at))
        distributed.on_first(_write)(results, workdir)
        return results


def evaluate_best(config: Config, workdir: Path, split: str) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run on one split; the folder need not be writable.

    Args:
      config: the run's configuration.
      workdir: the run's folder.
      split: `train`, `valid` or `test`. Opening test for a checkpoint that it was not opened for
        before is counted in the folder, which must be writable for that.

    Returns:
      The metrics that :func:`fer_jax.metrics.of_split` describes.

    Raises:
      ConfigError: for a configuration that makes no sense.
      DataError: if the data set cannot be read.
      TrainingError: if there is no checkpoint, or one of another configuration.
      CheckpointError: if the best checkpoint is damaged.
      WorkdirError: if opening test cannot be counted.
    """
    validate(config)
    dataset = load_dataset(config.data)
    before = distributed.on_first(_read_before)(config, workdir, dataset)
    if before is None:
        raise TrainingError(
            f"no checkpoint in {workdir}; train first (--mode=train), or name the run's folder "
            "with --workdir=PATH"
        )
    best = distributed.on_first(_best)(before["history"], workdir)
    model, mesh = loop.create_network(config, len(dataset.classes), requested=0)
    variables = distributed.on_first(checkpoint.load_variables)(workdir, best["step"])
    checkpoint.check_variables(variables, model, workdir)
    predict = make_predict(model, mesh, config.eval.batch_size)
    placed = devices.put(variables, devices.replicated(mesh))
    if split == "test":
        with _locked_for_test(workdir, variables):
            _, log_probs = _open_test(dataset, predict, placed, best, workdir)
    else:
        log_probs = predict(placed, dataset.splits[split].images)
    found = _measure(dataset, split, log_probs)
    _compare(found, split, best)
    return found


# Before training


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Holds the folder for all processes of this run: the first one has the lock."""
    with contextlib.ExitStack() as stack:
        distributed.on_first(lambda: stack.enter_context(wd.locked(workdir)))()
        yield


@contextlib.contextmanager
def _opened(workdir: Path) -> Iterator[Checkpointer]:
    """Opens the checkpoints on the first process; the others have one that they may not use."""
    checkpoints = Checkpointer(workdir)
    with contextlib.ExitStack() as stack:
        distributed.on_first(lambda: bool(stack.enter_context(checkpoints)))()
        yield checkpoints


def _refuse_changes(config: Config, before: dict[str, Any], workdir: Path) -> None:
    """Refuses fields that keep a run from going on; it may go on longer where that is the same."""
    changes = changed_fields(config, before, length=depends_on_length(config))
    if changes:
        raise TrainingError(
            f"{workdir} holds a run with another configuration ({format_changes(changes)}). Use "
            "the same configuration to go on, or --workdir=PATH for a new run"
        )


def _refuse_fewer_epochs(config: Config, history: list[Row], workdir: Path) -> None:
    if config.train.epochs < len(history):
        raise TrainingError(
            f"{workdir} holds a run of {len(history)} epochs, but config.train.epochs is "
            f"{config.train.epochs}. Ask for {len(history)} or more to go on, or give a shorter "
            "run a folder of its own with --workdir=PATH"
        )


def _finished(config: Config, workdir: Path) -> dict[str, Any] | None:
    """Returns the record of a complete run with this configuration, if there is one."""
    path = workdir / "results.json"
    found = wd.read_json(path)
    if found is None:
        return None
    try:
        before, history, _ = found["config"], found["history"], found["metrics"]
    except (KeyError, TypeError):
        raise WorkdirError(f"{path} is not a run's record; move it away to go on") from None
    _refuse_changes(config, before, workdir)
    if not changed_fields(config, before):
        return found
    _refuse_fewer_epochs(config, history, workdir)
    return None


def _read_before(config: Config, workdir: Path, dataset: Dataset) -> dict[str, Any] | None:
    """Returns what the run so far knows, if it can go on with this configuration and data."""
    before = checkpoint.read_progress(workdir)
    if before is None:
        return None
    _refuse_changes(config, before["config"], workdir)
    if before["source_sha256"] != dataset.source_sha256:
        raise TrainingError(
            f"{workdir} holds a run on other data (SHA-256 {before['source_sha256'][:12]} -> "
            f"{dataset.source_sha256[:12]}). Give the same data to go on, or --workdir=PATH for a "
            "new run"
        )
    return before


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a run is built of, once; nothing in it changes but the clock and the stop request.

    Attributes:
      train: the images that are trained on, perhaps not all of the data set's.
      teachers: what the record says of those that gave soft labels.
      start: the variables to begin with, on the host; None: those that the seed gives.
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
    arithmetic: dict[str, Any]
    clock: Clock
    stop: StopRequest


def _build(
    config: Config,
    workdir: Path,
    dataset: Dataset,
    before: dict[str, Any] | None,
    clock: Clock,
    stop: StopRequest,
) -> _Run:
    if before:
        _refuse_fewer_epochs(config, before["history"], workdir)
    classes = len(dataset.classes)
    model, mesh = _create_network(config, classes, before)
    arithmetic = {
        "platform": mesh.devices.flat[0].platform,
        "devices": mesh.size,
        "convolutions": native.convolutions(),
    }
    for name, value in arithmetic.items():
        if before and before[name] != value:
            log.warning(
                "Going on with %s %s instead of %s: equal to rounding, not to the bit",
                *(value, name, before[name]),
            )
    predict = make_predict(model, mesh, config.eval.batch_size, clock)
    train, told, start = dataset.splits["train"], [], None
    if config.train.teachers:
        soft = distributed.on_first(teachers.soft_labels)(config, dataset, workdir)
        softened = teachers.soften(soft.probabilities, config.train.temperature)
        train, told = dataclasses.replace(train, soft=softened), soft.teachers
    if config.data.drop_contradicting or config.train.fold is not None:
        train = select.take(train, select.chosen(train, config))
    if config.train.start_from is not None:
        folder = Path(config.train.start_from).expanduser()
        start = distributed.on_first(progressive.best_variables)(folder)
        checkpoint.check_variables(start, model, folder)
        if config.train.drop_disagreeing:
            placed = devices.put(start, devices.replicated(mesh))
            train = progressive.drop_disagreeing(train, predict(placed, train.images))
            log.info(
                "Keeping the %d of %d training images that %s agrees with",
                *(len(train.labels), len(dataset.splits["train"].labels), folder),
            )
    training = loop.create_training(config, model, mesh, train.labels, classes)
    pipeline = loop.choose_pipeline(config.data.pipeline, mesh)
    return _Run(
        *(config, workdir, dataset, train, training, predict, pipeline, told, start),
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
                "source_sha256": run.dataset.source_sha256,
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
            if _is_out_of_patience(run.config.train.patience, history):
                log.info("No better %s for %d epochs", SCORE, run.config.train.patience)
                break
            _stop_if_asked(run, distributed.largest(run.stop.signum or 0), state, save)
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
        _stop_if_asked(run, distributed.largest(run.stop.signum or 0), state, save)


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


def _stop_if_asked(run: _Run, signum: int, state: TrainState, save: Save) -> None:
    if not signum:
        return
    save(state, None)
    raise Interrupted(
        signum,
        f"Stopped by {signal.Signals(signum).name} at step {int(state.step)}; saved in "
        f"{run.workdir}. The same command goes on from there",
    )


def _is_out_of_patience(patience: int, history: list[Row]) -> bool:
    if not patience or not history:
        return False
    best = max(history, key=lambda row: row[SCORE])  # the earliest of equals
    return history[-1]["epoch"] - best["epoch"] >= patience


def _end_epoch(run: _Run, state: TrainState, epoch: int, train_s: float) -> Row:
    """Evaluates the state after an epoch and returns its row."""
    row: Row = {"epoch": epoch + 1, "step": int(state.step)}
    row |= {f"train_running/{name}": value for name, value in state.running.means().items()}
    for split in ["valid"] + ["train"] * run.config.train.eval_on_train:
        log_probs = run.predict(state.variables, run.dataset.splits[split].images)
        found = _measure(run.dataset, split, log_probs)
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


def _best(history: list[Row], workdir: Path) -> Row:
    """Returns the row with the best valid accuracy, the earliest of equals, of those kept."""
    there = set(checkpoint.steps_in(workdir))
    rows = [row for row in history if row["step"] in there]
    if not rows:
        raise TrainingError(f"no epoch has been completed in {workdir}; train first")
    best, of_all = (max(found, key=lambda row: row[SCORE]) for found in (rows, history))
    if best is not of_all:
        log.warning(
            "The checkpoint of the best epoch, %d (%s %.4f), is not in %s; the best of those "
            "there is epoch %d (%.4f)",
            *(of_all["epoch"], SCORE, of_all[SCORE], workdir / "checkpoints"),
            *(best["epoch"], best[SCORE]),
        )
    return best


def _measure(dataset: Dataset, split: str, log_probs: np.ndarray) -> dict[str, Any]:
    found = dataset.splits[split]
    return metrics.of_split(found.labels, found.in_train, log_probs, dataset.classes)


def _open_test(
    dataset: Dataset, predict: Predict, variables: Any, best: Row, workdir: Path
) -> tuple[int, np.ndarray]:
    """Returns how often test has been opened by now, and its log-probabilities.

    What test gives for a checkpoint is kept in the folder before anything else is done with it.
    """
    key = checkpoint.fingerprint(variables)
    opened, log_probs = distributed.on_first(openings.find)(workdir, key)
    if log_probs is None:
        if opened:
            log.warning(
                "Test was opened before, for another checkpoint of this run: this is opening %d, "
                "and the run is no longer one whose test result was seen once",
                opened + 1,
            )
        log_probs = predict(variables, dataset.splits["test"].images)
        opened = distributed.on_first(openings.keep)(workdir, best["epoch"], key, log_probs)
    return opened, log_probs


@contextlib.contextmanager
def _locked_for_test(workdir: Path, variables: Any) -> Iterator[None]:
    """Holds the folder if opening test is still to be counted there."""

    def is_open() -> bool:
        return openings.find(workdir, checkpoint.fingerprint(variables))[1] is not None

    if distributed.on_first(is_open)():
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(workdir))
        except WorkdirError as error:
            raise WorkdirError(
                f"opening test is counted in the run's folder, and that is not possible: {error}"
            ) from error
        yield


def _compare(found: dict[str, Any], split: str, best: Row) -> None:
    """Warns if a checkpoint gives other numbers than it gave when it was saved."""
    expected, accuracy = best.get(f"{split}/accuracy"), found["accuracy"]
    # Rounding moves an image over a border now and then.
    if expected is not None and abs(accuracy - expected) > max(2 / found["count"], 1e-3):
        log.warning(
            "Accuracy on %s is %.4f, but was %.4f when the checkpoint was saved: do code, data and "
            "machine compute the same?",
            *(split, accuracy, expected),
        )


def _finish(run: _Run, history: list[Row], resumed_at: list[int]) -> dict[str, Any]:
    """Evaluates the best checkpoint on every split and returns the record."""
    config = run.config
    best = distributed.on_first(_best)(history, run.workdir)
    variables = distributed.on_first(checkpoint.load_variables)(run.workdir, best["step"])
    placed = run.training.place(variables)
    log_probs = {n: run.predict(placed, run.dataset.splits[n].images) for n in ("train", "valid")}
    opened = 0
    if config.eval.open_test:
        opened, log_probs["test"] = _open_test(run.dataset, run.predict, placed, best, run.workdir)
    found = {split: _measure(run.dataset, split, values) for split, values in log_probs.items()}
    _compare(found["valid"], "valid", best)
    results = {
        "format": record.FORMAT,
        "experiment": config.experiment,
        "seed": config.seed,
        "config": record.describe_config(config),
        "dataset": record.describe_dataset(run.dataset),
        **record.environment(),
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
    if run.teachers:
        results["teachers"] = run.teachers
    if config.eval.views != "none":
        results["views"] = _predict_views(run, placed, [s for s in log_probs if s != "train"])
    seconds = run.clock.seconds().items()
    return results | {"seconds": {name: round(value, 3) for name, value in seconds}}


def _predict_views(run: _Run, variables: Any, splits: list[str]) -> dict[str, Any]:
    """Returns what the record says of averages over views of each image."""
    found: dict[str, Any] = {"name": run.config.eval.views, "metrics": {}, "predictions": {}}
    how = (run.config.eval.views, run.config.eval.average)
    for split in splits:
        images = np.asarray(run.dataset.splits[split].images)
        log_probs = tta.predict_views(run.predict, variables, images, *how)
        found["metrics"][split] = _measure(run.dataset, split, log_probs)
        found["predictions"][split] = record.encode_predictions(
            run.dataset, split, np.exp(log_probs)
        )
    return found


def _combine(config: Config, workdir: Path, dataset: Dataset, clock: Clock) -> dict[str, Any]:
    """Averages the members of an ensemble and writes its record."""
    with clock.span("evaluate"):
        found = ensemble.combine(config, dataset)
    results: dict[str, Any] = {
        "format": record.FORMAT,
        "experiment": config.experiment,
        "seed": config.seed,
        "config": record.describe_config(config),
        "dataset": record.describe_dataset(dataset),
        **record.environment(),
        "test_evaluations": int("test" in found["metrics"]),
        "history": [],
        **found,
        "seconds": {name: round(value, 3) for name, value in clock.seconds().items()},
    }
    results = seal.add(results)
    _write(results, workdir)
    return results


def _write(results: dict[str, Any], workdir: Path) -> None:
    try:
        if results["history"]:
            plots.learning_curves(results["history"], workdir / "learning_curves.png")
        for split in [name for name in ("valid", "test") if name in results["metrics"]]:
            plots.confusion_matrix(
                results["metrics"][split]["confusion"],
                f"{results['experiment']}, {split}",
                workdir / f"confusion_{split}.png",
            )
        wd.write_json(workdir / "results.json", results)
    except WorkdirError as error:
        raise WorkdirError(
            f"{error}. All epochs are kept: the same command then only writes the record"
        ) from error
