"""The command that writes weights in another format, or lists their parameters."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import jax

from vit_jax.cli.arguments import SOURCE, image_size
from vit_jax.cli.environment import start_logging
from vit_jax.cli.errors import (
    MEMORY_ERRORS,
    describe_error,
    describe_out_of_memory,
    log_errors_once,
    stop_at_closed_pipe,
)
from vit_jax.common.names import printable
from vit_jax.models.positions import RESIZES
from vit_jax.weights.api import adapt, load, load_for_new_head, save
from vit_jax.weights.formats import FORMATS, format_of
from vit_jax.weights.loading import loading_lines
from vit_jax.weights.summary import describe

_EXAMPLES = """
formats: npz, the published JAX layout; timm, a state dict (.safetensors, .pth); hf, a Hugging Face
folder; orbax, a folder that runs start from.

examples:
  python -m vit_jax.convert imagenet21k/ViT-B_16 b16 --num_classes=0
  python -m vit_jax.convert runs/flowers flowers.npz
  python -m vit_jax.convert hf://google/vit-base-patch16-224 b16.safetensors
  python -m vit_jax.convert model.safetensors --dry_run
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.convert`.

    Args:
      argv: the arguments. None if they are those of the process.
    """
    args = _parse(argv)
    start_logging()
    log_errors_once()
    jax.config.update("jax_platforms", "cpu")  # arrays are copied, not computed with
    try:
        open_weights = load if args.num_classes is None else load_for_new_head
        checkpoint = open_weights(args.source, variant=args.variant)
        if args.average:
            checkpoint = checkpoint.averaged()
        checkpoint = adapt(
            checkpoint,
            image_size=args.image_size,
            num_classes=args.num_classes,
            resize=args.resize,
        )
        if not args.dry_run:
            save(checkpoint, args.destination, format=args.format)
    except (ValueError, OSError) as error:
        sys.exit(describe_error(error))
    except MEMORY_ERRORS as error:
        sys.exit(describe_out_of_memory(error, "Take a machine with more memory."))
    with stop_at_closed_pipe():
        print(describe(checkpoint, parameters=args.dry_run))
        if not args.dry_run:
            format = args.format or format_of(args.destination)
            print(f"Written to {printable(args.destination)}: {FORMATS[format].title}.", end=" ")
            print("These lines load it:\n")
            print(loading_lines(checkpoint, args.destination, format))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.convert",
        description="Converts weights of ViTs, hybrids and BiT ResNets between formats.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help=SOURCE)
    parser.add_argument("destination", nargs="?", help="a path where nothing is yet")
    parser.add_argument("--variant", help="the model it must be, such as B/16; default: as it is")
    parser.add_argument("--format", choices=tuple(FORMATS), help="default: by the suffix")
    parser.add_argument("--num_classes", type=int, help="a new head of zeros; 0: no head")
    parser.add_argument(
        "--image_size",
        type=image_size,
        metavar="SIDE|HxW",
        help="resizes position embeddings for it",
    )
    parser.add_argument(
        "--resize", choices=tuple(RESIZES), default="linear", help="how they are resized"
    )
    parser.add_argument("--average", action="store_true", help="take the run's Polyak average")
    parser.add_argument("--dry_run", action="store_true", help="list the parameters, write nothing")
    args = parser.parse_args(argv)
    if args.destination is None and not args.dry_run:
        parser.error("a destination is needed, or --dry_run")
    return args


if __name__ == "__main__":
    main()
