"""The command that writes weights in another format, or lists their parameters."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
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
from vit_jax.common.files import write_file
from vit_jax.common.names import printable
from vit_jax.models.positions import RESIZES
from vit_jax.weights.api import adapt, load, load_for_new_head, save
from vit_jax.weights.catalogue import published
from vit_jax.weights.formats import FORMATS, SUFFIXES, format_of
from vit_jax.weights.hub import upload
from vit_jax.weights.listing import list_published
from vit_jax.weights.loading import loading_lines
from vit_jax.weights.model_card import find_results, model_card
from vit_jax.weights.summary import describe
from vit_jax.weights.surgery import with_learned_positions

_EXAMPLES = """
formats: npz, the published JAX layout; timm, a state dict (.safetensors, .pth), or a folder of
timm's hub; hf, a folder of Hugging Face's transformers; orbax, a folder that runs start from.

examples:
  python -m vit_jax.convert imagenet21k/ViT-B_16 b16 --num_classes=0
  python -m vit_jax.convert runs/flowers flowers.npz
  python -m vit_jax.convert hf://google/vit-base-patch16-224 b16.safetensors
  python -m vit_jax.convert model.safetensors --dry_run
  python -m vit_jax.convert runs/flowers --push=ORGANISATION/flowers --private
  python -m vit_jax.convert --list=dinov2
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
        if args.list is not None:
            listed = list_published(published().values(), args.list)
            with stop_at_closed_pipe():
                print(listed)
            return
        with contextlib.ExitStack() as stack:
            if args.push and args.destination is None:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vit_jax-"))
                args.destination = os.path.join(folder, "model")
            _convert(args)
    except (ValueError, OSError) as error:
        sys.exit(describe_error(error))
    except MEMORY_ERRORS as error:
        sys.exit(describe_out_of_memory(error, "Take a machine with more memory."))


def _convert(args: argparse.Namespace) -> None:
    """Converts weights, says what it did, and uploads them if that is asked for."""
    open_weights = load if args.num_classes is None else load_for_new_head
    opened = open_weights(args.source, variant=args.variant)
    checkpoint = adapt(
        opened.averaged() if args.average else opened,
        image_size=args.image_size,
        num_classes=args.num_classes,
        patch_size=args.patch_size,
        resize=args.resize,
    )
    if not args.dry_run:
        save(checkpoint, args.destination, format=args.format)
    with stop_at_closed_pipe():
        print(describe(checkpoint, parameters=args.dry_run))
        for change in checkpoint.changes:
            print(f"Changed: {change}")
    if args.dry_run:
        return
    format = args.format or format_of(args.destination)
    path = args.destination
    if checkpoint.config.model.positions == "sincos" and not FORMATS[format].fixed_positions:
        checkpoint = with_learned_positions(checkpoint)  # as `save` has written it
    if args.push:
        is_same = (args.image_size, args.num_classes, args.patch_size) == (None, None, None)
        results = find_results(opened, average=args.average) if is_same else None
        card = model_card(checkpoint, args.push, format=format, source=args.source, results=results)
        write_file(os.path.join(path, "README.md"), card)
        print(f"Pushed to {upload(path, args.push, private=args.private)}.")
        path = f"hf-hub:{args.push}" if format == "timm" else args.push
    with stop_at_closed_pipe():
        if not args.push:
            print(f"Written to {printable(path)}: {FORMATS[format].title}.", end=" ")
        print("These lines load it:\n")
        print(loading_lines(checkpoint, path, format))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.convert",
        description="Converts weights of ViTs, hybrids and BiT ResNets between formats.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", nargs="?", help=SOURCE)
    parser.add_argument("destination", nargs="?", help="a path where nothing is yet")
    parser.add_argument(
        "--list",
        nargs="?",
        const="",
        metavar="PATTERN",
        help="list the published checkpoints, or those with PATTERN in their name, model, data or "
        "licence",
    )
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
        "--patch_size",
        type=image_size,
        metavar="SIDE|HxW",
        help="resizes the patch embedding for it",
    )
    parser.add_argument(
        "--resize", choices=tuple(RESIZES), default="linear", help="how they are resized"
    )
    parser.add_argument("--average", action="store_true", help="take the run's Polyak average")
    parser.add_argument("--dry_run", action="store_true", help="list the parameters, write nothing")
    parser.add_argument(
        "--push",
        metavar="ORGANISATION/NAME",
        help="upload it to the Hugging Face hub, with a model card; --format is hf or timm",
    )
    parser.add_argument("--private", action="store_true", help="a new model there is private")
    args = parser.parse_args(argv)
    if args.list is not None:
        return args
    if args.source is None:
        parser.error("a source is needed, or --list")
    if args.destination is None and not (args.dry_run or args.push):
        parser.error("a destination is needed, or --dry_run")
    if args.push and args.dry_run:
        parser.error("--push uploads, and --dry_run writes nothing: leave one of them out")
    if args.push:
        args.format = args.format or "hf"
        if args.format not in ("hf", "timm") or (args.destination or "").endswith(SUFFIXES):
            parser.error("--push uploads a folder: --format=hf or --format=timm")
    return args


if __name__ == "__main__":
    main()
