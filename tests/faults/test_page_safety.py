"""The page of `demo` among other users, other sites, and addresses that can't be used."""

import asyncio
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from typing import NamedTuple

import pytest
from conftest import REPOSITORY, environment

from vit_jax.demo import main
from vit_jax.interpret import serving
from vit_jax.interpret.serving import listen, private_uploads, refuse_other_sites

direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever the machine has
# Each of these alone makes the import of Gradio, or its start, fail.
WRONG_SETTINGS = {
    "http_proxy": ":::",
    "https_proxy": "socks4://127.0.0.1:9",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "NO_PROXY": "[:::",
    "SSL_CERT_FILE": "/dev/null/certificates",
    "GRADIO_SERVER_NAME": "192.0.2.1",
    "GRADIO_SERVER_PORT": "abc",
}


# ----------------------------------------------------------------------------- a page at work


class Page(NamedTuple):
    process: subprocess.Popen
    address: str
    temporary: pathlib.Path  # the system's temporary folder, for this page
    log: pathlib.Path


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The command, where another user's page was first, and proxies and the home are wrong."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("page")
    temporary = folder / "tmp"
    (temporary / "gradio").mkdir(parents=True)
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "vit_jax.demo", "checkpoints/quickstart", "--port=0"],
            cwd=REPOSITORY,
            env=environment()
            | WRONG_SETTINGS
            | {"TMPDIR": str(temporary), "HOME": "/dev/null/home", "GRADIO_TEMP_DIR": ""},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        said = process.stdout.readline()
        assert said.startswith("http://127.0.0.1:"), (folder / "log").read_text()
        yield Page(process, said.split()[0], temporary, folder / "log")
    finally:
        process.kill()
        process.wait()


def upload(page, data, **headers):
    """Uploads a file as a browser does; returns its path on the server."""
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    request = urllib.request.Request(
        page.address + "gradio_api/upload",
        body + data + b"\r\n--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x", **headers},
    )
    with direct.open(request, timeout=20) as answer:
        return pathlib.Path(json.load(answer)[0])


def test_uploads_are_in_a_folder_of_their_own(page):
    path = upload(page, b"hello")
    assert path.read_bytes() == b"hello"
    name = path.relative_to(page.temporary).parts[0]
    assert name.startswith("vit_jax-page-")
    assert stat.S_IMODE((page.temporary / name).stat().st_mode) == 0o700
    assert not list((page.temporary / "gradio").iterdir())


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("config", {"Host": "evil.example"}),
        ("", {"Host": "evil.example:7860"}),
        ("config", {"Origin": "http://evil.example"}),
        ("gradio_api/heartbeat/x", {"Origin": "http://evil.example"}),
        ("gradio_api/queue/data?session_hash=x", {"Origin": "null"}),
    ],
)
def test_other_sites_read_nothing(page, path, headers):
    request = urllib.request.Request(page.address + path, headers=headers)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        direct.open(request, timeout=20)


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_other_sites_send_nothing(page, origin):
    files = sorted(page.temporary.glob("vit_jax-page-*/**/*"))
    with pytest.raises(urllib.error.HTTPError, match="403"):
        upload(page, b"x" * 1000, Origin=origin)
    job = urllib.request.Request(
        page.address + "gradio_api/queue/join",
        json.dumps({"data": [None, 1, 0], "fn_index": 0, "session_hash": "x"}).encode(),
        {"Content-Type": "application/json", "Origin": origin},
    )
    with pytest.raises(urllib.error.HTTPError, match="403"):
        direct.open(job, timeout=20)
    assert sorted(page.temporary.glob("vit_jax-page-*/**/*")) == files


def test_a_refusal_is_said_once(page):
    for _ in range(2):
        request = urllib.request.Request(page.address + "config", headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            direct.open(request, timeout=20)
    (said,) = (x for x in page.log.read_text().splitlines() if "atplotlib" not in x)  # of the home
    assert "Refused a request: " in said and said.endswith("=NAME allows another host.")


def test_the_pages_own_scripts_are_answered(page):
    own = page.address.rstrip("/")
    assert upload(page, b"hello", Origin=own).exists()
    there = {"Host": "localhost:9000", "Origin": "http://localhost:9000"}  # as `ssh -L 9000:` makes
    assert upload(page, b"hello", **there).exists()


@pytest.mark.parametrize("path", [str(REPOSITORY / "docs/flowers/rose.png"), "/etc/passwd"])
def test_a_forged_upload_reads_no_other_file(page, path):
    """Gradio copies what is said to be an upload of its own, if it doesn't look where it is."""
    kept = set(page.temporary.glob("vit_jax-page-*/**/*"))
    image = {"path": path, "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    job = {"data": [image, 4, 0], "fn_index": 0, "session_hash": "forged"}
    request = urllib.request.Request(
        page.address + "gradio_api/queue/join",
        json.dumps(job).encode(),
        {"Content-Type": "application/json"},
    )
    direct.open(request, timeout=20).close()
    answers = page.address + "gradio_api/queue/data?session_hash=forged"
    with direct.open(answers, timeout=20) as lines:
        said = [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]
    (done,) = (x for x in said if x["msg"] == "process_completed")
    assert not done["success"] and set(page.temporary.glob("vit_jax-page-*/**/*")) == kept


def test_after_a_kill_the_next_page_removes_the_uploads(page, monkeypatch):
    """And not while it runs, nor what isn't a folder of its own."""
    path = upload(page, b"hello")
    other = page.temporary / "vit_jax-page-of-somebody"
    other.symlink_to(page.temporary / "gradio")
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    monkeypatch.setattr(serving.tempfile, "tempdir", str(page.temporary))
    with private_uploads() as folder:
        assert path.exists() and pathlib.Path(folder).parent == page.temporary
    page.process.send_signal(signal.SIGKILL)
    page.process.wait()
    assert path.exists()
    with private_uploads() as folder:
        assert not path.exists()
        assert set(page.temporary.glob("vit_jax-page-*")) == {other, pathlib.Path(folder)}
    assert other.is_symlink() and (page.temporary / "gradio").is_dir()


# --------------------------------------------------------------------------------- its parts


def test_the_folder_is_made_where_gradios_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "new"))
    with pytest.raises(KeyError), private_uploads() as first, private_uploads() as second:
        pathlib.Path(first, "image").write_bytes(b"")
        assert os.path.isdir(first) and os.environ["GRADIO_TEMP_DIR"] == second
        raise KeyError  # as any error would end it
    assert not list((tmp_path / "new").iterdir())
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path / "new")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file" / "folder"))
    with pytest.raises(SystemExit) as error:
        main(["there/is/no/checkpoint", "--port=0"])
    folder = str(tmp_path / "file" / "folder")
    assert error.value.code == f"NotADirectoryError: [Errno 20] Not a directory: {folder!r}"


def test_a_page_that_starts_may_remove_another_ones_new_folder(tmp_path, monkeypatch):
    """Before that one has locked it: between two of its calls."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    made = []

    def make(*args, **options):
        made.append(mkdtemp(*args, **options))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    mkdtemp = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", make)
    with private_uploads() as folder:
        assert folder == made[1] and os.path.isdir(folder)
    assert len(made) == 2 and not list(tmp_path.iterdir())


def test_an_empty_variable_of_gradio_stays_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with private_uploads() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == folder
    assert os.environ["GRADIO_TEMP_DIR"] == ""


LOOPBACK = "127.0.0.1"
ALL = "0.0.0.0"
RIGHT = [  # what is listened on, the Host of a request, and its Origin
    (LOOPBACK, "127.0.0.1:7860", None),
    (LOOPBACK, "127.0.0.1:7860", "http://127.0.0.1:7860"),
    (LOOPBACK, "LocalHost:9000", "http://localhost:9000"),
    (LOOPBACK, "[::1]:7860", "http://[::1]:7860"),
    (LOOPBACK, "photos.example", "https://photos.example"),  # it is allowed
    (LOOPBACK, "127.0.0.1:7860", "https://photos.example:8443"),  # a proxy changed the Host
    ("192.0.2.1", "192.0.2.1:7860", "http://192.0.2.1:7860"),
    ("::1", "[::1]:7860", "http://[::1]:7860"),
    (ALL, "192.0.2.7:7860", "http://192.0.2.7:7860"),
    (ALL, "[2001:db8::7]:7860", None),
    (ALL, "lab.example:7860", "http://lab.example:7860"),  # it was given to listen on
]
WRONG = [
    (LOOPBACK, "evil.example:7860", None),
    (LOOPBACK, "evil.example:7860", "http://evil.example:7860"),
    (ALL, "evil.example:7860", "http://evil.example:7860"),
    (LOOPBACK, "localhost.evil.example", None),
    (LOOPBACK, "evilphotos.example", None),
    (LOOPBACK, "evil.photos.example", None),
    (LOOPBACK, "127.0.0.1.evil.example", None),
    (LOOPBACK, "evil@localhost", None),
    (LOOPBACK, "localhost:evil.example", None),
    (LOOPBACK, "localhost/.evil.example", None),
    (LOOPBACK, "192.0.2.7:7860", None),
    (LOOPBACK, "", None),
    (LOOPBACK, None, None),
    (LOOPBACK, "[::1", None),
    (LOOPBACK, "127.0.0.1:7860", "null"),
    (LOOPBACK, "127.0.0.1:7860", ""),
    (LOOPBACK, "127.0.0.1:7860", "file://127.0.0.1:7860"),
    (LOOPBACK, "127.0.0.1:7860", "http://127.0.0.1:3000"),  # another program's page
    (LOOPBACK, "127.0.0.1:7860", "http://localhost:7860"),
    (ALL, "192.0.2.7:7860", "http://192.0.2.8:7860"),
    (LOOPBACK, "photos.example", "https://photos.example.evil.example"),
    (LOOPBACK, "photos.example", "https://photos.example@evil.example"),
    (LOOPBACK, "127.0.0.1:7860", "chrome-extension://photos.example"),
    (ALL, "lab.example:7860", "http://lab.example:3000"),
]


def ask(address, headers, kind="http"):
    """Returns the status of an answer; 200 is that of the application behind the check."""
    answers = []

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        answers.append(message)

    checked = refuse_other_sites(application, "lab.example", address, ["Photos.example"])
    pairs = [(name.encode(), value.encode()) for name, value in headers if value is not None]
    asyncio.run(checked({"type": kind, "headers": pairs}, None, send))
    return answers[0]["status"]


@pytest.mark.parametrize(
    ("listening", "host", "origin", "status"),
    [(*case, 200) for case in RIGHT] + [(*case, 403) for case in WRONG],
)
def test_a_request_is_for_this_page_and_from_it(listening, host, origin, status):
    pytest.importorskip("starlette")
    assert ask(listening, [("host", host), ("origin", origin)]) == status


def test_two_hosts_or_origins_are_not_one_that_is_right():
    pytest.importorskip("starlette")
    assert ask(LOOPBACK, [("host", "localhost"), ("host", "evil.example")]) == 403
    right = [("host", "localhost"), ("origin", "http://localhost")]
    assert ask(LOOPBACK, right) == 200
    assert ask(LOOPBACK, [*right, ("origin", "http://evil.example")]) == 403
    assert ask(LOOPBACK, [("host", "evil.example")], kind="websocket") == 403


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        (LOOPBACK, -1, "ports are numbers from 0 to 65535"),
        (LOOPBACK, 65536, "ports are numbers from 0 to 65535"),
        (LOOPBACK, 2**70, "ports are numbers from 0 to 65535"),
        ("192.0.2.1", 0, "Cannot assign requested address"),  # RFC 5737: nobody's
        ("2001:db8::1", 0, "Cannot assign requested address"),  # RFC 3849: nobody's
        ("256.0.0.1", 0, "Name or service not known"),
        ("127.0.0.1:80", 0, "Name or service not known"),
        ("http://127.0.0.1", 0, "Name or service not known"),
        ("no-such-host.invalid", 0, ""),  # the system's words depend on its network
        ("a" * 64, 0, "this is not a host's name"),
        ("a..b", 0, "this is not a host's name"),
        ("", 0, "Name or service not known"),
    ],
)
def test_addresses_that_cannot_be_used_are_one_line(host, port, reason):
    pytest.importorskip("gradio")
    with pytest.raises(SystemExit) as error:
        main(["there/is/no/checkpoint", f"--host={host}", f"--port={port}"])
    message = error.value.code
    assert message.startswith(f"OSError: Can't listen on {host}, port {port}: ")
    assert reason in message and message.endswith(". Give another --host or --port.")
    assert "\n" not in message


def test_a_port_in_use_is_named_before_a_checkpoint_is_read():
    pytest.importorskip("gradio")
    with listen(LOOPBACK, 0) as used:
        port = used.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port}: the port is in use"):
            main(["there/is/no/checkpoint", f"--port={port}"])


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_addresses_of_ipv6_are_listened_on(host):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listen(host, 0) as listener:
        assert listener.getsockname()[0] == "::1"
        socket.create_connection(listener.getsockname()[:2], timeout=5).close()


@pytest.mark.parametrize("name", ["https://photos.example", "photos.example:80", "*", ""])
def test_an_allowed_host_is_a_name(name, capsys):
    with pytest.raises(SystemExit):
        main(["there/is/no/checkpoint", f"--allow_host={name}"])
    said = capsys.readouterr().err
    assert "takes a host name without scheme or port, such as photos.example" in said
