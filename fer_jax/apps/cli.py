"""The command `fer-jax`: a trained network on pictures, videos, cameras; scoring predictions."""

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fer_jax.errors import FerError

_STATUS = """exit status: 0 if everything was read and holds a face; 1 if something could not be
read or written, is damaged or holds no face (the others are done); 2 if nothing could be begun, or
nothing more be written; 130 after Ctrl-C, with which a camera ends as it should, with 0 or 1; 141
if what reads the output went away. What --json or --csv holds already is not done again: it gets no
copy, and a video damaged in part counts the first time only. But with --no-detect, files without a
face are done again."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line says; returns the exit status."""
    try:
        try:
            status = _run(_options(arguments))
        except SystemExit:  # after --help, or a mistake in the command line
            _flush()
            raise
        _flush()
        return status
    except BrokenPipeError:
        # Else Python writes the rest at its end, and fails once more.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        return 128 + signal.SIGPIPE


def _flush() -> None:
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it was closed beforehand
        stream.flush()


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.run is _predict and not options.paths and options.camera is None:
        parser.error("name pictures, folders or videos, or a camera with --camera=0")
    return options


def _run(options: argparse.Namespace) -> int:
    """Does what the options say, and names on standard error what ended it."""
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    logging.getLogger("fer_jax").setLevel(logging.INFO)
    try:
        return options.run(options)
    except FerError as error:
        print(f"fer-jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _parser() -> argparse.ArgumentParser:
    from fer_jax.config import VIEWS

    parser = argparse.ArgumentParser("fer-jax", description="Seven emotions in faces.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_export(commands)
    _add_pack(commands)
    command = commands.add_parser(
        "predict",
        help="find faces in pictures and videos, and say how probable each emotion is",
        epilog=_STATUS,
    )
    command.set_defaults(run=_predict)
    add = command.add_argument
    add("paths", nargs="*", type=Path, metavar="PATH", help="picture, video, or folder of such")
    add("--camera", type=_number(0), metavar="INDEX", help="look at a camera, until Ctrl-C")
    add("--weights", help="name of shipped weights, their folder, a run's folder or a Keras file")
    add(
        "--views",
        choices=VIEWS,
        default="none",
        help="average over views of a face: flip 2, ten_crop 10, shifts 18, for as many times the "
        "network's work; shifts is what the tables of accuracy call views averaged",
    )
    add(
        "--no-detect",
        dest="detect",
        action="store_false",
        help="each picture is a face, cut out like FER2013's; others give their middle square",
    )
    add("--out", type=_file, metavar="DIR", help="write annotated copies there")
    add("--json", type=_file, metavar="FILE", help="write, or go on with, a table in JSON lines")
    add("--csv", type=_file, metavar="FILE", help="the same as CSV")
    add("--every", type=_number(1), default=1, metavar="N", help="look at every Nth frame only")
    add(
        "--smooth",
        type=_seconds,
        default=0.5,
        metavar="SECONDS",
        help="average what is drawn of a face in a video over so long (default 0.5; 0: off); "
        "tables are never smoothed",
    )
    add("--shard", type=_shard, default=(0, 1), metavar="i/n", help="do the i-th of n parts only")
    add(
        "--explain",
        action="store_true",
        help="in annotated copies, show what speaks for the label in red, against it in blue",
    )
    command = commands.add_parser(
        "demo", help="serve the page, a network in your browser, or write it for a web server"
    )
    command.set_defaults(run=_demo)
    add = command.add_argument
    add("--weights", help="name of shipped weights, or their folder")
    add("--port", type=_number(0), default=8000, help="on this machine (default 8000; 0: any)")
    add("--build", type=_file, metavar="DIR", help="write the page there, and serve nothing")
    _add_score(commands)
    return parser


def _demo(options: argparse.Namespace) -> int:
    from fer_jax.apps import demo

    if options.build:
        demo.build(options.build, options.weights)
    else:
        demo.serve(options.weights, options.port)
    return 0


def _add_score(commands: Any) -> None:
    parser = commands.add_parser(
        "score",
        help="score any network's predictions for FER2013's PublicTest or PrivateTest",
        description="Scores predictions, a row for each image: its name in the JPEG mirror, such as"
        " PrivateTest_10131363, or its row in the competition's CSV; and seven columns of"
        " probabilities or logits, named by class, or one named prediction. Labels are those of the"
        " data set as prepared here.",
    )
    parser.set_defaults(run=_score)
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="CSV, or Parquet where pyarrow is installed")
    add(
        "--csv",
        type=_file,
        metavar="FILE",
        help="the competition's fer2013.csv, if images are rows",
    )
    add("--logits", action="store_true", help="the values are logits, whatever they look like")
    add("--partial", action="store_true", help="score a file that lacks images of a split")
    add("--json", type=_file, metavar="FILE", help="write everything there")
    add("--picture", type=_file, metavar="FILE", help="draw it, as .png, .pdf or .svg")


def _score(options: argparse.Namespace) -> int:
    from fer_jax.apps import score

    scored = score.score(options.file, options.csv, options.logits, options.partial)
    print(score.to_text(scored))
    if options.json:
        score.write_json(scored, options.json)
    if options.picture:
        score.draw(scored, options.picture)
    return 0


def _add_export(commands) -> None:
    export = commands.add_parser(
        "export", help="write a trained network for ONNX Runtime, a browser, or XLA"
    )
    export.set_defaults(run=_export)
    add = export.add_argument
    add("weights", help="name of shipped weights, their folder, a run's folder or a Keras file")
    add("--format", choices=("onnx", "stablehlo"), default="onnx", help="default: onnx")
    add(
        "--kernels",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="how ONNX stores them: float16 halves the size, int8 quarters it",
    )
    add("--out", type=_file, metavar="FILE", help="default: the weights' name with .onnx or so")


def _export(options: argparse.Namespace) -> int:
    from fer_jax.apps import onnx, stablehlo
    from fer_jax.apps.load import load_network
    from fer_jax.runs import workdir

    if options.kernels != "float32" and options.format != "onnx":
        raise FerError(f"--kernels={options.kernels} is for --format=onnx")
    model, variables, name, metadata = load_network(options.weights)
    metadata = {"source": name} | metadata
    if options.format == "onnx":
        data = onnx.export(model, variables, metadata, options.kernels)
    else:
        data = stablehlo.export(model, variables, metadata)
    out = options.out or Path(f"{name}.{options.format}")
    workdir.write_bytes(out, data)
    print(f"{out}: {len(data):,} bytes")
    return 0


def _add_pack(commands: Any) -> None:
    command = commands.add_parser(
        "pack", help="turn a finished run into weights with a card, for others to use"
    )
    command.set_defaults(run=_pack)
    command.add_argument("run_folder", type=_file, metavar="RUN", help="the run's folder")
    command.add_argument(
        "--out", type=_file, required=True, metavar="DIR", help="named as the weights shall be"
    )


def _pack(options: argparse.Namespace) -> int:
    from fer_jax.weights.pack import pack

    _prepare_jax()
    metadata = pack(options.run_folder, options.out)
    print(f"{options.out}: {metadata['parameters']:,} parameters, kernels as {metadata['kernels']}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    if options.json and options.csv:
        raise FerError("--json and --csv are one table each; name one of them")
    if options.explain and not options.out:
        raise FerError("--explain draws into annotated copies; say where with --out=DIR")
    from fer_jax.apps import run
    from fer_jax.apps.load import load
    from fer_jax.apps.table import Table

    _prepare_jax()
    index, count = options.shard
    files, root, unread = run.find_files(options.paths, options.out)
    if not files and options.camera is None:
        raise FerError(f"no picture or video in {', '.join(map(str, options.paths))}")
    predictor = load(options.weights, options.views)
    what = run.Options(options.detect, options.out, options.explain, options.every, options.smooth)
    path, kind = (options.json, "json") if options.json else (options.csv, "csv")
    with contextlib.ExitStack() as stack:
        table = None
        if path:
            views = "" if predictor.views == "none" else f"+{predictor.views}"
            weights = f"{predictor.name}@{predictor.fingerprint}{views}"
            table = stack.enter_context(Table(path, kind, predictor.classes, weights))
        mine = files[index::count]
        return run.run(predictor, mine, root, what, table, options.camera, unread)


def _prepare_jax() -> None:
    """Keeps compiled programs, so that the next command answers sooner, and spares a GPU's memory.

    Not `devices.setup`: one device, which uses all cores, answers a few faces soonest.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from fer_jax.machine import environment

    kept = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if kept is None and (folder := environment.cache_folder()):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _file(text: str) -> Path:
    """Returns a path; shells leave the ~ of `--out=~/x` to the program."""
    return Path(os.path.expanduser(text))


def _number(least: int):
    def number(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least}")
        return int(text)

    return number


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 3600:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not i/n with i from 0 to n - 1")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    sys.exit(main())
