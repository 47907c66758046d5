"""Kills a run at random moments and checks that it ends as one that was left alone.

uv run python tests/kills.py --count=40 --output=results/reliability.json

Each time, a run on drawn faces is started, ended with SIGKILL (every fifth time with two Ctrl-C)
after a random time, or at a random moment of its last seconds, between opening test and writing the
record. The same command must then finish; its record must be one that the report reads, with test
opened once, and its parameters, metrics and predictions must be those of the run left alone.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import forked

EPOCHS = 4

EXPERIMENT = """
import sys
sys.path.insert(0, {tests!r})
import helpers
from fer_jax import config

def get_config():
    tiny = helpers.tiny_config(config.get_config(), {data!r}).unlock()
    tiny.train.epochs = {epochs}
    tiny.augment.flip = True
    return tiny
"""


def prepare(folder: Path) -> Path:
    """Writes a few faces and an experiment of a tiny network; returns the experiment's path."""
    import helpers

    from fer_jax.data import arrays
    from fer_jax.data.dataset import VERSIONS

    faces = folder / "data" / "synthetic_faces" / VERSIONS["synthetic_faces"] / "arrays"
    source = {"name": "synthetic_faces", "kind": "synthetic_faces", "sha256": "0" * 64}
    arrays.write_arrays(faces, helpers.tiny_examples(), source)
    path = folder / "tiny.py"
    text = EXPERIMENT.format(
        tests=str(forked.ROOT / "tests"), data=str(folder / "data"), epochs=EPOCHS
    )
    path.write_text(text, encoding="utf-8")
    return path


def outcome(workdir: Path) -> dict:
    """Returns all of a run that must not depend on its having been killed."""
    from helpers import without_timings

    from fer_jax import seal
    from fer_jax.report import records
    from fer_jax.runs import checkpoint, record

    found = record.read(workdir / "results.json")
    as_real = workdir / "as_fer2013.json"  # the report's reader takes no drawn faces
    named = found | {"dataset": found["dataset"] | {"name": "fer2013"}}
    as_real.write_text(json.dumps(seal.add(named)), encoding="utf-8")
    records.read(as_real)
    rows = [json.loads(x) for x in (workdir / "log.jsonl").read_text("utf-8").splitlines()]
    assert found["test_evaluations"] == 1, found["test_evaluations"]
    return {
        "parameters": {
            step: checkpoint.fingerprint(checkpoint.load_variables(workdir, step))
            for step in (found["best_step"], found["history"][-1]["step"])
        },
        "metrics": found["metrics"],
        "predictions": found["predictions"],
        "history": without_timings(found["history"]),
        "log": without_timings(rows),
    }


def interrupt(run: forked.Run, workdir: Path, how: str, random_: random.Random, whole_s: float):
    """Ends a run at a random moment; returns after which time."""
    begun = time.monotonic()
    if how == "anywhere":
        time.sleep(random_.uniform(0, whole_s))
    else:
        while not (workdir / "test_openings.json").exists() and run.poll() is None:
            time.sleep(0.001)
        time.sleep(random_.uniform(0, 0.6) if how == "end" else random_.uniform(0, 0.02))
    if random_.random() < 0.2:
        run.send(signal.SIGINT)
        time.sleep(random_.uniform(0, 0.3))
        run.send(signal.SIGINT)
        time.sleep(0.5)
    run.send(signal.SIGKILL)
    return time.monotonic() - begun


def main() -> None:
    """Does what the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="how many kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="the record that the counts go into")
    options = parser.parse_args()
    forked.preload()
    random_ = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="kills_") as scratch:
        folder = Path(scratch)
        experiment = prepare(folder)
        counts = kill_and_compare(folder, experiment, options.count, random_)
    if options.output:
        from fer_jax.report import reliability

        reliability.add(options.output, {"kills": counts})
    print(counts)
    if counts["wrong"]:
        sys.exit(1)


def kill_and_compare(folder: Path, experiment: Path, count: int, random_: random.Random) -> dict:
    """Kills, goes on and compares; returns how often what happened."""

    def launch(workdir: Path) -> forked.Run:
        return forked.start([f"--config={experiment}", f"--workdir={workdir}"])

    def finish(workdir: Path) -> None:
        status, errors = launch(workdir).wait()
        assert status == 0, errors
        assert "Traceback" not in errors, errors

    for name in ("first", "whole"):  # the first one compiles
        begun = time.monotonic()
        finish(folder / name)
    whole_s = time.monotonic() - begun
    expected = forked.call(outcome, folder / "whole")
    counts = {"kills": 0, "before_the_end": 0, "after_test_was_opened": 0, "wrong": 0}
    workdir = folder / "killed"
    while counts["kills"] < count:
        how = random_.choice(("anywhere", "anywhere", "end", "openings"))
        run = launch(workdir)
        after_s = interrupt(run, workdir, how, random_, whole_s)
        status, errors = run.wait()
        counts["kills"] += 1
        counts["before_the_end"] += not (workdir / "results.json").exists()
        counts["after_test_was_opened"] += (workdir / "test_openings.json").exists() and not (
            workdir / "results.json"
        ).exists()
        print(f"{counts['kills']}: {how}, {after_s:.2f} s, status {status}", flush=True)
        try:
            assert "Traceback" not in errors, errors
            if random_.random() < 0.5 or (workdir / "results.json").exists():
                finish(workdir)
                assert forked.call(outcome, workdir) == expected
                shutil.rmtree(workdir)
        except AssertionError as error:
            counts["wrong"] += 1
            print(f"WRONG after {how}, {after_s:.2f} s: {str(error)[-3000:]}", flush=True)
            shutil.rmtree(workdir, ignore_errors=True)
    if workdir.exists():
        finish(workdir)
        counts["wrong"] += forked.call(outcome, workdir) != expected
    return counts


if __name__ == "__main__":
    main()
