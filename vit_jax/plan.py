"""What a training run needs and takes on devices that need not be there.

    python -m vit_jax.plan --config=configs/pretrain.py:B/16,imagenet2012 --topology=v5e:4x4
    python -m vit_jax.plan --config=configs/finetune.py:S/16,PHOTOS --topology=h100:8 --images=5000

compiles the train step of a configuration for a TPU topology, or for the GPUs of a host such as
`--topology=h100:8`, on any machine. It prints parameters, FLOPs, memory and communication and, by
a roofline, the time of a step and of the whole run. Nothing is trained; no data and no weights are
read. `--topology=local` is this machine's devices; TPUs need the extra "tpu" of the package, GPUs
the extra "cuda".

    python -m vit_jax.plan --paper

prints what the pre-trainings of the paper's tables 2, 3 and 6 need and take on TPU v3, TPU v5e and
H100, as it was compiled before. `--paper=FILE.csv` compiles for itself what that file lacks, which
takes hours, and writes each result into it: it can be stopped, and goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from vit_jax.analysis import paper
from vit_jax.analysis.hardware import EXAMPLES
from vit_jax.analysis.plan_table import format_plan
from vit_jax.analysis.planning import dataset_size, plan
from vit_jax.cli.environment import start_devices, start_logging, without_tpu
from vit_jax.cli.errors import (
    MEMORY_ERRORS,
    describe_error,
    describe_out_of_memory,
    stop_at_closed_pipe,
)
from vit_jax.cli.flags import parse_flags


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.plan`."""
    args, config = _parse(argv)
    start_logging()
    if args.paper:
        _plan_paper(args)
        return
    if args.topology == "local":
        start_devices()
    else:
        without_tpu()
    try:
        images, classes = dataset_size(config)
        if args.num_classes is None and classes is None:
            _log("The data's classes are unknown: taking 1000; see --num_classes.")
        report = plan(
            config,
            args.topology,
            num_classes=args.num_classes or classes or 1000,
            images=args.images or images,
            suggest=args.suggest,
            log=_log,
        )
    except (ImportError, OSError, ValueError) as error:
        sys.exit(describe_error(error))
    except MEMORY_ERRORS as error:
        sys.exit(describe_out_of_memory(error, "Take a machine with more memory to compile on."))
    with stop_at_closed_pipe():
        print(json.dumps(report) if args.json else "\n".join(format_plan(report)))


def _plan_paper(args: argparse.Namespace) -> None:
    """Prints the plan of the paper; compiles what a file of the user's lacks."""
    try:
        if args.paper != str(paper.KEPT):
            without_tpu()
            topologies = [args.topology] if args.topology else list(paper.TOPOLOGIES)
            paper.compile_programs(args.paper, paper.programs(topologies), _log)
        lines = paper.format_paper(paper.read_rows(args.paper))
    except (OSError, ValueError) as error:
        sys.exit(describe_error(error))
    except MEMORY_ERRORS as error:
        sys.exit(describe_out_of_memory(error, "Take a machine with more memory to compile on."))
    with stop_at_closed_pipe():
        print("\n".join(lines))


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, ConfigDict]:
    """Returns the command line's arguments and its configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m vit_jax.plan",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--config=FILE:ARGUMENT and --config.KEY=VALUE are vit_jax.main's: see its --help",
    )
    parser.add_argument("--topology", help=f"such as {', '.join(EXAMPLES)}")
    parser.add_argument(
        "--paper",
        nargs="?",
        const=str(paper.KEPT),
        metavar="FILE.csv",
        help="print the plan of the paper; with FILE.csv, compile what it lacks first, for "
        f"{', '.join(paper.TOPOLOGIES)}, or for --topology of these",
    )
    parser.add_argument("--num_classes", type=int, help="default: the data set's, else 1000")
    parser.add_argument("--images", type=int, help="to train on; default: the data set's")
    parser.add_argument(
        "--suggest", action="store_true", help="compile up to seven more times, to find what fits"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead")
    args, rest = parser.parse_known_args(argv)
    if args.paper:
        others = {k: v for k, v in vars(args).items() if k not in ("paper", "topology") and v}
        compiles = args.paper != str(paper.KEPT)
        if rest or others or args.topology not in (None, *(paper.TOPOLOGIES if compiles else ())):
            parser.error(
                "--paper takes no other flag, and --paper=FILE.csv only --topology, one of "
                f"{', '.join(paper.TOPOLOGIES)}"
            )
        return args, ConfigDict()
    if args.topology is None:
        parser.error("--topology is needed, the devices to plan for; or --paper")
    rest = [parser.prog, *rest]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=rest)
    if extra := parse_flags(rest, values)[1:]:
        parser.error(f"unexpected arguments: {' '.join(extra)}")
    return args, holder.value


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
