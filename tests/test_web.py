"""The page: its folder, its server, and itself in a real Chromium."""

import base64
import contextlib
import gzip
import http.client
import http.server
import io
import json
import os
import re
import shutil
import sys
import tarfile
import threading
import time
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest
from apps_pictures import group, photograph
from PIL import Image

from fer_jax.apps import crop, demo, picture
from fer_jax.apps import load as load_module
from fer_jax.apps.predictor import Predictor
from fer_jax.config import get_config
from fer_jax.errors import ExtraError, FerError, WeightsError
from fer_jax.labels import CLASSES
from fer_jax.models import create_model
from fer_jax.weights import store

sys.path.append(str(Path(__file__).parent / "web"))
import make_fixtures

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
browser_test = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"
)
PAGE_AT = "/a/b/"  # under which the tests' server has the page
AXE = "axe-core/-/axe-core-4.14.1.tgz"
AXE_SHA512 = (
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)
METRICS = {"accuracy": 0.625, "count": 40, "recall": dict.fromkeys(CLASSES, 0.5)}
RECORD = {"dataset": {"name": "drawn_faces"}, "metrics": {"valid": METRICS, "test": METRICS}}


def network():
    """A network that was never trained; its answers are close to one class."""
    config = get_config().model
    config.name = "arch02"
    model = create_model(config)
    images = np.zeros((1, 48, 48, 1), np.float32)
    return config, model, model.init(jax.random.key(1), images, train=False)


def save(folder: Path, record=None) -> Path:
    config, _, variables = network()
    store.save(folder, variables, config, CLASSES, record)
    return folder


@contextlib.contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the page in `a/b`; ONNX Runtime is fetched if it was not before."""
    root = tmp_path_factory.mktemp("root")
    weights = save(tmp_path_factory.mktemp("weights") / "small", RECORD)
    demo.build(root / PAGE_AT.strip("/"), weights, compress=False)
    return root


@pytest.fixture(scope="module")
def server(root):
    with serving(demo.create_server(root, 0)) as server:
        yield server


@pytest.fixture(scope="module")
def predictor():
    _, model, variables = network()
    return Predictor(model, variables, "small")


# The folder and the server.


def test_fixtures_are_what_python_makes():
    kept = json.loads(make_fixtures.FIXTURES.read_text(encoding="utf-8"))
    made = make_fixtures.make()
    assert [case["image"] for case in kept["crops"]] == [case["image"] for case in made["crops"]]
    assert kept == made


def test_detector_takes_pictures_of_any_size():
    import onnxruntime

    session = onnxruntime.InferenceSession(demo._detector())
    outputs = session.run(["cls_8", "kps_32"], {"input": np.zeros((1, 3, 64, 320), np.float32)})
    assert [output.shape for output in outputs] == [(1, 8 * 40, 1), (1, 2 * 10, 10)]


def test_best_on_valid_is_served(tmp_path, monkeypatch):
    for name, valid, test in (("a", 0.5, 0.9), ("b", 0.6, 0.1), ("c", 0.55, 0.95)):
        metrics = {
            split: METRICS | {"accuracy": v} for split, v in (("valid", valid), ("test", test))
        }
        save(tmp_path / name, RECORD | {"metrics": metrics})
    save(tmp_path / "without_record")
    monkeypatch.setattr(load_module, "_SHIPPED", (tmp_path,))
    assert demo._find_weights(None).name == "b"
    assert demo._find_weights("c").name == "c"
    assert load_module.load().name == "b"


def test_no_shipped_weights_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(load_module, "_SHIPPED", (tmp_path / "none",))
    with pytest.raises(WeightsError, match="--weights=NAME"):
        demo._find_weights(None)


def test_other_file_from_the_registry_is_refused(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y.tgz").write_bytes(b"no package")
    monkeypatch.setenv("npm_config_registry", tmp_path.as_uri())
    monkeypatch.setenv("FER_JAX_CACHE", str(tmp_path / "cache"))
    demo.environment.cache_folder.cache_clear()
    try:
        with pytest.raises(FerError, match=r"x/y\.tgz is not the file"):
            demo.fetch_package("x/y.tgz", AXE_SHA512)
        with pytest.raises(FerError, match=r"x/z\.tgz cannot be fetched .*npm_config_registry"):
            demo.fetch_package("x/z.tgz", AXE_SHA512)
        assert not list((tmp_path / "cache").glob("*.tgz"))
    finally:
        demo.environment.cache_folder.cache_clear()


def test_download_that_breaks_off_is_said(tmp_path, monkeypatch):
    class Dropping(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"a part")

        def log_message(self, format, *args):
            pass

    monkeypatch.setattr(demo.environment, "cache_folder", lambda: None)
    with serving(http.server.HTTPServer(("127.0.0.1", 0), Dropping)) as server:
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(FerError, match=r"x\.tgz cannot be fetched \(IncompleteRead"):
            demo.fetch_package("x.tgz", AXE_SHA512)


def test_port_in_use_is_said(tmp_path):
    with serving(demo.create_server(tmp_path, 0)) as server:  # noqa: SIM117
        with pytest.raises(FerError, match=f"port {server.server_port} .*--port"):
            demo.create_server(tmp_path, server.server_port)


def test_port_that_there_is_not_is_said_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(demo, "build", None)
    with pytest.raises(FerError, match="there is no port 99999; name one from 0 to 65535"):
        demo.serve(None, 99999)


def test_page_is_served_while_a_browser_waits(monkeypatch):
    servers, seen = [], []
    create_server = demo.create_server

    def create(*arguments):
        servers.append(create_server(*arguments))
        return servers[0]

    def browse(address):  # as one in a terminal, which ends only when it is closed
        with urllib.request.urlopen(address, timeout=5) as response:
            seen.append(response.read())
        servers[0].shutdown()

    monkeypatch.setattr(demo, "create_server", create)
    monkeypatch.setattr(demo.webbrowser, "open", browse)
    monkeypatch.setattr(
        demo, "build", lambda folder, *_, **__: (folder / "index.html").write_text("the page")
    )
    demo.serve(None, 0)
    assert seen == [b"the page"]


def test_licence_is_stated_of_shipped_networks_alone():
    assert demo._licences(with_network=True).startswith(b"The page and the network\n===")
    assert demo._licences(with_network=False).startswith(b"The page\n===")


def test_server_serves_its_folder_and_nothing_else(tmp_path):
    (tmp_path / "secret").write_text("secret")
    site = tmp_path / "site"
    (site / "ort").mkdir(parents=True)
    for name in ("index.html", "app.js", "ort/a.mjs", "ort/a.wasm", "network.json", "a.onnx"):
        (site / name).write_text(name)
    with serving(demo.create_server(site, 0)) as server:
        assert server.server_address[0] == "127.0.0.1"

        def get(path):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            connection.close()
            return response, body

        types = {
            "/": "text/html; charset=utf-8",
            "/app.js": "text/javascript; charset=utf-8",
            "/ort/a.mjs": "text/javascript; charset=utf-8",
            "/ort/a.wasm": "application/wasm",
            "/network.json": "application/json",
            "/a.onnx": "application/octet-stream",
        }
        for path, content_type in types.items():
            response, body = get(path)
            assert (response.status, body.decode()) == (200, path[1:] or "index.html")
            assert response.headers["Content-Type"] == content_type
            assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        for path in ("/../secret", "/%2e%2e/secret", "//secret", "/..%2fsecret", "/ort/"):
            response, body = get(path)
            assert response.status == 404
            assert body != b"secret"


def test_page_names_nothing_elsewhere():
    for name, data in demo._read_page().items():
        text = data.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text, name
        assert "https://" not in text, name
    assert b'http-equiv="Content-Security-Policy"' in demo._read_page()["index.html"]


@pytest.mark.slow
def test_folder_is_complete_compressed_and_small(root, tmp_path):
    site = root / PAGE_AT.strip("/")
    about = json.loads((site / "network.json").read_text())
    assert about["name"] == "small"
    assert about["classes"] == list(CLASSES)
    assert about["accuracy"]["value"] == METRICS["accuracy"]
    licences = (site / "licences.txt").read_text()
    assert licences.startswith("The page\n")
    for owner in ("fer-jax", "Shenzhen Institute", "Microsoft Corporation", "Eigen"):
        assert owner in licences, owner
    weights = save(tmp_path / "small")
    demo.build(tmp_path / "site", weights)
    page = [p for p in (tmp_path / "site").rglob("*") if p.suffix not in (".gz", ".br", "")]
    transfer = 0
    for path in page:
        packed = path.with_name(path.name + ".gz")
        assert gzip.decompress(packed.read_bytes()) == path.read_bytes()
        if path.name != "licences.txt":
            transfer += path.with_name(path.name + ".br").stat().st_size
    assert transfer < 6e6
    assert json.loads((tmp_path / "site" / "network.json").read_text())["accuracy"] is None


@pytest.mark.slow
def test_missing_extra_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExtraError, match=r"fer-jax\[demo\]"):
        demo._detector()


# The page in a browser.


class Page:
    """A page in a browser of its own."""

    def __init__(self, driver):
        self.driver = driver

    def js(self, script, *args):
        return self.driver.execute_script(script, *args)

    def module(self, script, *args):
        """Runs a script with `await`, whose `arguments` are given; returns what it returns."""
        script = f"""const done = arguments[arguments.length - 1];
            (async (...args) => {{ {script} }})(...arguments).then(
              (value) => done({{value}}), (error) => done({{error: String(error)}}))"""
        answer = self.driver.execute_async_script(script, *args)
        assert "error" not in answer, answer
        return answer["value"]

    @property
    def said(self):
        return self.js("return document.getElementById('said').textContent")

    def wait(self, condition, seconds=120):
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"waited in vain; the page says {self.said!r}"
            time.sleep(0.05)
        return value

    def open(self, address, ready=True):
        self.driver.get(address)
        if ready:
            self.wait(lambda: self.said)
            assert self.said == "Ready for a photo."
        return self

    def show(self, path):
        """Chooses a file; returns what the page then says."""
        self.js("document.getElementById('said').textContent = ''")
        self.driver.find_element("id", "file").send_keys(str(path))
        return self.wait(lambda: self.said.replace("Looking for faces …", ""))

    @property
    def cards(self):
        """Of each face, the label and the percentages."""
        return self.js("""return [...document.querySelectorAll('#faces > li')].map((card) => [
            card.querySelector('h2').textContent,
            [...card.querySelectorAll('data')].map((d) => parseInt(d.textContent))])""")


@contextlib.contextmanager
def browsing(*flags):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    driver.set_script_timeout(120)
    try:
        yield Page(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def address(server):
    return f"http://127.0.0.1:{server.server_port}{PAGE_AT}"


@pytest.fixture(scope="module")
def page(address):
    with browsing() as page:
        yield page.open(address)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    Image.fromarray(photograph()).save(folder / "one.png")
    Image.fromarray(photograph()).save(folder / "one.jpg", quality=92)
    Image.fromarray(group()).save(folder / "group.png")
    Image.fromarray(np.zeros((300, 400, 3), np.uint8)).save(folder / "black.png")
    turned = Image.fromarray(photograph()).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(folder / "turned.jpg", quality=92, exif=exif)
    rgba = Image.fromarray(photograph()).convert("RGBA")
    rgba.putalpha(128)
    rgba.save(folder / "half.png")
    large = Image.fromarray(photograph()).resize((5120, 6000))
    large.save(folder / "large.jpg", quality=90)
    (folder / "text.jpg").write_text("This is no picture.")
    (folder / "empty.png").touch()
    return folder


@pytest.mark.slow
@browser_test
def test_crops_and_scaling_are_pythons(page):
    fixtures = json.loads(make_fixtures.FIXTURES.read_text(encoding="utf-8"))
    script = """
        const {crop, faceSquare, luminance} = await import('./crop.js');
        const {areaTaps, cubicTaps, resize} = await import('./detect.js');
        const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
        const rgba = (text) => {
          const rgb = bytes(text);
          return Uint8Array.from({length: rgb.length / 3 * 4},
            (_, i) => i % 4 < 3 ? rgb[Math.floor(i / 4) * 3 + i % 4] : 255);
        };
        const crops = args[0].crops.map(({rgb, size: [width, height], box, points}) =>
          [...crop({values: luminance(rgba(rgb)), width, height}, faceSquare(box, points))]);
        const resizes = args[0].resizes.map(({rgb, size: [width, height], to, how}) => {
          const taps = {area: areaTaps, cubic: cubicTaps}[how];
          const data = rgba(rgb);
          return [...resize({data, width}, taps(width, to[0]), taps(height, to[1]), ...to)];
        });
        return [crops, resizes];"""
    crops, resizes = page.module(script, fixtures)
    for got, case in zip(crops, fixtures["crops"], strict=True):
        assert bytes(got) == base64.b64decode(case["image"])
    for got, case in zip(resizes, fixtures["resizes"], strict=True):
        expected = np.frombuffer(base64.b64decode(case["bgr"]), np.uint8)
        np.testing.assert_allclose(got, expected, atol=1)  # OpenCV computes in fixed point


@pytest.mark.slow
@browser_test
@pytest.mark.parametrize("name", ["one.png", "one.jpg", "group.png", "turned.jpg", "half.png"])
def test_full_pictures_are_pythons(page, pictures, predictor, name):
    path = pictures / name
    faces = page.module(
        """
        const {readPicture} = await import('./sources.js');
        const file = new File([Uint8Array.from(atob(args[0]), (c) => c.charCodeAt(0))], 'name');
        const {pixels} = await readPicture(file, 4096);
        const worker = new Worker('engine.js', {type: 'module'});
        const ask = (message) => new Promise((resolve, reject) => {
          worker.onmessage = ({data}) => {
            if (data.kind === 'failed') reject(data.reason);
            if (data.kind !== 'progress') resolve(data);
          };
          worker.postMessage(message);
        });
        await ask({kind: 'load', threads: 1});
        const {faces} = await ask({kind: 'look', picture: pixels});
        worker.terminate();
        return faces.map((face) => ({...face, image: [...face.image]}));""",
        base64.b64encode(path.read_bytes()).decode(),
    )
    expected = predictor.detect_and_predict(path)
    assert len(faces) == len(expected) == (3 if name == "group.png" else 1)
    for face, other in zip(faces, expected, strict=True):
        np.testing.assert_allclose(face["box"], other.box, atol=2)
        np.testing.assert_allclose(face["points"], other.points, atol=2)
        np.testing.assert_allclose(face["score"], other.score, atol=0.02)
        probabilities = np.array(face["probabilities"])
        np.testing.assert_allclose(probabilities, other.probabilities, atol=0.02)
        assert probabilities.argmax() == other.probabilities.argmax()
        # Given the page's box, its crop is Python's to the last bit.
        square = crop.face_square(np.array(face["box"]), np.array(face["points"]))
        grey = crop.luminance(picture.decode(path))
        if path.suffix == ".png" and name != "half.png":
            assert crop.crop(grey, square).ravel().tolist() == face["image"]


@pytest.mark.slow
@browser_test
def test_bars_of_a_camera_are_averaged_over_half_a_second(page):
    smoothed = page.module(
        """
        const {smooth} = await import('./show.js');
        const face = (left, probabilities) => ({box: [left, 0, 10, 10], probabilities});
        const before = [face(0, [1, 0]), face(50, [0.5, 0.5])];
        return smooth([face(1, [0, 1]), face(20, [0, 1])], before, args[0]);""",
        0.25,
    )
    kept = np.exp(-0.5)
    np.testing.assert_allclose(smoothed[0]["probabilities"], [kept, 1 - kept])
    assert smoothed[1]["probabilities"] == [0, 1]  # another face


@pytest.mark.slow
@browser_test
def test_photos_are_shown_and_what_is_none_gets_a_sentence(page, pictures):
    said = page.show(pictures / "one.jpg")
    [(heading, shares)] = page.cards
    assert said == f"One face: {heading.split()[1]}."
    assert len(shares) == 7
    assert abs(sum(shares) - 100) <= 4  # rounded
    assert CLASSES[int(np.argmax(shares))] == heading.split()[1]
    speed = page.js("return document.getElementById('speed').textContent")
    assert re.fullmatch(r"\d+ ms to find, \d+\.\d ms a face", speed)

    assert page.show(pictures / "group.png").startswith("3 faces, from the left: ")
    assert [heading[0] for heading, _ in page.cards] == ["1", "2", "3"]
    assert page.show(pictures / "large.jpg").startswith("One face: ")

    assert page.show(pictures / "black.png").startswith("No face found")
    assert page.cards == []
    for name in ("text.jpg", "empty.png"):
        assert page.show(pictures / name).startswith(f"“{name}” is not a picture")
        assert page.cards == []
    assert page.show(pictures / "one.jpg").startswith("One face: ")


# Drops a picture named `name`; one named `slow` is not decoded before `release()` is called.
DROP = """
    if (!self.release) {
      const gate = new Promise((resolve) => (self.release = resolve));
      const decode = self.createImageBitmap;
      self.createImageBitmap = async (file, options) => {
        if (file.name === 'slow') await gate;
        return decode(file, options);
      };
    }
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
    transfer.items.add(new File([bytes], arguments[0], {type: 'image/png'}));
    document.getElementById('said').textContent = '';
    document.body.dispatchEvent(
      new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true}));"""


def encoded(path):
    return base64.b64encode(path.read_bytes()).decode()


@pytest.mark.slow
@browser_test
def test_picture_that_is_decoded_late_does_not_hide_the_one_after_it(address, pictures):
    with browsing() as page:
        page.open(address)
        page.js(DROP, "slow", encoded(pictures / "group.png"))
        page.js(DROP, "fast", encoded(pictures / "one.png"))
        page.wait(lambda: page.said.startswith("One face: "))
        view = "return document.getElementById('view').toDataURL()"
        shown = page.js(view)
        page.js("release()")
        with pytest.raises(AssertionError, match="in vain"):
            page.wait(lambda: not page.said.startswith("One face: "), 3)
        assert page.js(view) == shown
        assert len(page.cards) == 1


@pytest.mark.slow
@browser_test
def test_camera_that_is_refused_late_does_not_hide_a_photo(address, pictures):
    with browsing() as page:
        page.open(address)
        page.js("""navigator.mediaDevices.getUserMedia = () =>
            new Promise((_, reject) => (self.refuse = () => reject(new Error('refused'))))""")
        button = page.driver.find_element("id", "camera")
        button.click()
        assert page.show(pictures / "one.jpg").startswith("One face: ")
        page.js("refuse()")
        page.wait(button.is_enabled)
        assert page.said.startswith("One face: ")
        assert len(page.cards) == 1


@pytest.mark.slow
@browser_test
def test_camera_that_is_turned_is_shown_whole(address):
    with browsing() as page:
        page.open(address)
        page.js("""
            const canvas = document.createElement('canvas');
            self.turn = (width, height) => Object.assign(canvas, {width, height});
            turn(640, 480);
            setInterval(() => canvas.getContext('2d').fillRect(0, 0, 9, 9), 50);
            navigator.mediaDevices.getUserMedia = async () => canvas.captureStream(20);""")
        page.driver.find_element("id", "camera").click()
        size = "const {width, height} = document.getElementById('view'); return [width, height]"
        page.wait(lambda: page.js(size) == [640, 480])
        page.js("turn(480, 640)")
        page.wait(lambda: page.js(size) == [480, 640], 20)


@pytest.mark.slow
@browser_test
@pytest.mark.parametrize("event", ["drop", "paste"])
def test_pictures_can_be_dropped_and_pasted(page, pictures, event):
    send = """
        const transfer = new DataTransfer();
        if (arguments[1]) {
          const bytes = Uint8Array.from(atob(arguments[1]), (c) => c.charCodeAt(0));
          transfer.items.add(new File([bytes], 'one.png', {type: 'image/png'}));
        } else transfer.setData('text/plain', 'words');
        document.getElementById('said').textContent = '';
        document.body.dispatchEvent(arguments[0] === 'drop'
          ? new DragEvent('drop', {dataTransfer: transfer, bubbles: true, cancelable: true})
          : new ClipboardEvent('paste', {clipboardData: transfer, bubbles: true}));"""
    picture = base64.b64encode((pictures / "one.png").read_bytes()).decode()
    page.js(send, event, picture)
    page.wait(lambda: page.said.startswith("One face: "))
    page.js(send, event, "")
    page.wait(lambda: page.said.startswith("There was no picture in that"))


@pytest.mark.slow
@browser_test
def test_what_the_page_says_of_the_network_is_its_records(page):
    assert page.js("return crossOriginIsolated") is True
    assert not page.driver.find_element("id", "threads").is_displayed()
    text = page.js("return document.querySelector('footer').textContent")
    assert "small, 62.5 % right on drawn_faces test" in text
    assert "40 images" in text
    assert "420,199 parameters" in text
    rows = page.js("return [...document.querySelectorAll('tbody th')].map((c) => c.textContent)")
    assert rows == list(CLASSES)
    assert "article 5" in text


@pytest.mark.slow
@browser_test
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_at_any_width_in_light_and_dark(page, pictures, width, scheme):
    archive = io.BytesIO(demo.fetch_package(AXE, AXE_SHA512))
    with tarfile.open(fileobj=archive, mode="r:gz") as package:
        axe = package.extractfile("package/axe.min.js")
        assert axe
        script = axe.read().decode()
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    try:
        page.js(script)
        page.js("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        for name in ("one.jpg", "text.jpg"):
            page.show(pictures / name)
            found = page.module("return (await axe.run()).violations")
            assert not [(v["id"], [node["html"] for node in v["nodes"]]) for v in found]
            assert page.js("return document.documentElement.scrollWidth") <= width
    finally:
        page.js("document.querySelectorAll('details').forEach((d) => (d.open = false))")
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.slow
@browser_test
def test_everything_is_reached_with_the_keyboard(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.js("document.activeElement.blur()")
    reached = []
    for _ in range(4):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.append(page.js("const a = document.activeElement; return a.id || a.tagName"))
    assert reached == ["file", "camera", "network", "SUMMARY"]
    ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    assert page.js("return document.activeElement.parentElement.open") is True
    assert page.js("return document.getElementById('said').getAttribute('role')") == "status"


@pytest.mark.slow
@browser_test
def test_every_request_is_the_pages_origins(address, pictures, tmp_path):
    log = tmp_path / "net.json"
    rules = "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with browsing(f"--log-net-log={log}", f"--host-resolver-rules={rules}") as page:
        page.open(address)
        assert page.show(pictures / "one.jpg").startswith("One face: ")
        problems = [entry["message"] for entry in page.driver.get_log("browser")]
        assert not problems
    text = log.read_text(encoding="utf-8", errors="replace").rstrip().rstrip(",")
    events = json.loads(text if text.endswith("}") else text + "]}")
    origin = address.removesuffix(PAGE_AT)
    urls = {
        event["params"]["url"]
        for event in events["events"]
        if event.get("params", {}).get("initiator") == origin and "url" in event["params"]
    }
    asked = {url.removeprefix(address) for url in urls}
    expected = {"app.js", "engine.js", "network.onnx", "ort/ort-wasm-simd-threaded.wasm"}
    assert expected <= asked
    assert all(url.startswith((address, f"blob:{origin}")) for url in urls), urls


@contextlib.contextmanager
def without(root, tmp_path, name):
    """Serves the page without one of its files."""
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, copy_function=os.link)
    (copy / PAGE_AT.strip("/") / name).unlink()
    with serving(demo.create_server(copy, 0)) as server:
        yield f"http://127.0.0.1:{server.server_port}{PAGE_AT}"


@pytest.mark.slow
@browser_test
@pytest.mark.parametrize(
    "name",
    ["network.onnx", "network.json", "ort/ort.wasm.min.mjs", "engine.js", "app.js", "detect.js"],
)
def test_missing_file_is_named(root, tmp_path, name):
    with without(root, tmp_path, name) as address, browsing() as page:
        page.open(address, ready=False)
        if name in ("app.js", "detect.js"):  # nothing runs
            text = page.driver.find_element("id", "unstarted")
            page.wait(lambda: text.is_displayed())
            assert "app.js" in text.text
            return
        page.wait(lambda: page.said)
        assert "could not be loaded" in page.said
        assert address + name in page.said


@pytest.mark.slow
@browser_test
def test_damaged_network_gets_a_sentence(root, tmp_path):
    with without(root, tmp_path, "network.onnx") as address, browsing() as page:
        (tmp_path / "copy" / PAGE_AT.strip("/") / "network.onnx").write_bytes(b"damaged")
        page.open(address, ready=False)
        page.wait(lambda: page.said)
        assert "network.onnx" in page.said


@pytest.mark.slow
@browser_test
def test_opened_by_double_click_it_says_how_to_start(root):
    with browsing() as page:
        page.open((root / PAGE_AT.strip("/") / "index.html").as_uri(), ready=False)
        text = page.driver.find_element("id", "unstarted")
        page.wait(lambda: text.is_displayed())
        assert "fer-jax demo" in text.text


@pytest.mark.slow
@browser_test
def test_without_isolation_one_thread_does_and_a_line_says_so(root, pictures):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(root))

        def log_message(self, format, *args):
            pass

    plain = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    with serving(plain), browsing("--host-resolver-rules=MAP example.test 127.0.0.1") as page:
        for host in ("127.0.0.1", "example.test"):
            page.open(f"http://{host}:{plain.server_port}{PAGE_AT}")
            assert page.driver.find_element("id", "threads").is_displayed()
            assert page.show(pictures / "one.jpg").startswith("One face: ")
        page.driver.find_element("id", "camera").click()  # over http, on another address
        page.wait(lambda: "camera cannot be used" in page.said)
        assert "https" in page.said


@pytest.mark.slow
@browser_test
def test_without_simd_the_page_says_which_browsers_have_it(address):
    with browsing("--js-flags=--no-enable-sse4-1 --no-enable-ssse3 --no-enable-avx") as page:
        page.open(address, ready=False)
        page.wait(lambda: page.said)
        assert "SIMD" in page.said
        assert "Firefox 89" in page.said


@pytest.fixture(scope="module")
def camera_flags(tmp_path_factory):
    """A camera that shows the photograph."""
    path = tmp_path_factory.mktemp("camera") / "camera.mjpeg"
    frame = np.full((480, 640, 3), 90, np.uint8)
    frame[:, 60:572] = photograph()[30:510]
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "jpeg", quality=90)
    path.write_bytes(file.getvalue() * 20)
    return ("--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={path}")


@pytest.mark.slow
@browser_test
def test_camera_is_looked_at_until_it_is_stopped(address, pictures, camera_flags):
    with browsing(*camera_flags, "--use-fake-ui-for-media-stream") as page:
        page.open(address)
        button = page.driver.find_element("id", "camera")
        button.click()
        page.wait(lambda: page.said.startswith("One face: "))
        assert button.text == "Stop camera"
        assert len(page.cards) == 1
        live = "return document.getElementById('video').srcObject.getTracks()[0].readyState"
        assert page.js(live) == "live"
        button.click()
        assert page.js(live) == "ended"
        assert button.text == "Start camera"
        button.click()  # and again; a photo ends it too
        page.wait(lambda: button.text == "Stop camera")
        assert page.show(pictures / "group.png").startswith("3 faces")
        assert page.js(live) == "ended"


@pytest.mark.slow
@browser_test
@pytest.mark.parametrize("why", ["refused", "missing"])
def test_camera_that_cannot_be_used_gets_a_sentence_and_photos_go_on(
    address, pictures, camera_flags, why
):
    with browsing(*(camera_flags if why == "refused" else ())) as page:
        page.open(address)
        if why == "refused":
            denied = {"permission": {"name": "camera"}, "setting": "denied"}
            page.driver.execute_cdp_cmd("Browser.setPermission", denied)
        page.driver.find_element("id", "camera").click()
        page.wait(lambda: page.said.startswith("The camera cannot be used here; photos can."))
        assert ("refused" if why == "refused" else "There is none") in page.said
        assert page.show(pictures / "one.jpg").startswith("One face: ")
