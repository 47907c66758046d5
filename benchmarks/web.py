"""Times the page in Chromium: what is transferred, the first result of a cold load, a face.

    python benchmarks/web.py --weights=NAME|PATH      # prints a table, writes results/web.json

Each load is of a fresh browser with empty caches, from a server on this machine. A load lasts from
the navigation to the faces of a first photograph, which is chosen as soon as the page is ready. A
face takes what the page says: finding it, cutting it out and the network, of a photograph of 512 by
600 pixels with one face; medians over the loads of the median of `--repeats` looks. Transfer is the
sum of the Brotli files beside what the page loads.
"""

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

_SAID = "return document.getElementById('said').textContent"


def main(_: list[str]) -> None:
    from matplotlib import cbook

    photograph = str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        demo.build(site, _WEIGHTS.value)
        transfer = sum(path.stat().st_size for path in site.rglob("*.br"))
        transfer -= (site / "licences.txt.br").stat().st_size
        with demo.create_server(site, 0) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}/"
            loads = [_load(address, photograph) for _ in range(_LOADS.value)]
            server.shutdown()
    result = {
        "transfer_bytes": transfer,
        "first_result_s": statistics.median(load["first_result_s"] for load in loads),
        "face_ms": statistics.median(load["face_ms"] for load in loads),
        "loads": loads,
        "environment": environment.describe(),
    }
    for name in ("transfer_bytes", "first_result_s", "face_ms"):
        print(f"{name:>15}  {result[name]:,.6g}")
    workdir.write_json(Path(_OUTPUT.value), result)


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
            times.append(int(driver.find_element("id", "speed").text.split()[0]))
        version = driver.capabilities["browserVersion"]
    finally:
        driver.quit()
    return {"first_result_s": first, "face_ms": statistics.median(times), "chromium": version}


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
