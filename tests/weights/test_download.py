"""Finding and downloading weights, from a server on this machine that breaks what it can."""

import base64
import hashlib
import http.server
import threading

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vit_jax import models
from vit_jax.models.params import parameter_shapes
from vit_jax.weights import catalogue, download
from vit_jax.weights.api import load_params, save_params

DATA = np.random.default_rng(0).bytes(300_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path; what it does otherwise is set by the tests.

    Attributes:
      files: bytes by path.
      headers: additional ones by path.
      breaks: bytes after which it breaks off, one of them for each answer, then no more.
      ranges: whether it goes on where asked to.
      errors: status codes of the next answers.
      log: (path, Range header) of every request.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.headers, self.redirects = {}, {}, {}
        self.breaks, self.errors, self.log = [], [], []
        self.ranges, self.length, self.tags = True, True, True
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.log.append((self.path, self.headers.get("Range")))
        if server.errors:
            self.send_error(server.errors.pop(0))
            return
        if self.path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[self.path])
            for name, value in server.headers.get(self.path, {}).items():
                self.send_header(name, value)
            self.end_headers()
            return
        if self.path not in server.files:
            self.send_error(404)
            return
        data = server.files[self.path]
        tag = '"' + hashlib.md5(data).hexdigest() + '"'
        wanted, start = self.headers.get("Range"), 0
        if wanted and server.ranges and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        if server.tags:
            self.send_header("ETag", tag)
        if server.length:
            self.send_header("Content-Length", str(len(data) - start))
        for name, value in server.headers.get(self.path, {}).items():
            self.send_header(name, value)
        self.end_headers()
        end = start + server.breaks.pop(0) if server.breaks else len(data)
        self.wfile.write(data[start:end])
        self.close_connection = True

    def log_message(self, *unused):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    monkeypatch.setattr(catalogue, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    yield server
    server.shutdown()
    server.server_close()


def parts(path):
    return [p for p in path.parent.iterdir() if p.name.endswith(".part")]


def test_a_file_comes_whole_under_its_name(server, tmp_path):
    server.files["/x.npz"] = DATA
    download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == DATA
    assert not parts(tmp_path / "x.npz")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_goes_on(server, tmp_path, ranges):
    """Where it stopped, or from the start where the server can't do that."""
    server.files["/x.npz"] = DATA
    server.breaks, server.ranges = [1000, 5000, 200_000], ranges
    download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == DATA
    # Each attempt first asks for the headers, which uses up a break, and then for the rest.
    asked = [wanted for _, wanted in server.log if wanted]
    assert asked[0] == "bytes=1000-"
    assert not ranges or asked == ["bytes=1000-", "bytes=201000-"]


def test_a_killed_download_goes_on_in_the_next_run(server, tmp_path, monkeypatch):
    server.files["/x.npz"] = DATA
    server.breaks = [70_000] + [0] * 20
    with pytest.raises(ValueError, match="The 70000 bytes that came are kept"):
        download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    (part,) = parts(tmp_path / "x.npz")
    assert part.read_bytes() == DATA[:70_000]
    server.breaks, server.log = [], []
    download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == DATA
    assert ("/x.npz", "bytes=70000-") in server.log


def test_a_file_that_changed_on_the_server_is_not_pieced_together(server, tmp_path):
    server.files["/x.npz"] = DATA
    server.breaks = [70_000] + [0] * 20
    with pytest.raises(ValueError, match="can't be downloaded"):
        download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")
    server.breaks, server.files["/x.npz"] = [], DATA[::-1]
    download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == DATA[::-1]


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("length", [True, False])
def test_servers_that_tell_little(server, tmp_path, tags, length):
    server.files["/x.npz"], server.tags, server.length = DATA, tags, length
    server.breaks = [1000] if length else []  # without a length, a break can't be seen
    download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == DATA


def test_a_busy_server_is_asked_again_but_not_without_end(server, tmp_path):
    server.files["/x.npz"], server.errors = DATA, [503, 429, 500]
    download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")
    assert (tmp_path / "x.npz").read_bytes() == DATA
    server.errors = [503] * 100
    with pytest.raises(ValueError, match=r"can't be downloaded: .*503"):
        download.fetch(f"{server.url}/x.npz", tmp_path / "y.npz")
    assert len(server.errors) == 95


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").touch()
    told = "file can't be written: .* Downloads are kept there: make it writable, or download http"
    with pytest.raises(OSError, match=told):
        download.fetch(f"{server.url}/x.npz", tmp_path / "file" / "x.npz")
    assert not server.log


def test_refusals_are_final(server, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no http://127.*/x\.npz"):
        download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")
    server.errors = [403]
    with pytest.raises(ValueError, match="403 Forbidden"):
        download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")
    assert len(server.log) == 2


def test_a_failed_download_says_so_twice_and_leaves_nothing(server, tmp_path, caplog):
    """Once at the first failure, once at the end: whatever fails, and at any log level."""
    server.errors = [503] * 100
    url, path = f"{server.url}/x.npz", tmp_path / "bucket" / "models" / "x.npz"
    with pytest.raises(ValueError, match=r"503 Service Unavailable\. Check the network") as error:
        download.fetch(url, path)
    assert "bytes that came" not in str(error.value)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", f"{url}: 503 Service Unavailable. Trying again for 15 s or longer.")
    ]
    server.errors, server.files["/x.npz"], server.breaks = [], DATA, [0] * 100
    with pytest.raises(ValueError, match="can't be downloaded") as error:
        download.fetch(url, path)
    assert "bytes that came" not in str(error.value)
    server.breaks, server.headers["/x.npz"] = [], google_hash(DATA[1:])
    with pytest.raises(ValueError, match="came damaged"):
        download.fetch(url, path)
    assert list(tmp_path.iterdir()) == []


def test_the_pauses_are_as_long_as_the_warning_says(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(download, "_PAUSE", 0.5)
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.errors = [503] * 100
    with pytest.raises(ValueError, match="can't be downloaded"):
        download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")
    assert sum(pauses) == download._PATIENCE == 15


def test_an_unreachable_server_is_named_with_the_systems_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    with pytest.raises(ValueError, match=r"localhost:1/x\.npz can't be downloaded: Connection ref"):
        download.fetch("http://localhost:1/x.npz", tmp_path / "new" / "x.npz")
    assert list(tmp_path.iterdir()) == []


def google_hash(data):
    md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
    return {"x-goog-hash": f"crc32c=AAAAAA==,md5={md5}"}


def test_googles_md5_is_checked(server, tmp_path):
    server.files["/x.npz"], server.headers["/x.npz"] = DATA, google_hash(DATA)
    download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")
    server.headers["/x.npz"] = google_hash(DATA[1:])
    with pytest.raises(ValueError, match=r"came damaged: its md5 is .* It was removed"):
        download.fetch(f"{server.url}/x.npz", tmp_path / "y.npz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npz"]


def test_only_https_leaves_this_machine(server, tmp_path):
    with pytest.raises(ValueError, match="over https only"):
        download.fetch("http://example.com/x.npz", tmp_path / "x.npz")
    server.redirects["/x.npz"] = "http://example.com/x.npz"
    with pytest.raises(ValueError, match=r"example\.com/x\.npz: weights are downloaded over https"):
        download.fetch(f"{server.url}/x.npz", tmp_path / "x.npz")


# ----------------------------------------------------------------------------------- addresses
TINY = dict(width=24, depth=1, mlp_dim=32, num_heads=2, patch_size=8)


def weights(tmp_path, ending, format):
    """The bytes of a tiny ViT's file, or of a folder's files by name, and its parameters."""
    shapes = parameter_shapes(models.build("B/16", num_classes=3, **TINY), (16, 16))
    params = jax.tree.map(
        lambda x: np.random.default_rng(0).normal(size=x.shape).astype(np.float32), shapes
    )
    path = tmp_path / f"source{ending}"
    save_params(params, path, variant="B/16", format=format, **TINY)
    if path.is_dir():
        return {p.name: p.read_bytes() for p in path.iterdir()}, params
    return path.read_bytes(), params


def assert_loads(source, params, **said):
    found, expected = (flatten_dict(x, sep="/") for x in (load_params(source, **said), params))
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x)


SAID = dict(variant="B/16", **TINY)


def test_addresses_of_files(server, tmp_path):
    data, params = weights(tmp_path, ".npz", "npz")
    server.files["/models/some%20run/x.npz"] = server.files["/bucket/a+b/x.npz"] = data
    assert_loads(f"{server.url}/models/some%20run/x.npz", params, **SAID)
    assert (catalogue.CHECKPOINTS / "127.0.0.1" / "models" / "some run" / "x.npz").is_file()
    server.files["/bucket/a%2Bb/x.npz"] = data
    assert_loads("gs://bucket/a+b/x.npz", params, **SAID)
    assert (catalogue.CHECKPOINTS / "bucket" / "a+b" / "x.npz").is_file()
    requests = len(server.log)
    assert_loads("gs://bucket/a+b/x.npz", params, **SAID)  # from checkpoints/
    assert len(server.log) == requests


def test_addresses_stay_within_checkpoints(server, tmp_path):
    server.files["/bucket/../../../x.npz"] = DATA
    path = catalogue.find("gs://bucket/../../../x.npz")
    assert path == str(catalogue.CHECKPOINTS / "bucket" / "x.npz")


def test_other_addresses_and_names_are_explained(server, tmp_path):
    for source, message in (
        ("ftp://host/x.npz", "from hf://, gs:// and https:// addresses"),
        (f"{server.url}/x.zip", "isn't the address of a file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_params(source)


# --------------------------------------------------------------------------------------- names
PUBLISHED = catalogue.published()


def test_a_name_of_the_list_is_downloaded(server, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "published", lambda: PUBLISHED)
    data, params = weights(tmp_path, ".npz", "npz")
    server.files["/vit_models/imagenet21k/ViT-B_16.npz"] = data
    assert_loads("imagenet21k/ViT-B_16", params, **SAID)
    path = catalogue.CHECKPOINTS / "vit_models" / "imagenet21k" / "ViT-B_16.npz"
    assert path.read_bytes() == data


def test_unknown_names_get_the_nearest(monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"did you mean 'imagenet21k/ViT-B_16'"):
        load_params("imagenet21k/ViT-B16")
    with pytest.raises(FileNotFoundError, match=r"There is no /nowhere/x\.npz: neither a file"):
        load_params("/nowhere/x.npz")
    with pytest.raises(FileNotFoundError, match=r"Hugging Face hub is hf://org/unheard-of\.$"):
        load_params("org/unheard-of")


def augreg_index(rows):
    columns = (
        "name",
        "ds",
        "final_val",
        "filename",
        "adapt_ds",
        "adapt_filename",
        "adapt_resolution",
    )
    lines = [",".join(columns)]
    lines += [",".join(str(row.get(c, "")) for c in columns) for row in rows]
    return "\n".join(lines).encode()


def test_a_bare_variant_is_augregs_best_of_imagenet21k(server, tmp_path, monkeypatch, caplog):
    """By final_val among i21k; other data sets and variants don't count."""
    caplog.set_level("INFO", "vit_jax")
    monkeypatch.setattr(catalogue, "published", lambda: PUBLISHED)
    data, params = weights(tmp_path, ".npz", "npz")
    server.files["/vit_models/augreg/index.csv"] = augreg_index(
        [
            dict(name="B/16", ds="i21k", final_val=0.41, filename="B_16-worse"),
            dict(
                name="B/16", ds="i21k", final_val=0.475, filename="B_16-best", adapt_resolution=224
            ),
            dict(
                name="B/16", ds="i21k", final_val=0.475, filename="B_16-best", adapt_resolution=384
            ),
            dict(name="B/16", ds="i1k", final_val=0.8, filename="B_16-i1k"),
            dict(name="B/16", ds="i21k_30", final_val=0.5, filename="B_16-30"),
            dict(name="R26+S/32", ds="i21k", final_val=0.9, filename="R26_S_32-x"),
        ]
    )
    server.files["/vit_models/augreg/B_16-best.npz"] = data
    assert_loads("B/16", params, **SAID)
    assert caplog.messages == [
        "B/16: looking for the best checkpoint in AugReg's index",
        "B/16: B_16-best, 0.475 on validation",
    ]
    assert_loads("vit_b16", params, **SAID)
    assert [path for path, _ in server.log] == [
        "/vit_models/augreg/index.csv",
        "/vit_models/augreg/B_16-best.npz",
    ]
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of H/14 .*: B/16, R26\+S/32"):
        load_params("H/14")


def test_an_index_that_can_not_be_had_is_not_an_unknown_name(server, monkeypatch):
    monkeypatch.setattr(catalogue, "published", lambda: PUBLISHED)
    server.errors = [403]
    with pytest.raises(ValueError, match=r"augreg/index\.csv can't be downloaded: 403"):
        load_params("B/16")
