"""The page: a network in the browser, as a folder for any web server, or served on this machine.

The folder holds `web/` as it is, the network as ONNX, YuNet, ONNX Runtime's web build, their
licences, and `network.json`, which the page takes from what it says of the network:

- `name`: of the weights.
- `classes`: names of the probabilities, in order.
- `parameters`: their number.
- `accuracy`: null without a record; else `dataset`, `split`, `images` (their number), `value` and
  `recall` (label -> share).
- `bytes`: of what is loaded before the first picture, for the progress bar.

The page asks for nothing that is not in the folder.
"""

import base64
import functools
import gzip
import hashlib
import http.client
import http.server
import importlib.metadata
import io
import json
import logging
import os
import tarfile
import tempfile
import threading
import urllib.request
import webbrowser
from pathlib import Path
from typing import Any

from fer_jax.apps import detect
from fer_jax.apps.load import best_shipped, is_shipped, shipped
from fer_jax.errors import ExtraError, FerError
from fer_jax.machine import environment
from fer_jax.runs import workdir
from fer_jax.weights import store

log = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parent.parent
_PAGES = (_PACKAGE / "web", _PACKAGE.parent / "web")  # in a wheel, and in the repository

# ONNX Runtime's web build for WebAssembly alone; its other builds are twice as large.
_RUNTIME = "onnxruntime-web/-/onnxruntime-web-1.30.0.tgz"
_RUNTIME_SHA512 = (  # as the registry's `integrity` states it
    "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
)
_RUNTIME_FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
)
_REGISTRY = "https://registry.npmjs.org/"
_LOADED = ("ort/ort-wasm-simd-threaded.wasm", "yunet.onnx", "network.onnx")  # by engine.js

_COMPRESSED = (".css", ".html", ".js", ".json", ".mjs", ".onnx", ".svg", ".txt", ".wasm")


def build(folder: Path, weights: str | Path | None = None, compress: bool = True) -> None:
    """Writes the page with all that it loads, for any web server.

    Args:
      folder: created if missing; files of the same names are replaced.
      weights: the name of shipped weights, or what :func:`fer_jax.weights.store.save` wrote. None
        for the shipped ones that are right most often on valid.
      compress: write beside each file one with gzip (`.gz`) and one with Brotli (`.br`), which web
        servers send instead of it to browsers that take it.

    Raises:
      ExtraError: if the extra `demo` is not installed.
      WeightsError: if there are no such weights, or they are damaged.
      WorkdirError: if the folder cannot be written.
      FerError: if ONNX Runtime cannot be fetched, or is not the one that it should be.
    """
    folder = Path(folder)
    files = _read_page() | _runtime_files()
    path = _find_weights(weights)
    model, variables, metadata = store.load(path)
    files["yunet.onnx"] = _detector()
    files["network.onnx"] = _export(model, variables, metadata)
    files["licences.txt"] = _licences(with_network=is_shipped(path))
    name = path.resolve().name if path.is_dir() else path.stem
    about = _describe(name, metadata) | {"bytes": sum(len(files[name]) for name in _LOADED)}
    files["network.json"] = json.dumps(about, indent=1).encode()
    for name, data in files.items():
        workdir.write_bytes(folder / name, data)
        if compress and Path(name).suffix in _COMPRESSED:
            workdir.write_bytes(folder / f"{name}.gz", gzip.compress(data, mtime=0))
            workdir.write_bytes(folder / f"{name}.br", _brotli(data))


def serve(weights: str | Path | None, port: int, show: bool = True) -> None:
    """Builds the page and serves it to this machine's browsers, until it is interrupted.

    Args:
      weights: see :func:`build`.
      port: 0 for any that is free.
      show: open a browser.

    Raises:
      FerError: if the port cannot be used; and what :func:`build` raises.
    """
    with (
        tempfile.TemporaryDirectory(prefix="fer_jax_demo_") as folder,
        create_server(Path(folder), port) as server,
    ):
        build(Path(folder), weights, compress=False)
        address = f"http://localhost:{server.server_port}/"
        log.info("The page is at %s until Ctrl-C", address)
        if show:  # a browser in the terminal ends only when it is closed
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        server.serve_forever()


def create_server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Returns a server of a folder's files, and nothing else, to this machine alone.

    It isolates the page, so that the networks may use several threads.

    Raises:
      FerError: if there is no such port, or it is in use.
    """
    if not 0 <= port <= 65535:
        raise FerError(f"there is no port {port}; name one from 0 to 65535 with --port=N")
    handler = functools.partial(_Handler, directory=str(folder))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise FerError(
            f"port {port} cannot be used ({error.strerror}); name another with --port=N"
        ) from error


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012 (as the base class has it)
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".json": "application/json",
        ".mjs": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
        ".txt": "text/plain; charset=utf-8",
        ".wasm": "application/wasm",
        "": "application/octet-stream",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")  # another network may be served next time
        super().end_headers()

    def list_directory(self, path: str | os.PathLike[str]) -> io.BytesIO | None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _read_page() -> dict[str, bytes]:
    for page in _PAGES:
        if page.is_dir():
            return {path.name: path.read_bytes() for path in sorted(page.iterdir())}
    raise FerError(f"{_PAGES[0]} is missing; reinstall fer-jax")


def _find_weights(weights: str | Path | None) -> Path:
    if weights is None:
        return best_shipped()
    return shipped().get(str(weights), Path(weights).expanduser())


def _describe(name: str, metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "classes": metadata["classes"],
        "parameters": metadata["parameters"],
        "accuracy": _accuracy(metadata["record"]),
    }


def _accuracy(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns what a run's record says of test, or None."""
    try:
        metrics = record["metrics"]["test"]  # pyright: ignore[reportOptionalSubscript]
        return {
            "dataset": record["dataset"]["name"],  # pyright: ignore[reportOptionalSubscript]
            "split": "test",
            "images": metrics["count"],
            "value": metrics["accuracy"],
            "recall": metrics["recall"],
        }
    except (KeyError, TypeError):
        return None


def _export(model: Any, variables: Any, metadata: dict[str, Any]) -> bytes:
    try:
        from fer_jax.apps import onnx
    except ImportError as error:
        raise _missing(error) from error
    return onnx.export(model, variables, metadata, kernels="float16")  # half the file


def _detector() -> bytes:
    """Returns YuNet for pictures of any size; its file says 640x640, which it nowhere needs."""
    try:
        import onnx
    except ImportError as error:
        raise _missing(error) from error
    model = onnx.load_from_string(detect.read_model())
    del model.graph.value_info[:]  # shapes in between, of 640x640
    for value in (*model.graph.input, *model.graph.output):
        shape = value.type.tensor_type.shape
        free = shape.dim[2:] if value.name == "input" else shape.dim[1:2]
        for axis, dim in enumerate(free):
            dim.dim_param = f"{value.name}_{axis}"
    return model.SerializeToString()


def _brotli(data: bytes) -> bytes:
    try:
        import brotli
    except ImportError as error:
        raise _missing(error) from error
    return brotli.compress(data)


def _missing(error: ImportError) -> ExtraError:
    return ExtraError(f"the page takes more packages ({error}): pip install 'fer-jax[demo]'")


def _runtime_files() -> dict[str, bytes]:
    package = io.BytesIO(fetch_package(_RUNTIME, _RUNTIME_SHA512))
    with tarfile.open(fileobj=package, mode="r:gz") as archive:
        files = {name: archive.extractfile(f"package/dist/{name}") for name in _RUNTIME_FILES}
        return {f"ort/{name}": file.read() for name, file in files.items() if file}


def fetch_package(name: str, sha512: str) -> bytes:
    """Returns a package of npm, as it was kept the last time or from the registry.

    Args:
      name: its path in the registry.
      sha512: of the file, in base64, as the registry's `integrity` states it.

    Raises:
      FerError: if it cannot be fetched, or is another file.
    """
    kept = environment.cache_folder()
    path = kept.parent / Path(name).name if kept else None
    if path and path.is_file() and _has_sha512(data := path.read_bytes(), sha512):
        return data
    registry = os.environ.get("npm_config_registry") or _REGISTRY  # noqa: SIM112 (npm's)
    address = f"{registry.rstrip('/')}/{name}"
    log.info("Fetching %s, once", address)
    try:
        with urllib.request.urlopen(address, timeout=60) as response:
            data = response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise FerError(
            f"{address} cannot be fetched ({error}); it is needed once, and then no network. The "
            "environment variable npm_config_registry names another registry"
        ) from error
    if not _has_sha512(data, sha512):
        raise FerError(f"{address} is not the file that it should be: its SHA-512 is another one")
    if path:
        workdir.write_bytes(path, data)
    return data


def _has_sha512(data: bytes, sha512: str) -> bool:
    return hashlib.sha512(data).digest() == base64.b64decode(sha512)


def _licences(with_network: bool) -> bytes:
    """Returns the licences of all that the folder holds.

    Args:
      with_network: whether the network is under this project's, as shipped weights are.
    """
    try:
        runtime = importlib.metadata.distribution("onnxruntime").files or []
    except importlib.metadata.PackageNotFoundError as error:
        raise _missing(error) from error
    named = {Path(str(file)).name: Path(str(file.locate())) for file in runtime}
    ours = importlib.metadata.distribution("fer-jax").files or []
    parts = {
        f"The page{' and the network' * with_network}": next(
            f.locate() for f in ours if f.name == "LICENSE"
        ),
        "YuNet (yunet.onnx, with its input's size left open)": _PACKAGE
        / "apps"
        / "yunet"
        / "LICENSE",
        "ONNX Runtime (ort/)": named["LICENSE"],
        "What ONNX Runtime contains": named["ThirdPartyNotices.txt"],
    }
    texts = []
    for title, path in parts.items():
        text = Path(str(path)).read_text(encoding="utf-8")
        texts.append(f"{title}\n{'=' * len(title)}\n\n{text.strip()}\n")
    return "\n\n".join(texts).encode()
