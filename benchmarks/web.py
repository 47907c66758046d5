"""Times the page in Chromium: what is transferred, the first result of a cold load, a picture.

    python benchmarks/web.py --weights=NAME|PATH      # prints a table, writes results/web.json

Each load is of a fresh browser with empty caches, from a server on this machine. A load lasts from
the navigation to the faces of a first photograph, which is chosen as soon as the page is ready.
Finding the face of a photograph of 512 by 600 pixels, and the way from its cut to its
probabilities, take what the page says: medians over the loads of the median of `--repeats` looks.
Each is measured twice: as `fer-jax demo` serves it, with threads, and from a plain server, with
one. Transfer is the sum of the Brotli files beside what the page loads.
"""

import functools
import http.server
import re
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from fer_jax.apps import demo
from fer_jax.errors import BenchmarkError
from fer_jax.machine import environment
from fer_jax.runs import workdir

_WEIGHTS = flags.DEFINE_string("weights", None, "as `fer-jax demo` takes them")
_LOADS = flags.DEFINE_integer("loads", 5, "fresh browsers")
_REPEATS = flags.DEFINE_integer("repeats", 20, "looks at the photograph in each")
_OUTPUT = flags.DEFINE_string(
    "output",
    str(Path(__file__).resolve().parent.parent / "results" / "web.json"),
    "where the record goes",
)

_KEYS = ("first_result_s", "find_ms", "face_ms")
_SAID = "return document.getElementById('said').textContent"


def main(_: list[str]) -> None:
    from matplotlib import cbook

    photograph = str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        demo.build(site, _WEIGHTS.value)
        transfer = sum(path.stat().st_size for path in site.rglob("*.br"))
        transfer -= (site / "licences.txt.br").stat().st_size
        plain = functools.partial(_Plain, directory=site)
        servers = {
            "threads": demo.create_server(site, 0),
            "one_thread": http.server.ThreadingHTTPServer(("127.0.0.1", 0), plain),
        }
        measured = {name: _serve(server, photograph) for name, server in servers.items()}
    result = {"transfer_bytes": transfer} | measured | {"environment": environment.describe()}
    print(f"{transfer:,} bytes")
    for name, found in measured.items():
        print(name, ", ".join(f"{key} {found[key]:,.4g}" for key in _KEYS))
    workdir.write_json(Path(_OUTPUT.value), result)


class _Plain(http.server.SimpleHTTPRequestHandler):
    """Serves files without the headers that threads in a browser ask for."""

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def _serve(server: http.server.HTTPServer, photograph: str) -> dict[str, Any]:
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        loads = [_load(address, photograph) for _ in range(_LOADS.value)]
        server.shutdown()
    medians = {key: statistics.median(load[key] for load in loads) for key in _KEYS}
    return medians | {"loads": loads}


def _load(address: str, photograph: str) -> dict[str, Any]:
    driver = _browser()
    try:
        start = time.perf_counter()
        driver.get(address)
        _wait(driver, "Ready")
        driver.find_element("id", "file").send_keys(photograph)
        _wait(driver, "One face")
        first = time.perf_counter() - start
        times = []
        for _ in range(_REPEATS.value):
            driver.execute_script("document.getElementById('said').textContent = ''")
            driver.find_element("id", "file").send_keys(photograph)
            _wait(driver, "One face")
            said = driver.find_element("id", "speed").text
            times.append([float(number) for number in re.findall(r"[\d.]+", said)])
        version = driver.capabilities["browserVersion"]
    finally:
        driver.quit()
    find, face = (statistics.median(column) for column in zip(*times, strict=True))
    return {"first_result_s": first, "find_ms": find, "face_ms": face, "chromium": version}


def _browser() -> Any:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        raise BenchmarkError("chromium and chromedriver are needed: Debian has both")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    return webdriver.Chrome(options, Service(driver))


def _wait(driver: Any, beginning: str) -> None:
    end = time.monotonic() + 120
    while not (said := driver.execute_script(_SAID)).startswith(beginning):
        if time.monotonic() > end:
            raise BenchmarkError(f"the page says {said!r} instead of {beginning!r}")
        time.sleep(0.005)


if __name__ == "__main__":
    app.run(main)
