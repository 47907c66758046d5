"""`launch.py` as its users run it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
QUICKSTART = f"--config={ROOT / 'experiments' / 'quickstart.py'}"


def launch(*arguments, **kwargs):
    return subprocess.run(
        [sys.executable, ROOT / "launch.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **kwargs,
    )


def test_help_names_every_mode_and_touches_no_heavy_package():
    code = (
        "import sys; sys.argv = ['launch.py', '--help']\n"
        "try: import runpy; runpy.run_path('launch.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([m for m in ('jax', 'tensorflow', 'tensorflow_datasets') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "--mode: <train|evaluate|study" in run.stdout
    assert run.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        (["--config=experiments/nowhere.py"], "No such file"),
        ([QUICKSTART, "--nonsense"], "Unknown command line flag 'nonsense'"),
        ([QUICKSTART, "--mode=dance"], "should be one of <train|"),
        ([QUICKSTART, QUICKSTART], "--config is given 2 times"),
        ([QUICKSTART, "train"], "unexpected argument 'train'"),
    ],
)
def test_a_wrong_command_line_ends_in_a_line(arguments, message):
    run = launch(*arguments)
    assert run.returncode not in (0, None)
    assert message in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([QUICKSTART, "--config.train.epoch=3"], "near it: --config.train.epochs"),
        ([QUICKSTART, "--config.train.epochs=many"], "it must be a whole number"),
        ([QUICKSTART, "--config.augment.flip=perhaps"], "it must be true or false"),
        ([QUICKSTART, "--config.train.batch_size=0"], "it must lie between 1 and"),
        ([QUICKSTART, "--config.model.name=arch04"], "must be one of alexnet, arch01"),
        ([QUICKSTART, "--config.data.source=x.zip"], "is drawn"),
        (
            [QUICKSTART, "--config.data.name=fer2013", "--config.data.source=nowhere.zip"],
            "nowhere.zip",
        ),
    ],
)
def test_a_wrong_field_ends_in_a_line(arguments, message, tmp_path):
    run = launch(*arguments, f"--workdir={tmp_path}")
    assert run.returncode not in (0, None)
    assert message in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_train_with_overrides_then_evaluate_then_summary(data_dir, tmp_path, clean_environment):
    common = (
        QUICKSTART,
        f"--config.data.data_dir={data_dir}",
        "--config.train.batch_size=16",
        "--config.train.epochs=2",
        "--config.train.devices=1",
        f"--workdir={tmp_path / 'run'}",
    )
    run = launch(*common, env=clean_environment)
    assert run.returncode == 0, run.stderr
    assert "epoch   2/2" in run.stderr
    assert "best on valid after epoch" in run.stdout
    assert str(tmp_path / "run" / "results.json") in run.stdout
    evaluated = launch(*common, "--mode=evaluate", env=clean_environment)
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.splitlines()[-1].split()[:2] == ["valid", "21"]
    assert evaluated.stdout.splitlines()[-1] in run.stdout  # the row that training ended with
    summary = launch(QUICKSTART, "--mode=summary", env=clean_environment)
    assert "420,199" in summary.stdout


@pytest.mark.slow
def test_a_prepared_data_set_trains_without_importing_tensorflow(
    data_dir, tmp_path, clean_environment
):
    code = (
        "import sys; sys.argv = ['launch.py', *sys.argv[1:]]\n"
        "try: import runpy; runpy.run_path('launch.py', run_name='__main__')\n"
        "except SystemExit as end: print('status', end.code)\n"
        "print([m for m in ('tensorflow', 'tensorflow_datasets') if m in sys.modules])"
    )
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            QUICKSTART,
            f"--config.data.data_dir={data_dir}",
            "--config.train.batch_size=16",
            "--config.train.epochs=1",
            f"--workdir={tmp_path}",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=clean_environment,
    )
    assert run.stdout.splitlines()[-2:] == ["status 0", "[]"], run.stderr
