"""How long answers for one image and for several take, beside other runtimes, on this machine.

    python -m benchmarks.serving Ti/16 S/16 B/16 --json=serving.json

Each contender is a process of its own that compiles, warms up and then waits. They take turns.
Times are medians over the rounds, and ratios the medians of each round's ratio to vit_jax. All
compute in float32, with random weights.

    vit_jax      `Classifier.predict`: it also crops the images and sorts the probabilities
    onnxruntime  the ONNX file that `python -m vit_jax.export` writes
    openvino     the same file
    frozen       timm through torch.compile, with inductor's `freezing`

The images are uint8 arrays of the model's size.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import machine, throughput

CONTENDERS = ("vit_jax", "onnxruntime", "openvino", "frozen")


def checkpoint_of(variant: str, image_size: int) -> Any:
    """Returns a checkpoint of a variant with random weights and `throughput.CLASSES` classes."""
    import jax

    import vit_jax
    from vit_jax.checkpoints.checkpoint import Checkpoint

    config = vit_jax.default_config()
    config.model.variant, config.data.image_size = variant, image_size
    model = vit_jax.build(variant, num_classes=throughput.CLASSES)
    images = jax.numpy.zeros((1, image_size, image_size, 3))
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    names = tuple(f"class {i}" for i in range(throughput.CLASSES))
    return Checkpoint(variant, params, config, names, 0)


def of_vit_jax(args: argparse.Namespace, images: Any) -> Callable[[], Any]:
    """Returns a function that predicts once."""
    from vit_jax.cli.environment import keep_freed_memory

    keep_freed_memory()
    import vit_jax

    checkpoint = checkpoint_of(args.variant, args.image_size)
    classifier = vit_jax.Classifier(checkpoint, batch_size=len(images))
    return lambda: classifier.predict(images)


def of_onnxruntime(args: argparse.Namespace, images: Any) -> Callable[[], Any]:
    """Returns a function that runs onnxruntime's session once."""
    import onnxruntime

    session = onnxruntime.InferenceSession(args.onnx, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": images})


def of_openvino(args: argparse.Namespace, images: Any) -> Callable[[], Any]:
    """Returns a function that runs OpenVINO's compiled model once."""
    import openvino

    core = openvino.Core()
    model = core.read_model(args.onnx)
    model.reshape(images.shape)
    compiled = core.compile_model(
        model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda: compiled([images])


def of_frozen(args: argparse.Namespace, images: Any) -> Callable[[], Any]:
    """Returns a function that runs timm's compiled model once."""
    del images  # the same ones
    args.mode, args.dtype = "inference", "float32"
    run = throughput.of_timm(args)
    return lambda: run(1)


RUNTIMES = dict(zip(CONTENDERS, (of_vit_jax, of_onnxruntime, of_openvino, of_frozen), strict=True))


def work(args: argparse.Namespace) -> None:
    """Compiles, warms up, and measures when asked."""
    images = machine.batch(args.batch, args.image_size, throughput.CLASSES)["image"]
    run = RUNTIMES[args.contender](args, images)

    def steps(count):
        for _ in range(count):
            run()

    steps(3)
    machine.answer_steps(steps)


def compare(variant: str, batch: int, onnx: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each contender: milliseconds of an answer for `batch` images."""
    options = [f"--batch={batch}", f"--image_size={args.image_size}", f"--onnx={onnx}"]
    command = [sys.executable, "-m", "benchmarks.serving", variant, *options]
    env = {**os.environ, **throughput.MALLOC}
    contenders = [
        machine.Contender(name, [*command, f"--contender={name}"], env) for name in args.contenders
    ]
    times = machine.rounds(contenders, args.seconds, args.rounds)
    return [
        {
            "model": variant,
            "images": batch,
            "contender": name,
            "ms": 1e3 * machine.median(turn[i] for turn in times),
            "fastest": 1e3 * min(turn[i] for turn in times),
            "slowest": 1e3 * max(turn[i] for turn in times),
            "images/s": batch / machine.median(turn[i] for turn in times),
            f"{args.contenders[0]} is": f"{machine.median(t[i] / t[0] for t in times):.2f}x",
        }
        for i, name in enumerate(args.contenders)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m benchmarks.serving`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("variant", nargs="+", choices=throughput.TIMM)
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="images at once")
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--onnx", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.contender:
        (args.variant,), (args.batch,) = args.variant, args.batch
        return work(args)
    rows = []
    for variant in args.variant:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "model.onnx")
            if {"onnxruntime", "openvino"} & {*args.contenders}:
                from vit_jax.inference.exporter import export

                export(checkpoint_of(variant, args.image_size), file)
            for batch in args.batch:
                rows += compare(variant, batch, str(file), args)
                print("\n".join(machine.table(rows[-len(args.contenders) :])), file=sys.stderr)
    packages = {
        "frozen": ["torch", "timm"],
        "onnxruntime": ["onnxruntime"],
        "openvino": ["openvino"],
    }
    about = machine.description(*(x for name in args.contenders for x in packages.get(name, [])))
    about |= {"image_size": args.image_size, "rounds": args.rounds}
    machine.report("Serving", rows, about, args.json)


if __name__ == "__main__":
    main()
