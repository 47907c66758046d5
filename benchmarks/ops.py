"""Times forward and gradients of every layer of the paper's networks, ours against XLA's own.

    python benchmarks/ops.py            # prints a table, writes results/cpu_ops.json
    FER_JAX_NATIVE=0 python benchmarks/ops.py --output=results/cpu_ops_xla.json   # without C++
    python benchmarks/ops.py --output=results/cpu_ops_bfloat16.json   # on a processor that has it

Each of ours and autodiff's runs alone as a compiled function; the two take turns. A number is the
fastest of `--repeats` calls, so that other work on the machine does not enter into it. How results
round is measured too, against float64.
"""

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import linen as nn
from jax import lax

from fer_jax import ops
from fer_jax.machine import memory
from fer_jax.ops import native
from fer_jax.report import markdown
from fer_jax.runs import record, workdir

_BATCH = flags.DEFINE_integer("batch", 96, "images")
_REPEATS = flags.DEFINE_integer("repeats", 20, "calls of each function")
RESULTS = Path(__file__).resolve().parent.parent / "results"
RECORD, RECORD_XLA = RESULTS / "cpu_ops.json", RESULTS / "cpu_ops_xla.json"
RECORD_BFLOAT16 = RESULTS / "cpu_ops_bfloat16.json"
DOCUMENT = RESULTS.parent / "docs" / "performance.md"
_OUTPUT = flags.DEFINE_string(
    "output", str(RECORD), "where the record goes; docs/performance.md shows the committed ones"
)

_BOTH = ("", "_autodiff")  # ours, and what autodiff makes of XLA's own

# Input side, input channels, filters, kernel side.
CONVOLUTIONS = {
    "arch01/conv1": (48, 1, 64, 5),
    "arch01/conv2": (20, 64, 64, 3),
    "arch01/conv3": (18, 64, 64, 3),
    "arch01/conv4": (7, 64, 128, 3),
    "arch01/conv5": (5, 128, 128, 3),
    "arch02/conv1": (48, 1, 32, 3),
    "arch02/conv2": (23, 32, 32, 3),
    "arch03/conv2": (46, 32, 32, 3),
    "arch03/conv3": (22, 32, 64, 3),
    "arch03/conv4": (20, 64, 64, 3),
    "arch03/conv5": (9, 64, 128, 3),
    "arch03/conv6": (7, 128, 128, 3),
}
# Pooling, input side, channels, window; every stride is 2.
POOLINGS = {
    "arch01/pool1": ("max_pool", 44, 64, 5),
    "arch01/pool2": ("avg_pool", 16, 64, 3),
    "arch02/pool1": ("max_pool", 46, 32, 2),
    "arch02/pool2": ("max_pool", 21, 32, 2),
    "arch03/pool1": ("max_pool", 44, 32, 2),
    "arch03/pool2": ("max_pool", 18, 64, 2),
}
# Input side, input channels, filters, kernel side, pooling window; every pooling stride is 2.
FUSED = {
    "arch01/conv1+pool1": (48, 1, 64, 5, 5),
    "arch02/conv1+pool1": (48, 1, 32, 3, 2),
    "arch02/conv2+pool2": (23, 32, 32, 3, 2),
    "arch03/conv2+pool1": (46, 32, 32, 3, 2),
    "arch03/conv4+pool2": (20, 64, 64, 3, 2),
    "arch03/conv6+pool3": (7, 128, 128, 3, 2),
}


def main(argv: list[str]) -> None:
    del argv
    load = os.getloadavg()[0]
    memory.keep_freed_memory()
    native.load()
    matrix = _normal(1024, 1024)
    product = jax.jit(jnp.matmul)
    peak = 2e-6 * 1024**3 / _times_ms({"": lambda: product(matrix, matrix)})[""]
    rows = [_convolution(name, peak, *shape) for name, shape in CONVOLUTIONS.items()]
    rows += [_fused(name, *shape) for name, shape in FUSED.items()]
    rows += [_pooling(name, *shape) for name, shape in POOLINGS.items()]
    result = {
        "environment": record.environment(),
        "load_average": round(load, 1),  # before the start: what else the machine had to do
        "batch": _BATCH.value,
        "repeats": _REPEATS.value,
        "matmul_gflops": round(peak, 1),
        "layers": {row["layer"]: row for row in rows},
    }
    workdir.write_text(Path(_OUTPUT.value), json.dumps(result, indent=1) + "\n")
    workdir.write_text(DOCUMENT, updated_document(DOCUMENT.read_text(encoding="utf-8")))


def updated_document(text: str) -> str:
    """Returns the text of `docs/performance.md` with the tables of the records in their place."""
    found, without = (json.loads(path.read_text(encoding="utf-8")) for path in (RECORD, RECORD_XLA))
    text = markdown.replace_block(text, "ops", f"\n{format_tables(found, without)}\n")
    rounded = json.loads(RECORD_BFLOAT16.read_text(encoding="utf-8"))
    return markdown.replace_block(text, "ops-bfloat16", f"\n{format_bfloat16(rounded)}\n")


def format_bfloat16(found: dict[str, Any]) -> str:
    """Returns a record of a processor that has bfloat16 as Markdown."""
    kinds = {"forward": "Forward", "image_gradient": "Image", "kernel_gradient": "Kernel"}
    header = ["Layer"]
    for title in kinds.values():
        header += [f"{title}, float32", "bfloat16", "error"]
    rows = []
    for name in CONVOLUTIONS:
        layer = found["layers"][name]
        if "forward_bfloat16" not in layer["ms"] or name.endswith("conv1"):
            continue  # the first layer has one channel, and stays float32
        row = [name]
        for kind in kinds:
            rounded = kind + "_bfloat16"
            row += [f"{layer['ms'][kind]:.1f}", f"{layer['ms'][rounded]:.1f}"]
            row.append(f"{layer['rounding'][rounded]:.2%}")
        rows.append(row)
    where = record.device_name(found["environment"]["device"])
    return (
        f"{where}, batch {found['batch']}; milliseconds, and the root mean square error of "
        "bfloat16 by the result's root mean square. Image and Kernel are gradients.\n\n"
        f"{markdown.table(header, rows)}"
    )


def format_tables(found: dict[str, Any], without: dict[str, Any]) -> str:
    """Returns two records as Markdown.

    Args:
      found: measured as things are.
      without: measured with `FER_JAX_NATIVE=0`.
    """
    device = found["environment"]["device"]
    parts = [
        f"{record.device_name(device)}, batch {found['batch']}; milliseconds, in "
        "brackets the share of the rate of a 1024^3 float32 matrix product in XLA "
        f"({found['matmul_gflops']:.0f} GFLOP/s).",
        _speed_table(found["layers"], without["layers"]),
        "Root mean square error against float64, in millionths of the result's root mean square:",
        _rounding_table(found["layers"]),
        _fused_table(found["layers"], without["layers"]),
        _pooling_table(found["layers"]),
    ]
    return "\n\n".join(parts)


def _speed_table(layers: dict[str, Any], without: dict[str, Any]) -> str:
    def cell(layer, what):
        return f"{layer['ms'][what]:.1f} ({layer['share_of_matmul'][what]:.0%})"

    header = ("Layer", "Forward", "XLA", "Image gradient", "XLA", "Kernel gradient")
    rows = [
        [
            name,
            *(cell(layers[name], w + end) for w in ("forward", "image_gradient") for end in _BOTH),
            cell(layers[name], "kernel_gradient"),
            cell(without[name], "kernel_gradient"),
            cell(layers[name], "kernel_gradient_autodiff"),
        ]
        for name in CONVOLUTIONS
    ]
    return markdown.table((*header, "without C++", "XLA"), rows)


def _rounding_table(layers: dict[str, Any]) -> str:
    header = ("Layer", "Forward", "XLA", "Image gradient", "XLA", "Kernel gradient", "XLA")
    kinds = ("forward", "image_gradient", "kernel_gradient")
    rows = [
        [
            name,
            *(
                f"{1e6 * layers[name]['rounding'][kind + end]:.2f}"
                for kind in kinds
                for end in _BOTH
            ),
        ]
        for name in CONVOLUTIONS
    ]
    return markdown.table(header, rows)


def _fused_table(layers: dict[str, Any], without: dict[str, Any]) -> str:
    header = ("Convolution, ReLU, max-pool", "Forward", "without C++", "XLA", "With gradients")
    rows = [
        [
            name,
            *(
                f"{milliseconds:.1f}"
                for what in ("forward", "forward_and_gradients")
                for milliseconds in (
                    layers[name]["ms"][what],
                    without[name]["ms"][what],
                    layers[name]["ms"][what + "_autodiff"],
                )
            ),
        ]
        for name in FUSED
    ]
    return markdown.table((*header, "without C++", "XLA"), rows)


def _pooling_table(layers: dict[str, Any]) -> str:
    header = ("Pooling without C++", "Forward", "XLA", "Backward", "XLA")
    rows = [
        [
            name,
            *(
                f"{layers[name]['ms'][what + end]:.1f}"
                for what in ("forward", "backward")
                for end in _BOTH
            ),
        ]
        for name in POOLINGS
    ]
    return markdown.table(header, rows)


def _convolution(layer, peak, side, channels, filters, kernel):
    out = side - kernel + 1
    x, w = _normal(_BATCH.value, side, side, channels), _normal(kernel, kernel, channels, filters)
    grad = _normal(_BATCH.value, out, out, filters)
    gflop = 2e-9 * grad.size * kernel * kernel * channels

    def applied(conv):
        return lambda x, w: conv(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def gradient(conv, argument):
        def f(x, w, grad):
            return jax.vjp(applied(conv), x, w)[1](grad)[argument]

        return jax.jit(f)  # what is not asked for is not computed

    def rounded(call):
        def f(*arguments):
            with native.rounding(True):
                return call(*arguments)

        return f

    calls = {}
    for suffix, conv in {
        "": ops.conv_general_dilated,
        "_autodiff": lax.conv_general_dilated,
    }.items():
        calls["forward" + suffix] = functools.partial(jax.jit(applied(conv)), x, w)
        calls["image_gradient" + suffix] = functools.partial(gradient(conv, 0), x, w, grad)
        calls["kernel_gradient" + suffix] = functools.partial(gradient(conv, 1), x, w, grad)
    if native.has_bfloat16():
        ours = [name for name in calls if not name.endswith("_autodiff")]
        calls |= {f"{name}_bfloat16": rounded(calls[name]) for name in ours}
    ms = _times_ms(calls)
    rates = {name: round(1e3 * gflop / t, 1) for name, t in ms.items()}
    share = {name: round(rate / peak, 2) for name, rate in rates.items()}
    print(layer, *(f"{n} {ms[n]:.2f} ms {rates[n]:.0f} GFLOP/s {share[n]:.0%};" for n in ms))
    errors = _rounding(calls, x, w, grad)
    return {
        "layer": layer,
        "ms": ms,
        "gflops_per_s": rates,
        "share_of_matmul": share,
        "rounding": errors,
    }


def _rounding(calls, x, w, grad):
    """Root mean square error of each result by the root mean square of what it is in float64."""

    def all_three(x, w, grad):
        numbers = ("NHWC", "HWIO", "NHWC")
        conv = functools.partial(
            lax.conv_general_dilated,
            window_strides=(1, 1),
            padding="VALID",
            dimension_numbers=numbers,
        )
        out, vjp = jax.vjp(conv, x, w)
        return out, *vjp(grad)

    with jax.enable_x64(True):
        exact = jax.jit(all_three)(*(jnp.asarray(a, jnp.float64) for a in (x, w, grad)))
        exact = [np.asarray(a) for a in exact]
    errors = {}
    for name, call in calls.items():
        kind = name.removesuffix("_autodiff").removesuffix("_bfloat16")
        reference = exact[("forward", "image_gradient", "kernel_gradient").index(kind)]
        off = np.square(np.asarray(call()) - reference).mean() / np.square(reference).mean()
        errors[name] = float(f"{np.sqrt(off):.2e}")
    return errors


def _fused(layer, side, channels, filters, kernel, window):
    """Convolution, ReLU and max-pooling with their gradients: in one, and each by XLA."""
    x, w = _normal(_BATCH.value, side, side, channels), _normal(kernel, kernel, channels, filters)
    bias, strides = _normal(filters), (2, 2)

    def in_one(x, w, bias):
        return ops.conv_relu_max_pool(x, w, bias, "VALID", (window, window), strides)

    def in_turn(x, w, bias):
        numbers = ("NHWC", "HWIO", "NHWC")
        out = lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=numbers)
        return nn.max_pool(jax.nn.relu(out + bias), (window, window), strides)

    grad = _normal(*jax.eval_shape(in_one, x, w, bias).shape)
    wanted = (0, 1, 2) if channels > 1 else (1, 2)  # nobody asks for the images' own gradient
    calls = {}
    for suffix, f in {"": in_one, "_autodiff": in_turn}.items():

        def step(x, w, bias, grad, f=f):
            def total(*xs):
                return (f(*xs) * grad).sum()

            return jax.value_and_grad(total, argnums=wanted)(x, w, bias)

        calls["forward" + suffix] = functools.partial(jax.jit(f), x, w, bias)
        calls["forward_and_gradients" + suffix] = functools.partial(jax.jit(step), x, w, bias, grad)
    ms = _times_ms(calls)
    print(layer, *(f"{n} {t:.2f} ms;" for n, t in ms.items()))
    return {"layer": layer, "ms": ms}


def _pooling(layer, name, side, channels, window):
    x, strides = _normal(_BATCH.value, side, side, channels), (2, 2)
    pools = {"": getattr(ops, name), "_autodiff": getattr(nn, name)}
    calls = {}
    for suffix, pool in pools.items():

        def forward(x, pool=pool):
            return pool(x, (window, window), strides)

        grad = _normal(*jax.eval_shape(forward, x).shape)
        compiled = jax.jit(forward)
        backward = jax.jit(lambda x, g, f=forward: jax.vjp(f, x)[1](g)[0])
        calls["forward" + suffix] = lambda f=compiled: f(x)
        calls["backward" + suffix] = lambda f=backward, g=grad: f(x, g)
    ms = _times_ms(calls)
    print(layer, *(f"{n} {t:.2f} ms;" for n, t in ms.items()))
    return {"layer": layer, "ms": ms}


def _times_ms(calls):
    """Fastest call of each function, in milliseconds; the functions take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for i in range(_REPEATS.value + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if i:  # the first call compiles
                best[name] = min(best[name], time.perf_counter() - start)
    return {name: round(1e3 * t, 3) for name, t in best.items()}


def _normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


if __name__ == "__main__":
    app.run(main)
