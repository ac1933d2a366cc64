"""The largest batch that fits into memory, for each policy of `config.model.remat`.

    python -m benchmarks.memory B/16 L/16 --memory_gib=16 --json=memory.json
    python -m benchmarks.memory L/16 H/14 --dtype=bfloat16 --scan --topology=v5e:4x4

Train steps are compiled and not run: the compiler reports the bytes that each takes. From the bytes
of one batch the largest batch is estimated, compiled and corrected, as `python -m vit_jax.plan
--suggest` does. `relative` is the cost of a policy: the operations an image takes, relative to
those under the first policy.

XLA for CPUs keeps as many bytes with a policy as without (jax 0.10). Run this on the accelerator
that you ask about, or name it by --topology.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import machine
from vit_jax.analysis import hardware
from vit_jax.analysis.compiling import compile_step
from vit_jax.analysis.suggestions import find_largest_batch
from vit_jax.cli.environment import without_tpu
from vit_jax.config.defaults import default
from vit_jax.models import attributes
from vit_jax.models.variants import has_encoder
from vit_jax.training import parallel, setup
from vit_jax.training.memory import bytes_per_device, step_arguments

POLICIES = ("none", "dots", "full")
CLASSES = 1000
_TRIES = 4  # compilations after the first, at most


def largest(
    variant: str, remat: str, first: int, topology: hardware.Topology, args: argparse.Namespace
) -> dict[str, Any]:
    """Returns a row: the largest batch of a step with a policy, and what that step takes.

    Args:
      first: the batch to estimate it from.
    """
    config = default()
    config.model.variant, config.model.remat = variant, remat
    config.dtype, config.parallel = args.dtype, args.parallel
    config.data.image_size, config.model.scan = args.image_size, args.scan
    length, devices = dict(num_classes=CLASSES, total_steps=10**6), len(topology.devices)

    def compile_at(size):
        print(f"Compiling {variant}, remat {remat}, batch {size}.", file=sys.stderr, flush=True)
        config.batch_size = size
        return compile_step(config, topology, **length)

    shapes = step_arguments(config, setup.set_up(config, **length))
    fixed, _ = bytes_per_device(config, *shapes, devices)
    found = find_largest_batch(
        compile_at,
        (first, compile_at(first)),
        fixed=fixed,
        memory=topology.memory,
        multiple=devices,
        tries=_TRIES,
    )
    size, best = found or (0, None)
    return {
        "model": variant,
        "remat": remat,
        "largest batch": size,
        "a device": size // devices,
        "state GiB": fixed / hardware.GIB,
        "total GiB": best and best.total / hardware.GIB,
        "MiB an image": best and (best.total - fixed) * devices / size / 2**20,
        "GFLOPs an image": best and best.flops * devices / size / 1e9,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m benchmarks.memory`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("variant", nargs="+", help="such as B/16")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=POLICIES)
    parser.add_argument("--memory_gib", type=float, help="of a device; default: what it has")
    parser.add_argument("--topology", default="local", help="as vit_jax.plan's, such as v5e:4x4")
    parser.add_argument("--parallel", choices=parallel.STRATEGIES, default="pmap")
    parser.add_argument("--dtype", choices=attributes.DTYPES, default="float32")
    parser.add_argument(
        "--scan",
        action="store_true",
        help="train the blocks as a loop, which compiles in a fraction of the time",
    )
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument("--batch", type=int, default=8, help="images a device to estimate from")
    parser.add_argument("--json", help="file for the results")
    args = parser.parse_args(argv)
    for variant in args.variant:
        if not has_encoder(variant):
            parser.error(f"{variant} has no encoder whose blocks could be computed again.")
    if args.topology != "local":
        without_tpu()
    topology = hardware.find_topology(args.topology)
    if args.memory_gib:
        topology = topology._replace(memory=int(args.memory_gib * hardware.GIB))
    rows = []
    for variant in args.variant:
        found, size = [], args.batch * len(topology.devices)
        for remat in args.policies:
            found.append(largest(variant, remat, size, topology, args))
            size = found[-1]["largest batch"] or size
        operations = [row["GFLOPs an image"] for row in found]
        for row, count in zip(found, operations, strict=True):
            row["relative"] = count / operations[0] if count and operations[0] else None
        rows += found
    about = machine.description("flax") | {
        "topology": args.topology,
        "chips": f"{len(topology.devices)} x {topology.kind}",
        "budget_gib": round(topology.memory / hardware.GIB, 2),
    }
    about |= {k: getattr(args, k) for k in ("parallel", "dtype", "image_size", "scan")}
    machine.report("Largest batch", rows, about, args.json)


if __name__ == "__main__":
    main()
