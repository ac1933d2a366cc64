"""Serves a web page that shows what a model sees: `python -m vit_jax.demo CHECKPOINT`.

Gradio draws the page. It is for this machine alone, unless another address is asked for.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Sequence

from vit_jax.cli.arguments import add_checkpoint
from vit_jax.cli.environment import start_devices, start_logging
from vit_jax.cli.errors import MEMORY_ERRORS, describe_error, describe_out_of_memory
from vit_jax.interpret.page import build_page, import_gradio
from vit_jax.interpret.serving import listen, private_uploads, serve
from vit_jax.weights.api import load

_EXAMPLES = """
examples:
  python -m vit_jax.demo checkpoints/quickstart
  python -m vit_jax.demo runs/photos --host=0.0.0.0 --port=8000
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.demo`."""
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.demo",
        description="Serves a web page: drop an image, see its classes and where the model looks.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; default: 127.0.0.1, for this machine alone. With another, such "
        "as 0.0.0.0, everyone who can reach the machine can use the page.",
    )
    parser.add_argument("--port", type=int, default=7860, help="default: 7860; 0 takes a free one")
    parser.add_argument(
        "--max_megabytes", type=float, default=20, help="refuse larger files; default: 20"
    )
    parser.add_argument(
        "--allow_host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name under which browsers reach the page, such as that of a reverse proxy; "
        "may be given several times. Requests to other names and from other sites are refused.",
    )
    args = parser.parse_args(argv)
    if args.max_megabytes <= 0:
        parser.error("--max_megabytes must be above 0")
    if not all(re.fullmatch(r"[\w.-]+", name) for name in args.allow_host):
        parser.error(
            "--allow_host takes a host name without scheme or port, such as photos.example"
        )
    start_logging()
    start_devices()
    # SIGTERM ends the page as Ctrl-C does, which deletes uploaded images.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with private_uploads():
            import_gradio()  # fails, if it has to, before a large checkpoint is read
            listen(args.host, args.port).close()  # so does this
            blocks = build_page(
                load(args.checkpoint),
                image_size=args.image_size,
                max_megabytes=args.max_megabytes,
            )
            serve(
                blocks,
                host=args.host,
                port=args.port,
                allowed_hosts=args.allow_host,
                max_megabytes=args.max_megabytes,
            )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(describe_error(error))
    except MEMORY_ERRORS as error:
        sys.exit(describe_out_of_memory(error, "Take a smaller --image_size or a smaller model."))


if __name__ == "__main__":
    main()
