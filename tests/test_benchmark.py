import copy
import json
import logging
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import loop, models, steps
from fer_jax.bench import measure
from fer_jax.bench import table as benchmark
from fer_jax.config import get_config
from fer_jax.errors import BenchmarkError
from fer_jax.machine import devices

CPU = {"platform": "cpu", "kind": "A processor", "count": 1, "cpu_cores": 2}
GPU = {"platform": "gpu", "kind": "NVIDIA H200", "count": 1, "cpu_cores": 16}


def pipeline(images_per_s, epoch_s):
    return {
        "compile_s": 5.0,
        "step_ms": {"median": 90.0, "quartiles": [80.0, 100.0]},
        "images_per_s": images_per_s,
        "epoch_s": epoch_s,
        "units": 9,
        "steps_per_unit": 1,
    }


def run_of(seed, speed):
    return {
        "seed": seed,
        "devices": 1,
        "resident": pipeline(1000.0 * speed, 28.7 / speed),
        "stream": pipeline(900.0 * speed, 31.9 / speed),
        "startup_to_first_step_s": 9.0,
        "evaluate": {"compile_s": 1.0, "valid_s": 1.3, "images_per_s": 2760.0},
        "peak_memory_mib": 655.0,
        "step_bytes": 1e8,
        "matmul_flops_per_s": {"float32": 1e11 * speed, "bfloat16": 2e11 * speed},
        "memory_bytes_per_s": 1e10,
    }


def record_of(device, speeds, experiment="arch02_bs96", dtype="float32"):
    entry = {
        "environment": {"versions": {}, "git": None},
        "config": {
            "train": {"batch_size": 96, "epochs": 15},
            "model": {"dtype": dtype},
        },
        "counts": {"train": 28709, "valid": 3589, "test": 3589},
        "forward_flops_per_image": 10**7,
        "data": "random",
        "runs": [run_of(i, speed) for i, speed in enumerate(speeds)],
    }
    return {"format": 1, "device": device, "entries": {experiment: copy.deepcopy(entry)}}


def row(table, title):
    """Returns the cells of the row whose title begins so."""
    lines = [line for line in table.splitlines() if line.startswith(f"| {title}")]
    assert len(lines) == 1, table
    return [cell.strip() for cell in lines[0].strip("|").split("|")[1:]]


def test_a_device_is_a_column_and_what_nobody_measured_is_no_row():
    table = benchmark.table([record_of(CPU, [1, 1.1, 0.9])], "arch02_bs96")
    assert row(table, "`arch02_bs96`") == ["A processor, 2 cores"]
    assert row(table, "**One epoch**") == ["28.7 s (26.1 to 31.9)"]
    # 5 s + 1 s to compile, 15 epochs of 28.7 s and 1.3 s of validation.
    assert row(table, "**15 epochs**")[0].startswith("456 s (417 to ")
    assert row(table, "Training, data on the device")[0] == "1,000 images/s (900 to 1,100)"
    assert row(table, "Step, median")[0] == "90 ms (80 to 100)"
    # 3 * 10 MFLOP * 1000 images/s of 100 GFLOP/s, and that share of an epoch.
    assert row(table, "Share of the matrix")[0] == "30 % (30 to 30)"
    assert row(table, "Epoch, were it matrix products")[0].startswith("8.61 s")
    assert row(table, "Epoch, were it reading")[0].startswith("2.99 s")  # 299 steps
    assert table.endswith("The paper: 48 h on its CPU; after how many epochs goes unsaid.")
    found = record_of(CPU, [1])
    found["entries"]["arch02_bs96"]["runs"][0]["step_bytes"] = None
    assert "reading and writing" not in benchmark.table([found], "arch02_bs96")


def test_the_ratio_has_a_spread_over_all_pairs_of_seeds():
    records = [record_of(CPU, [1, 2]), record_of(GPU, [100, 200])]
    table = benchmark.table(records, "arch02_bs96")
    assert row(table, "Speed against the first CPU") == ["1", "100 (50 to 200)"]
    assert row(table, "`arch02_bs96`")[1] == "NVIDIA H200"


def test_the_share_is_of_the_rate_at_the_networks_own_precision():
    table = benchmark.table([record_of(CPU, [1], dtype="bfloat16")], "arch02_bs96")
    assert row(table, "Share of the matrix")[0] == "15 %"


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_the_share_is_of_the_rate_of_the_activations(dtype):
    asked, plain = (record_of(CPU, [1], dtype=asked) for asked in (dtype, "float32"))
    for run in asked["entries"]["arch02_bs96"]["runs"]:
        run["activations"] = "float32"  # as on a CPU, where `dtype` is of products
    assert benchmark.table([asked], "arch02_bs96") == benchmark.table([plain], "arch02_bs96")


def test_there_is_no_share_where_nobody_says_what_auto_came_to():
    asked = record_of(CPU, [1], dtype="auto")
    table = benchmark.table([asked], "arch02_bs96")
    assert "Share of the matrix" not in table
    assert "were it matrix products" not in table
    both = benchmark.table([asked, record_of(GPU, [1])], "arch02_bs96")
    assert row(both, "Share of the matrix") == ["-", "30 %"]


def test_devices_that_were_measured_for_other_lengths_say_so():
    longer = record_of(GPU, [1])
    longer["entries"]["arch02_bs96"]["config"]["train"]["epochs"] = 30
    table = benchmark.table([record_of(CPU, [1]), longer], "arch02_bs96")
    assert row(table, "**All epochs**") == ["456 s, 15 epochs", "906 s, 30 epochs"]


def test_a_start_on_an_accelerator_takes_in_an_epoch():
    table = benchmark.table([record_of(GPU, [1])], "arch02_bs96")
    assert row(table, "Process start to first step (on an accelerator: epoch)") == ["9 s"]


def test_a_machine_without_tensorflow_says_so_for_the_stream():
    found = record_of("cpu", [1.0])
    found["entries"]["arch02_bs96"]["runs"][0]["stream"] = None
    entry = found["entries"]["arch02_bs96"]
    assert "no TensorFlow" in benchmark._rate("stream")(entry)
    assert "images/s" in benchmark._rate("resident")(entry)


def test_an_experiment_that_was_never_measured_has_no_number():
    assert benchmark.table([], "arch01") == "`arch01`: not measured yet."


def test_that_no_gpu_was_measured_is_said_once(tmp_path):
    names = ("benchmark-tables", "use")
    text = "\n".join(f"<!-- {name}:begin --><!-- {name}:end -->" for name in names)
    for name in ("predict", "web", "kernels"):
        shutil.copy(benchmark.RESULTS / f"{name}.json", tmp_path)
    benchmark._add(record_of(CPU, [1]), tmp_path)
    assert benchmark.updated_docs(text, tmp_path).count("On a GPU: not measured yet.") == 1
    benchmark._add(record_of(GPU, [100]), tmp_path)
    assert "On a GPU" not in benchmark.updated_docs(text, tmp_path)


def test_records_of_other_machines_are_merged_and_kept(tmp_path, capsys):
    made = tmp_path / "elsewhere.json"
    made.write_text(json.dumps(record_of(GPU, [100, 110])))
    folder = tmp_path / "results"
    benchmark._add(record_of(CPU, [1]), folder)
    config = get_config()
    config.experiment = "arch02_bs96"
    benchmark.run(config, folder, [made], repeats=0)
    assert "NVIDIA H200" in capsys.readouterr().out
    assert [p.name for p in sorted(folder.iterdir())] == [
        "benchmark_a_processor_2_cores.json",
        "benchmark_nvidia_h200.json",
    ]
    made.write_text(json.dumps(record_of(GPU, [50], "arch03")))
    benchmark.run(config, folder, [made], repeats=0)
    entries = benchmark.load(folder)[1]["entries"]
    assert sorted(entries) == ["arch02_bs96", "arch03"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "device": 3}'])
def test_what_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match=r"x.json is no benchmark record"):
        benchmark.run(get_config(), tmp_path, [path], repeats=0)
    with pytest.raises(BenchmarkError, match="No such file"):
        benchmark.run(get_config(), tmp_path, [tmp_path / "none.json"], repeats=0)


def test_every_processor_has_a_file_of_its_own(tmp_path):
    for processor in (CPU, CPU | {"cpu_cores": 64}, CPU | {"cpu_features": ["avx2", "fma"]}):
        benchmark._add(record_of(processor, [1]), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "benchmark_a_processor_2_cores.json",
        "benchmark_a_processor_2_cores_avx2_fma.json",
        "benchmark_a_processor_64_cores.json",
    ]


def test_another_machine_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    here = GPU | {"cpu_cores": 8}
    monkeypatch.setattr(benchmark, "_ask", lambda task, environment: here if not task else {})
    benchmark._add(record_of(GPU, [1]), tmp_path)
    before = (tmp_path / "benchmark_nvidia_h200.json").read_bytes()
    with pytest.raises(BenchmarkError, match="another machine"):
        benchmark.run(get_config(), tmp_path, cpu=False)
    assert (tmp_path / "benchmark_nvidia_h200.json").read_bytes() == before


def test_several_devices_have_a_file_of_their_own():
    assert benchmark.file_name(GPU | {"count": 8}) == "benchmark_8_x_nvidia_h200.json"


def test_the_document_shows_the_committed_records():
    text = (benchmark.ROOT / "docs" / "performance.md").read_text()
    assert benchmark.updated_docs(text) == text


@pytest.mark.slow
@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.usefixtures("standard_promotion")
def test_training_is_measured_step_by_step_or_by_the_epoch(config, scanned, monkeypatch):
    monkeypatch.setattr(steps, "is_scanned", lambda mesh: scanned)
    data = measure.create_dataset({"train": 70, "valid": 21, "test": 23}, 0)
    train = data.splits["train"]
    model, mesh = loop.create_network(config)
    training = loop.create_training(config, model, mesh, train.labels)
    found, first_step = measure.time_training(training, train, "resident", budget_s=0.05)
    assert found["units"] >= 3
    assert found["steps_per_unit"] == (4 if scanned else 1)
    assert found["compile_s"] > 0
    step_s = found["step_ms"]["median"] / 1e3
    assert found["epoch_s"] == pytest.approx(4 * step_s, rel=0.01, abs=1e-3)
    assert found["images_per_s"] == pytest.approx(16 / step_s, rel=0.01)
    assert time.time() - 300 < first_step < time.time()
    evaluated = measure.time_evaluation(training, data.splits["valid"].images, 16)
    assert evaluated["images_per_s"] == pytest.approx(21 / evaluated["valid_s"], rel=0.01)


def test_the_machines_rates_are_measured():
    assert 1e6 < measure.matmul_rate("bfloat16", 64, 0.01) < 1e15
    assert 1e6 < measure.memory_rate(2**16, 0.01) < 1e14


# ------------------------------------------------------------- the CUDA extra without a GPU


@pytest.fixture
def cuda_extra(monkeypatch):
    """The CUDA extra seems installed; its plugin fails as it does on a machine without a GPU."""
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: name)

    def fail():
        logger = logging.getLogger("jax._src.xla_bridge")
        try:
            raise RuntimeError("Unable to load cuDNN.\nIs it installed?")
        except RuntimeError:
            logger.exception("Jax plugin configuration error: Exception when calling initialize()")
        return "cpu"

    monkeypatch.setattr(jax, "default_backend", fail)
    monkeypatch.setattr(devices, "_platforms", lambda: None)


def test_the_cuda_extra_without_a_gpu_is_one_line(cuda_extra, caplog):
    assert devices.start() == "cpu"
    assert [r.getMessage() for r in caplog.records] == [
        "JAX's CUDA extra is installed, but no GPU was found (Unable to load cuDNN. Is it "
        "installed?): going on with the CPU"
    ]


def test_who_asks_for_the_cpu_is_told_nothing(cuda_extra, caplog, monkeypatch):
    monkeypatch.setattr(devices, "_platforms", lambda: "cpu")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert devices.start() == "cpu"
    assert not caplog.records


# ----------------------------------------------------------------------------------- bfloat16


@pytest.mark.parametrize("name", ["arch01", "arch02", "arch03"])
def test_bfloat16_is_for_activations_alone(name):
    config = get_config()
    config.model.name = name
    model = models.create_model(config.model).clone(dtype=jnp.bfloat16)
    images, labels = jnp.zeros((2, 48, 48, 1)), jnp.zeros(2, jnp.int32)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    def loss(variables):
        logits = model.apply(
            variables,
            images,
            train=True,
            rngs={"dropout": jax.random.key(1)},
        )
        assert logits.dtype == jnp.float32
        return steps.objective(logits, labels, 0.0, None).mean()

    value, grads = jax.eval_shape(jax.value_and_grad(loss), variables)
    assert value.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves((variables, grads))} == {jnp.dtype("float32")}
    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(jax.tree.map(jnp.zeros_like, variables)))
    convolutions = [line for line in jaxpr.splitlines() if "= conv_general_dilated" in line]
    assert convolutions
    assert all(":bf16[" in line for line in convolutions)


# ------------------------------------------------------------------------------ real processes


@pytest.mark.slow
def test_a_small_benchmark_from_end_to_end(tmp_path, monkeypatch, capsys):
    config = get_config()
    config.experiment = "small"
    config.model.dtype = "auto"
    monkeypatch.setattr(benchmark, "COUNTS", {"train": (200,), "valid": (50,), "test": (50,)})
    monkeypatch.setattr(benchmark, "BUDGET_S", 0.5)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("FER_JAX_NATIVE", "0")  # or XLA could not count bytes
    benchmark.run(config, tmp_path, repeats=2)
    output = capsys.readouterr()
    assert "No accelerator here" in output.err
    assert "**One epoch**" in output.out
    (path,) = tmp_path.iterdir()
    found = json.loads(path.read_text())
    runs = found["entries"]["small"]["runs"]
    assert [r["seed"] for r in runs] == [0, 1]
    for r in runs:
        assert r["resident"]["compile_s"] > 0.2  # not read from a cache
        assert 1 < r["startup_to_first_step_s"] < 300
        assert 100 < r["peak_memory_mib"] < 10000
        assert r["stream"]["units"] >= 3
        assert np.isfinite(r["step_bytes"])
        assert r["activations"] == "float32"


@pytest.mark.slow
def test_a_process_that_fails_ends_in_one_line(tmp_path, clean_environment):
    command = [sys.executable, "launch.py", "--config=experiments/arch02_bs96.py"]
    command += ["--mode=benchmark", "--repeats=1", f"--workdir={tmp_path}"]
    run = subprocess.run(
        [*command, "--config.train.devices=999"],
        cwd=Path(__file__).parent.parent,
        env=clean_environment | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "config.train.devices is 999" in run.stderr
    assert "launch.py: the measuring process ended with status 1" in run.stderr
