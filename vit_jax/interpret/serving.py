"""How the page of `demo` is served: where it listens, whom it answers, where uploads are kept."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import logging
import os
import pathlib
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

logger = logging.getLogger(__name__)

MEGABYTE = 2**20
_PREFIX = "vit_jax-page-"  # of the folders of uploads
_SESSIONS = 100  # visitors whose last image is kept for the sliders: about 1 MB each
_NETWORK_VARIABLES = re.compile(
    "_proxy$|^ssl_cert_(file|dir)$|^gradio_(server_name|server_port|num_ports)$", re.IGNORECASE
)


@contextlib.contextmanager
def private_uploads() -> Iterator[str]:
    """Makes Gradio keep uploads in a new folder that only this user can read.

    At the end of the block the folder is removed. It is in that of GRADIO_TEMP_DIR, or in the
    system's temporary folder. A running page locks its folder. Folders of pages that were killed
    have no lock: they are removed first. Import Gradio and build the page inside the block.

    Yields:
      the folder's path.

    Raises:
      OSError: no folder can be made there.
    """
    given = os.environ.get("GRADIO_TEMP_DIR")
    parent = pathlib.Path(given or tempfile.gettempdir()).absolute()
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _locked(left) as is_locked:
            if is_locked:
                shutil.rmtree(left)
    while True:
        new = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)
        with new as folder, _locked(folder, wait=True):
            if not os.path.isdir(folder):
                continue  # a page that started at the same time has removed it
            os.environ["GRADIO_TEMP_DIR"] = folder
            try:
                yield folder
            finally:
                del os.environ["GRADIO_TEMP_DIR"]
                if given is not None:
                    os.environ["GRADIO_TEMP_DIR"] = given
            return


@contextlib.contextmanager
def _locked(folder: str | os.PathLike[str], *, wait: bool = False) -> Iterator[bool]:
    """Locks a folder within the block; yields False if that can't be done."""
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_locked = True
        except OSError:  # it is gone or locked, or its file system has no locks
            is_locked = False
        yield is_locked


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on an address.

    Args:
      host: an address or a name of this machine.
      port: 0 to 65535; 0 takes one that is free.

    Raises:
      OSError: this address and port can't be listened on; the message says why.
    """
    try:
        if not 0 <= port < 2**16:
            raise OSError("ports are numbers from 0 to 65535")
        name = host.removeprefix("[").removesuffix("]")  # as addresses of IPv6 are in URLs
        family, *_, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except (OSError, UnicodeError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        if isinstance(error, UnicodeError):
            reason = "this is not a host's name"
        elif error.errno == errno.EADDRINUSE:
            reason = "the port is in use"
        raise OSError(
            f"Can't listen on {host}, port {port}: {reason}. Give another --host or --port."
        ) from error


def serve(
    blocks: gradio.Blocks,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    allowed_hosts: Collection[str] = (),
    max_megabytes: float = 20,
) -> None:
    """Serves a page until Ctrl-C or SIGTERM, and prints its address as soon as it answers.

    Requests that another site can make a visitor's browser send are refused, see
    `refuse_other_sites`.

    Args:
      blocks: what `build_page` returns.
      host: the address to listen on, or a name of it.
      port: the port to listen on; 0 takes one that is free.
      allowed_hosts: other names under which browsers reach the page.
      max_megabytes: largest size of an upload, in 2^20 bytes; a larger upload is refused.

    Raises:
      OSError: this address and port can't be listened on.
    """
    from starlette.middleware import Middleware

    with listen(host, port) as listener:  # Gradio doesn't say why it can't
        address, port = listener.getsockname()[:2]
    check = Middleware(refuse_other_sites, host, address, allowed_hosts)
    with without_network_settings():  # Gradio calls its own page once
        blocks.launch(
            server_name=f"[{address}]" if ":" in address else address,
            server_port=port,
            app_kwargs={"middleware": [check]},
            max_file_size=int(max_megabytes * MEGABYTE),
            state_session_capacity=_SESSIONS,
            share=False,
            run_history=False,
            mcp_server=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            footer_links=[],
            quiet=True,
            prevent_thread_lock=True,
        )
    try:
        with contextlib.suppress(BrokenPipeError):  # nobody reads stdout: the page is there
            print(f"{blocks.local_url} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        blocks.close(verbose=False)


@contextlib.contextmanager
def without_network_settings() -> Iterator[None]:
    """Hides environment variables with proxies, certificates and addresses within the block.

    Gradio makes clients of HTTP when it is imported, and raises an error where these are wrong. The
    page connects to nothing but itself, and its address is that of the command line.
    """
    hidden = {
        name: os.environ.pop(name) for name in [*os.environ] if _NETWORK_VARIABLES.search(name)
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def refuse_other_sites(
    app: ASGIApp, host: str, address: str, allowed_hosts: Collection[str] = ()
) -> ASGIApp:
    """Returns an application that answers 403 to requests that come from other sites.

    A site can let its own name point to this machine (DNS rebinding). The Host of such a request is
    that name. And a site's pages can send requests to this one. Their Origin is that site.

    A right Host is `host`, "localhost", this machine's name, the address, an address of loopback,
    or one of `allowed_hosts`, with any port: it may be forwarded. If all addresses are listened on,
    every address is right. A right Origin is that of the Host, or one of `allowed_hosts`: a reverse
    proxy may change the Host. A request without an Origin is answered.

    Args:
      app: an ASGI application.
      host: the name or address that was given to listen on.
      address: the address that is listened on.
      allowed_hosts: other names under which browsers reach the page.
    """
    from starlette.datastructures import Headers
    from starlette.responses import PlainTextResponse

    allowed = {name.lower() for name in allowed_hosts}
    names = {"localhost", socket.gethostname().lower(), host.lower(), *allowed} - {""}
    own = ipaddress.ip_address(address)
    has_warned = False

    def is_own_address(name: str) -> bool:
        try:
            found = ipaddress.ip_address(name)
        except ValueError:
            return False
        return found == own or found.is_loopback or own.is_unspecified

    def refusal(headers: Headers) -> str | None:
        host_header = ",".join(headers.getlist("host")).lower()
        name = _name(host_header)
        if name not in names and not is_own_address(name):
            return f"it asked for the host {host_header!r}"
        for origin in map(str.lower, headers.getlist("origin")):
            scheme, _, authority = origin.partition("://")
            is_right = authority == host_header or _name(authority) in allowed
            if scheme not in ("http", "https") or not is_right:
                return f"a page of {origin!r} sent it to {host_header!r}"
        return None

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal has_warned
        reason = refusal(Headers(scope=scope)) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await app(scope, receive, send)
            return
        message = f"Refused a request: {reason}. --allow_host=NAME allows another host."
        if not has_warned:
            logger.warning("%s", message)
            has_warned = True
        await PlainTextResponse(message, 403)(scope, receive, send)

    return answer


def _name(authority: str) -> str:
    """Returns the name or address in NAME[:PORT]; "" if it is not of this form."""
    match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^][:/@?#\\\s]+))(?::\d+)?", authority)
    return (match[1] or match[2]) if match else ""


if TYPE_CHECKING:
    import gradio
    from starlette.types import ASGIApp, Receive, Scope, Send
