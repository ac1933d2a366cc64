"""plan"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from vit_jax.analysis.hardware import EXAMPLES
from vit_jax.analysis.planning import dataset_size, plan, table
from vit_jax.cli.environment import without_tpu
from vit_jax.cli.flags import parse_flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.plan`."""
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.plan",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config=FILE:ARGUMENT and --config.KEY=VALUE are those of vit_jax.main.",
    )
    parser.add_argument("--topology", required=True, help=f"such as {', '.join(EXAMPLES)}")
    parser.add_argument("--num_classes", type=int, help="default: the data set's, else 1000")
    parser.add_argument("--images", type=int, help="to train on; default: the data set's")
    parser.add_argument(
        "--suggest", action="store_true", help="compile up to seven more times, to find what fits"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    args, rest = parser.parse_known_args(argv)
    rest = [parser.prog, *rest]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=rest)
    flags.mark_flag_as_required("config", values)
    if extra := parse_flags(rest, values)[1:]:
        parser.error(f"unexpected arguments: {' '.join(extra)}")
    if args.topology != "local":
        without_tpu()
    try:
        images, classes = dataset_size(holder.value)
        if args.num_classes is None and classes is None:
            _tell("The data's classes are unknown: taking 1000; see --num_classes.")
        report = plan(
            holder.value,
            args.topology,
            num_classes=args.num_classes or classes or 1000,
            images=args.images or images,
            suggest=args.suggest,
            tell=_tell,
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(report) if args.json else "\n".join(table(report)))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
