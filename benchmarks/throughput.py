"""Images per second of training and inference, beside timm in PyTorch, in one run.

    python -m benchmarks.throughput Ti/16 S/16 B/16 --batch=8 --json=throughput.json

Each contender is a process of its own that compiles, warms up and then waits. They take turns, so
that the machine's other work slows all of them alike. Images/s are medians over the rounds, and
ratios the medians of each round's ratio to vit_jax.

    vit_jax     as `vit_jax.main` runs it: uint8 images, the update of `training/step.py`
    plain       the same with Flax's own LayerNorm, GELU and attention (model.implementation=plain)
    eager       timm, PyTorch's scaled_dot_product_attention
    compiled    timm through torch.compile
    autotuned   timm through torch.compile(mode="max-autotune-no-cudagraphs")
    frozen      compiled, and inference with inductor's `freezing` (inference alone)

Training is a step of SGD with momentum on cross-entropy, without dropout or augmentation. Dtype
bfloat16 is vit_jax's `config.dtype` and PyTorch's autocast. PyTorch gets the same settings of
malloc as vit_jax sets on a CPU, and transparent huge pages, which make it faster.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from benchmarks import machine

if TYPE_CHECKING:  # timm's processes don't import JAX
    from ml_collections import ConfigDict

    from vit_jax.training.parallel import Parallel
    from vit_jax.training.setup import Setup

CONTENDERS = ("vit_jax", "plain", "eager", "compiled", "autotuned", "frozen")
MODES = ("inference", "training")
CLASSES = 1000
TIMM = {
    "Ti/16": "vit_tiny_patch16_224",
    "S/32": "vit_small_patch32_224",
    "S/16": "vit_small_patch16_224",
    "B/32": "vit_base_patch32_224",
    "B/16": "vit_base_patch16_224",
    "B/8": "vit_base_patch8_224",
    "L/32": "vit_large_patch32_224",
    "L/16": "vit_large_patch16_224",
    "H/14": "vit_huge_patch14_224",
}
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_ARENA_MAX": "1",
    "THP_MEM_ALLOC_ENABLE": "1",
}


# ----------------------------------------------------------------------------------- contenders


def set_up(
    contender: str,
    variant: str,
    dtype: str,
    batch: int,
    image_size: int,
    changes: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[ConfigDict, Setup, Parallel]:
    """Returns the configuration of a contender of ours, what it trains, and its program.

    Args:
      contender: "vit_jax", for the default implementation, or an implementation.
      variant, dtype, batch, image_size: of the model and its images.
      changes: of other keys of the configuration, by their full names.
    """
    from vit_jax.config.defaults import default
    from vit_jax.models.patches import to_float
    from vit_jax.training import parallel, setup

    config = default()
    config.model.variant, config.dtype = variant, dtype
    config.batch_size, config.data.image_size = batch, image_size
    config.optim.clip_norm = 0.0
    if contender != "vit_jax":
        config.model.implementation = contender
    config.update_from_flattened_dict(dict(changes))
    trained = setup.set_up(config, num_classes=CLASSES, total_steps=10**6)
    program = parallel.make_program(
        config,
        update=trained.update,
        key=trained.key,
        extract_features=lambda params, batch: trained.model.apply(
            {"params": params}, to_float(batch["image"])
        ),
    )
    return config, trained, program


def of_vit_jax(args: argparse.Namespace) -> Callable[[int], None]:
    """Returns n -> None, which runs n steps of vit_jax and waits for the last."""
    from vit_jax.cli.environment import keep_freed_memory, prefer_cublas

    keep_freed_memory()
    prefer_cublas()
    import jax

    _, trained, program = set_up(
        args.contender, args.variant, args.dtype, args.batch, args.image_size
    )
    state = program.init(trained.init_state, trained.init_key)
    batch = machine.batch(args.batch, args.image_size, CLASSES)

    def run(steps):
        nonlocal state
        for _ in range(steps):
            if args.mode == "training":
                state, result = program.update(state, program.put_batch(batch))
            else:
                result = program.extract_features(state.params, program.put_batch(batch))
        jax.block_until_ready(result)

    return run


def of_timm(args: argparse.Namespace) -> Callable[[int], None]:
    """Returns n -> None, which runs n steps of timm's model and waits for the last."""
    machine.import_torchvision()
    import timm
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    model = timm.create_model(TIMM[args.variant], num_classes=CLASSES, img_size=args.image_size).to(
        device
    )
    training = args.mode == "training"
    model.train(training)
    if args.contender == "frozen":
        import torch._inductor.config

        torch._inductor.config.freezing = True
    if args.contender != "eager":
        mode = "max-autotune-no-cudagraphs" if args.contender == "autotuned" else None
        model = torch.compile(model, mode=mode)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    batch = machine.batch(args.batch, args.image_size, CLASSES)
    images, labels = (torch.from_numpy(batch[name]).to(device) for name in ("image", "label"))
    images = images.permute(0, 3, 1, 2).contiguous()
    return timm_steps(model, optimizer, images, labels, training=training, dtype=args.dtype)


def timm_steps(
    model: Any, optimizer: Any, images: Any, labels: Any, *, training: bool, dtype: str
) -> Callable[[int], None]:
    """Returns n -> None, which runs n steps of a model of timm and waits for the last.

    Args:
      model: compiled or not.
      optimizer: of its parameters.
      images: uint8 (b, 3, h, w), on the device; they are scaled in each step.
      labels: integers (b,), on the device.
      training: False only computes logits.
      dtype: "bfloat16" for PyTorch's autocast, or "float32".
    """
    import torch
    import torch.nn.functional as F

    device, labels = images.device.type, labels.long()

    def forward():
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            return model(images.float() / 127.5 - 1)

    def run(steps):
        for _ in range(steps):
            if training:
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(forward().float(), labels).backward()
                optimizer.step()
            else:
                with torch.no_grad():
                    forward()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def work(args: argparse.Namespace) -> None:
    """Compiles, warms up, and measures when asked."""
    ours = args.contender in ("vit_jax", "plain")
    run = (of_vit_jax if ours else of_timm)(args)
    for _ in range(2):  # to compile; PyTorch's optimizer makes its state in the first step
        run(1)
    machine.answer_steps(run)


def contender(name: str, variant: str, mode: str, args: argparse.Namespace) -> machine.Contender:
    """Starts a contender: asked for a number of steps, it answers with their seconds."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.throughput",
        variant,
        f"--contender={name}",
        f"--mode={mode}",
        f"--batch={args.batch}",
        f"--dtype={args.dtype}",
        f"--image_size={args.image_size}",
    ]
    return machine.Contender(name, command, {**os.environ, **MALLOC})


def compare(variant: str, mode: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each contender: images/s, and vit_jax's speed relative to it."""
    names = [name for name in args.contenders if name != "frozen" or mode == "inference"]
    contenders = [contender(name, variant, mode, args) for name in names]
    times = machine.rounds(contenders, args.seconds, args.rounds)
    first = names.index("vit_jax") if "vit_jax" in names else 0
    return [
        {
            "model": variant,
            "mode": mode,
            "contender": name,
            "images/s": args.batch / machine.median(turn[i] for turn in times),
            "slowest": args.batch / max(turn[i] for turn in times),
            "fastest": args.batch / min(turn[i] for turn in times),
            f"{names[first]} is": f"{machine.median(turn[i] / turn[first] for turn in times):.2f}x",
        }
        for i, name in enumerate(names)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m benchmarks.throughput`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("variant", nargs="+", choices=TIMM, help="models that timm has as well")
    parser.add_argument("--mode", choices=MODES, action="append", help="default: both")
    parser.add_argument("--batch", type=int, default=8, help="images a step")
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.contender:
        (args.variant,), (args.mode,) = args.variant, args.mode
        return work(args)
    rows = []
    for variant in args.variant:
        for mode in args.mode or MODES:
            rows += compare(variant, mode, args)
            print("\n".join(machine.table(rows[-len(args.contenders) :])), file=sys.stderr)
    about = machine.description("flax", "torch", "timm")
    about |= {k: getattr(args, k) for k in ("batch", "image_size", "dtype", "rounds")}
    machine.report("Throughput", rows, about, args.json)


if __name__ == "__main__":
    main()
