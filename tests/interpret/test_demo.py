"""The web page, driven in a headless browser, and what it is made of."""

import errno
import io
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import NamedTuple

import numpy as np
import pytest
from conftest import REPOSITORY, random_checkpoint
from PIL import Image

from vit_jax.demo import main
from vit_jax.inference.classifier import Classifier, prepare, read_image, view_image
from vit_jax.interpret import figures
from vit_jax.interpret.attention import attention_maps, output_attention, rollout
from vit_jax.interpret.page import _read_upload, build_page, make_look, overlay_head
from vit_jax.weights.api import load

QUICKSTART = REPOSITORY / "checkpoints" / "quickstart"
FLOWERS = REPOSITORY / "docs" / "flowers"
MEGABYTES = 1  # a file may have
SIZES = dict(width=24, mlp_dim=32, num_heads=2, depth=2)
KINDS = {
    "token": ("Ti/16", SIZES),
    "one layer": ("Ti/16", SIZES | dict(depth=1)),
    "axial": ("Axial-B/16", SIZES),
    "resnet": ("R50x1", dict(layers=(1, 1))),
}


def checkpoint(kind, num_classes=3):
    variant, attributes = KINDS[kind]
    return random_checkpoint(variant, num_classes, **attributes)


def encoded(image, kind="PNG", **options):
    target = io.BytesIO()
    image.save(target, kind, **options)
    return target.getvalue()


def flower(name="rose"):
    with Image.open(FLOWERS / f"{name}.png") as image:
        return image.convert("RGB")


# ------------------------------------------------------------------------- without a browser


def test_gradio_is_asked_for_in_one_paragraph(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as error:
        main(["there/is/no/checkpoint"])
    assert 'pip install -e ".[demo]"' in error.value.code
    assert "\n" not in error.value.code


def test_importing_the_module_does_not_import_gradio():
    program = "import sys, vit_jax.demo; assert 'gradio' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)


def test_what_is_seen_is_what_interpret_computes():
    found = prepare(checkpoint("token"))
    image = read_image(FLOWERS / "rose.png")
    seen = make_look(found)(image)
    assert seen.photo.shape == (384, 576, 3)
    (expected,) = Classifier(found).predict([image])
    assert seen.classes == {p.label: p.probability for p in expected}
    weights = attention_maps(found.model(), found.params, view_image(image, found)[None])
    np.testing.assert_allclose(seen.places, rollout(weights, (2, 3))[0], rtol=1e-5)
    heads = np.asarray(output_attention(weights[:, 0], (2, 3)))
    np.testing.assert_allclose(seen.heads, heads, rtol=1e-5)
    for layer, head, values in [(2, 1, heads[1, 0]), (1, 0, heads[0].mean(0)), (9, 9, heads[1, 1])]:
        drawn = overlay_head(seen.photo, seen.heads, layer, head).astype(int)
        np.testing.assert_allclose(drawn, figures.overlay(seen.photo, values), atol=1)


def test_of_classes_with_one_name_the_likelier_is_shown():
    found = checkpoint("token")._replace(class_names=("crane", "crane", "crane"))
    image = read_image(FLOWERS / "rose.png")
    ((best, *_),) = Classifier(found).predict([image])
    assert make_look(prepare(found))(image).classes == {"crane": best.probability}


def test_a_resnet_without_a_head_is_refused():
    with pytest.raises(ValueError, match="a/checkpoint is a ResNet without a head"):
        make_look(prepare(checkpoint("resnet", num_classes=0)))


def opened(folder, data, name="image.png"):
    path = folder / name
    path.write_bytes(data)
    upload = {"path": str(path), "orig_name": name}
    return _read_upload(upload, str(folder), MEGABYTES)


@pytest.mark.parametrize(
    "data",
    [
        encoded(flower().convert("RGBA")),
        encoded(flower().convert("L")),
        encoded(Image.fromarray(np.full((9, 9), 40_000, np.uint16))),
        encoded(flower().convert("CMYK"), "JPEG"),
        encoded(flower(), "WEBP"),
        encoded(flower().convert("P"), "GIF"),
        encoded(flower().resize((1, 900))),
    ],
    ids=["alpha", "grey", "16 bits", "CMYK", "WebP", "GIF", "narrow"],
)
def test_photos_of_every_kind_are_read_upload(tmp_path, data):
    image = opened(tmp_path, data)
    assert image.dtype == np.uint8 and image.shape[2] == 3


UNKNOWN = " is not a readable image: expected JPEG, PNG"
BAD = {  # what is sent, and what is said
    "words.jpg": (lambda: b"these are words\n" * 9, "words.jpg" + UNKNOWN),
    "empty.png": (lambda: b"", "empty.png" + UNKNOWN),
    "cut.jpg": (lambda: encoded(flower(), "JPEG")[:900], "cut.jpg is not a readable image: "),
    "program.eps": (lambda: encoded(flower(), "EPS"), "program.eps" + UNKNOWN),
    "bomb.png": (lambda: encoded(Image.new("1", (20_000, 10_000))), "bomb.png is not a readable"),
    "<b>bold<b>.png": (lambda: b"", "<b>bold<b>.png" + UNKNOWN),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_named(tmp_path, name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        opened(tmp_path, make(), name)
    assert str(error.value).endswith(". Try a photo as JPEG, PNG or WebP.")


def test_an_upload_is_read_again_after_a_transient_error(tmp_path, monkeypatch):
    errors, read_bytes = [OSError(errno.ESTALE, "Stale file handle")], pathlib.Path.read_bytes

    def stale(path):
        if errors:
            raise errors.pop()
        return read_bytes(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", stale)
    assert opened(tmp_path, encoded(flower())).shape[2] == 3 and not errors
    errors.append(PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(ValueError, match=r"^image\.png can't be read: Permission denied\.$"):
        opened(tmp_path, encoded(flower()))


def test_files_over_the_limit_are_not_read_upload(tmp_path):
    with pytest.raises(ValueError, match=r"big\.png has 1\.5 MB: files of more than 1 MB"):
        opened(tmp_path, bytes(3 * 2**19), "big.png")


@pytest.mark.parametrize(
    "path", [str(FLOWERS / "rose.png"), "uploads/../rose.png", "uploads/gone.png", None]
)
def test_only_uploads_are_read_upload(tmp_path, path):
    (tmp_path / "uploads").mkdir()
    (tmp_path / "rose.png").write_bytes(encoded(flower()))
    path = path and str(tmp_path / path)
    with pytest.raises(ValueError, match="The file was not uploaded"):
        _read_upload({"path": path, "orig_name": None}, str(tmp_path / "uploads"), MEGABYTES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "no head"])
def test_the_page_has_what_applies_to_the_model(kind):
    pytest.importorskip("gradio")
    num_classes = 0 if kind == "no head" else 3
    page = build_page(checkpoint("token" if kind == "no head" else kind, num_classes))
    parts = page.get_config_file()["components"]
    sliders = {part["props"]["label"]: part["props"] for part in parts if part["type"] == "slider"}
    layers = {"token": 2, "axial": 4, "no head": 2}.get(kind)
    expected = {"Layer": layers, "Head (0: the mean of all)": kind != "resnet"}
    assert set(sliders) == {name for name, applies in expected.items() if applies}
    if layers:
        assert (sliders["Layer"]["minimum"], sliders["Layer"]["maximum"]) == (1, layers)
    (label,) = [part["props"] for part in parts if part["type"] == "label"]
    assert label["visible"] == bool(num_classes)
    text = " ".join(str(part["props"].get("value")) for part in parts)
    assert ("Grad-CAM" in text) == (kind == "resnet")
    assert ("figures 6 and 14 of the paper" in text) == (kind != "resnet")
    assert ("along rows and along columns" in text) == (kind == "axial")
    if num_classes:
        assert "3 classes" in text and "for a &lt;b&gt;, b, c." in text
    assert not page.analytics_enabled


# --------------------------------------------------------------------------------- the server


class Server(NamedTuple):
    """The command at work; `proxy` would hear of every connection to elsewhere."""

    process: subprocess.Popen
    port: int
    cache: pathlib.Path
    log: pathlib.Path
    proxy: socket.socket

    def url(self, path=""):
        return f"http://127.0.0.1:{self.port}/{path}"

    def said(self):
        return self.log.read_text()


def start(folder, port, *arguments, **environment):
    """Starts the command; returns its process, where its stderr goes, and what it says first."""
    log = folder / "stderr.txt"
    command = [sys.executable, "-m", "vit_jax.demo", QUICKSTART, f"--port={port}", *arguments]
    with open(log, "w") as stderr:
        process = subprocess.Popen(
            [*map(str, command)],
            cwd=REPOSITORY,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    return process, log, process.stdout.readline()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("demo")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        outside = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = {
            "GRADIO_TEMP_DIR": str(folder / "cache"),
            "GRADIO_SHARE": "true",
            "no_proxy": "",
            **{f"{kind}_proxy": outside for kind in ("http", "https", "all")},
        }
        process, log, said = start(folder, port, f"--max_megabytes={MEGABYTES}", **environment)
        try:
            assert said.startswith(f"http://127.0.0.1:{port}/ "), log.read_text()
            yield Server(process, port, folder / "cache", log, proxy)
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_it_listens_on_loopback_alone(server):
    socket.create_connection(("127.0.0.1", server.port), timeout=2).close()
    for other in ("127.0.0.2", "::1"):  # a socket for all addresses would answer here too
        with pytest.raises(OSError):
            socket.create_connection((other, server.port), timeout=2)


@pytest.mark.slow
def test_a_port_that_is_taken_is_named(server, tmp_path):
    process, log, said = start(tmp_path, server.port)
    assert process.wait() == 1 and not said
    said = log.read_text()
    assert f"Can't listen on 127.0.0.1, port {server.port}: the port is in use. Give " in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_an_address_of_another_machine_is_named(tmp_path):
    pytest.importorskip("gradio")
    process, log, said = start(tmp_path, 0, "--host=192.0.2.1")  # RFC 5737: nobody's
    assert process.wait() == 1 and not said
    assert "Can't listen on 192.0.2.1, port 0: Cannot assign requested address." in log.read_text()


direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever the machine has


def post(server, path, data, kind):
    request = urllib.request.Request(server.url(path), data, {"Content-Type": kind})
    with direct.open(request, timeout=10) as answer:
        return json.load(answer)


def send(server, data):
    """Uploads a file as the browser does, whatever the page would say to it; returns its path."""
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="image.png"\r\n\r\n'
    body = head + data + b"\r\n--x--\r\n"
    return post(server, "gradio_api/upload", body, "multipart/form-data; boundary=x")[0]


def show(server, upload):
    """Asks for a file to be shown, as the page does; returns what the server says to it."""
    session = uuid.uuid4().hex
    body = {"data": [upload, 4, 0], "fn_index": 0, "session_hash": session}
    post(server, "gradio_api/queue/join", json.dumps(body).encode(), "application/json")
    said = []
    answers = server.url(f"gradio_api/queue/data?session_hash={session}")
    with direct.open(answers, timeout=10) as lines:
        for line in lines:
            if line.startswith(b"data: "):
                said.append(json.loads(line[6:]))
                if said[-1]["msg"] == "process_completed":
                    return said
    raise AssertionError(said)


@pytest.mark.slow
def test_an_upload_over_the_limit_is_broken_off(server):
    with pytest.raises(urllib.error.HTTPError, match="413"):
        send(server, bytes(MEGABYTES * 2**20 + 1))
    assert "Traceback" not in server.said()


@pytest.mark.slow
def test_a_forged_request_reads_no_other_file(server):
    path = FLOWERS / "rose.png"
    said = show(server, {"path": str(path)})
    assert [x["log"] for x in said if x["msg"] == "log"] == ["The file was not uploaded."]
    with pytest.raises(urllib.error.HTTPError, match="403"):
        direct.open(server.url(f"gradio_api/file={path}"))


# -------------------------------------------------------------------------------- the browser

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    names = "chromium", "chromium-browser", "google-chrome"
    with playwright.sync_playwright() as found:
        path = next(filter(None, map(shutil.which, names)), found.chromium.executable_path)
        if not os.path.exists(path):
            pytest.skip(f"there is no browser: none of {', '.join(names)}, nor playwright's own")
        chromium = found.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


class Tab:
    """The page in a browser, and all addresses it has asked for."""

    def __init__(self, page, server):
        self.page, self.requests = page, []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("websocket", lambda request: self.requests.append(request.url))
        page.goto(server.url())

    def drop(self, name, data):
        self.page.locator("#image input[type=file]").set_input_files(
            {"name": name, "mimeType": "image/png", "buffer": data}
        )

    def wait_for(self, selector, text=None):
        self.page.locator(selector, has_text=text).first.wait_for(timeout=10_000)

    def drop_flower(self, name):
        self.drop(f"{name}.png", (FLOWERS / f"{name}.png").read_bytes())
        self.wait_for("#classes h2", name)
        self.wait_for("#heads img")

    def pixels(self, part):
        source = self.page.locator(f"#{part} img").get_attribute("src")
        with Image.open(io.BytesIO(self.page.request.get(source).body())) as image:
            return np.asarray(image.convert("RGB")).astype(int)

    def move(self, slider, key):
        """Moves a slider by a key, and waits for another picture."""
        before = self.page.locator("#heads img").get_attribute("src")
        self.page.locator(f"#{slider} input[type=range]").press(key)
        self.page.wait_for_function(
            "before => (document.querySelector('#heads img')?.src ?? before) != before", arg=before
        )


@pytest.fixture
def tab(server, browser):
    page = browser.new_page()
    yield Tab(page, server)
    page.close()


@pytest.fixture(scope="module")
def rose():
    """What the quickstart's model makes of a rose."""
    image = read_image(FLOWERS / "rose.png")
    return make_look(prepare(load(QUICKSTART)))(image)


def alike(picture, expected):
    """Whether two pictures are the same but for the losses of WebP."""
    return np.abs(picture - expected.astype(int)).mean() < 3


@pytest.mark.browser
def test_a_photo_is_classified_and_the_sliders_change_the_picture(tab, server, rose):
    tab.drop_flower("rose")
    assert tab.page.locator("#classes h2").inner_text() == "rose"
    assert alike(tab.pixels("places"), figures.overlay(rose.photo, rose.places))
    position = [4, 0]
    for slider, key, following in [
        ("layer", "ArrowLeft", [3, 0]),
        ("head", "ArrowRight", [3, 1]),
        ("layer", "Home", [1, 1]),
    ]:
        assert alike(tab.pixels("heads"), overlay_head(rose.photo, rose.heads, *position))
        assert not alike(tab.pixels("heads"), overlay_head(rose.photo, rose.heads, *following))
        tab.move(slider, key)
        position = following
    assert alike(tab.pixels("heads"), overlay_head(rose.photo, rose.heads, *position))
    assert {urllib.parse.urlsplit(url).hostname for url in tab.requests} == {"127.0.0.1"}
    with pytest.raises(BlockingIOError):  # nor has the server called anyone
        server.proxy.accept()


@pytest.mark.browser
def test_a_click_on_an_example_fills_the_page(tab, server, rose):
    examples = tab.page.locator("#examples button")
    examples.first.wait_for()
    assert examples.count() == 5
    for number, kind in ((4, "tulip"), (2, "rose")):
        examples.nth(number).click()
        tab.wait_for("#classes h2", kind)
    tab.wait_for("#heads img")
    assert alike(tab.pixels("places"), figures.overlay(rose.photo, rose.places))
    with Image.open(FLOWERS / "rose.png") as image:
        np.testing.assert_array_equal(tab.pixels("image"), np.asarray(image))
    assert "Traceback" not in server.said()


@pytest.mark.browser
def test_boxes_of_sliders_may_hold_anything_with_and_without_an_image(tab, server):
    tab.wait_for("#layer input[type=range]")
    box = tab.page.locator("#head input[type=number]")
    for flower in ("daisy", "tulip"):
        for text in ("99", ""):
            box.fill(text)
            box.press("Tab")
        tab.drop_flower(flower)
    tab.move("layer", "Home")  # answered after all of these
    assert "Traceback" not in server.said()


@pytest.mark.browser
def test_other_files_get_a_message_and_the_next_photo_an_answer(tab, server):
    tab.drop_flower("rose")
    tab.page.get_by_label("Remove Image").click()
    tab.page.locator("#heads img").wait_for(state="detached")
    for name in ("words.jpg", "cut.jpg", "<b>bold<b>.png"):
        make, message = BAD[name]
        tab.drop(name, make())
        tab.wait_for("[data-testid=toast-body]", message)
        tab.page.locator("#image img").wait_for(state="detached")
    tab.drop("big.png", bytes(MEGABYTES * 2**20 + 1))
    tab.wait_for("[data-testid=toast-body]", "big.png")
    assert "maximum allowed size" in tab.page.locator("[data-testid=toast-body]").last.inner_text()
    assert not tab.page.locator("#places img").count()
    tab.drop_flower("tulip")
    assert "Traceback" not in server.said()


@pytest.mark.browser
def test_a_phone_shows_all_without_scrolling_sideways(tab):
    tab.page.set_viewport_size({"width": 390, "height": 844})
    tab.drop_flower("rose")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_uploads_are_deleted_when_it_ends(server):
    path = pathlib.Path(send(server, encoded(flower())))
    assert path.is_relative_to(server.cache)
    said = show(server, {"path": str(path), "meta": {"_type": "gradio.FileData"}})
    assert said[-1]["success"] and list(server.cache.rglob("*.webp"))
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=20) == 0
    assert not list(server.cache.iterdir())
