"""Images per second of the input pipeline, beside tf.data, on the same JPEGs in one run.

    python -m benchmarks.input_pipeline --tf_python=/tmp/tf/bin/python --json=input_pipeline.json

Files are read, decoded, cropped at random as Inception does, resized bilinearly, mirrored at random
and batched. Nothing is trained. Each contender is a process of its own. They take turns, so that
the machine's other work slows all of them alike. In each turn a contender starts its pipeline anew,
and counts images after a warm-up. Images/s are medians over the rounds, and ratios the medians of
each round's ratio to vit_jax. Beside other work, the processor time of an image says more: whoever
has more threads gets more of the processors.

    vit_jax           `pipeline.train_batches`: uint8, as sent to the device
    vit_jax float32   the same scaled to [-1, 1] by `patches.to_float`, here on the CPU
    tf.data           decode_and_crop_jpeg, all settings left to AUTOTUNE, cast to uint8
    tf.data float32   the same scaled to [-1, 1]
    … packed          uint8 from what `python -m vit_jax.data pack` made of the JPEGs; tf.data
                      doesn't read array_record files, and gets the same small JPEGs as files

TensorFlow draws its crops with sample_distorted_bounding_box from the same ranges. It needs an
interpreter with tensorflow: this one, with `pip install -e ".[bench]"`, or that of --tf_python.

Without --photos, the JPEGs are drawn: noise of all scales, of different roughness, 500 x 375 pixels
at quality 90 with halved chroma. They have 40 to 110 kB, as photos of this size have. Grain takes
0.07 ms to shuffle an index of 256 images and 0.01 ms of 2,048: --copies makes more files. With
`--height=3000 --width=4000 --count=16 --batch=4` they are photos of 12 megapixels, with EXIF
metadata.
"""

from __future__ import annotations

import argparse
import glob
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks import machine

CONTENDERS = (
    *("vit_jax", "vit_jax float32", "tf.data", "tf.data float32"),
    *("vit_jax packed", "tf.data packed"),
)
QUALITY = 90
# A segment of a JPEG file whose one tag, orientation, is 6: the image is to be turned to the right.
EXIF = b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6" + bytes(6)
AREA, ASPECT = (0.05, 1.0), (3 / 4, 4 / 3)  # of crops


# ---------------------------------------------------------------------------------------- data


def draw(folder: pathlib.Path, count: int, height: int, width: int, copies: int = 1) -> None:
    """Writes JPEGs to FOLDER/photos; they take as long to decode as photos. Copies are links.

    Those of more than a megapixel are as of a phone that was held upright: EXIF metadata ask for a
    quarter turn.
    """
    import cv2
    import simplejpeg

    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    octaves = 6 + round(np.log2(height / 47))  # 9 for 375 pixels
    for i in range(count):
        roughness = rng.uniform(0.72, 0.87)  # of an octave, relative to the one before
        image = np.full((height, width, 3), rng.uniform(60, 200, 3), np.float32)
        for octave in range(octaves):
            shape = (min(height, 3 * 2**octave // 2), min(width, 2 * 2**octave))
            grey, colour = rng.normal(0, 60, (*shape, 1)), rng.normal(0, 12, (*shape, 3))
            noise = (roughness**octave * (grey + colour)).astype(np.float32)
            image += cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        data = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorsubsampling="420")
        if height * width > 10**6:
            data = data[:2] + EXIF + data[2:]
        (folder / "photos" / f"{i:05}.jpg").write_bytes(data)
        for copy in range(1, copies):
            (folder / "photos" / f"{i:05}-{copy}.jpg").hardlink_to(folder / f"photos/{i:05}.jpg")


def pack(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, str]:
    """Packs the JPEGs of --photos; returns the folder of each contender that reads the result."""
    from vit_jax.data import packed_records, packing, sources

    packed, unpacked = folder / "packed", folder / "unpacked"
    options = packed_records.PackOptions(args.side, args.quality)
    dataset = sources.open_dataset(str(packing.pack(args.photos, packed, options)))
    source = dataset.source("+".join(dataset.splits))
    (unpacked / "photos").mkdir(parents=True)
    for i in range(len(source)):
        (unpacked / "photos" / f"{i:05}.jpg").write_bytes(source[i].image)
    return {"vit_jax packed": str(packed), "tf.data packed": str(unpacked)}


def files(folder: str) -> list[str]:
    """Returns the JPEGs of a folder of classes, FOLDER/<class>/*.jpg."""
    return sorted(glob.glob(f"{glob.escape(folder)}/*/*.jpg"))


# ----------------------------------------------------------------------------------- contenders


def of_vit_jax(args: argparse.Namespace) -> Callable[[], Iterator[np.ndarray]]:
    """Returns a function that starts vit_jax's pipeline: batches of images (b, h, w, 3)."""
    import jax

    from vit_jax.config.defaults import default
    from vit_jax.data import pipeline, sources
    from vit_jax.models.patches import to_float

    jax.config.update("jax_platforms", "cpu")
    options = default().data
    options.image_size, options.crop_area = args.image_size, AREA[0]
    options.threads, options.prefetch = args.threads, args.prefetch
    dataset = sources.open_dataset(str(pathlib.Path(args.photos).resolve()))
    _, source = sources.open_source(dataset, "train", "+".join(dataset.splits))
    to_float = jax.jit(to_float)

    def start():
        batches = pipeline.train_batches(
            source, options, num_classes=len(dataset.class_names), batch_size=args.batch, seed=0
        )
        try:
            for batch in batches:
                if args.contender.endswith("float32"):
                    yield to_float(batch["image"]).block_until_ready()
                else:
                    yield batch["image"]
        finally:
            batches.close()

    return start


def of_tf_data(args: argparse.Namespace) -> Callable[[], Iterator[np.ndarray]]:
    """Returns a function that starts tf.data's pipeline: batches of images (b, h, w, 3)."""
    import tensorflow as tf

    paths = files(args.photos)
    size = [args.image_size] * 2

    def example(path, label):
        data = tf.io.read_file(path)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros([1, 0, 4]),
            area_range=AREA,
            aspect_ratio_range=ASPECT,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], extent[:2]], 0)
        image = tf.image.resize(tf.io.decode_and_crop_jpeg(data, window, channels=3), size)
        image = tf.image.random_flip_left_right(image)
        if args.contender.endswith("float32"):
            image = image / 127.5 - 1
        else:
            image = tf.cast(image, tf.uint8)
        return {"image": image, "label": label, "mask": True}

    labels = np.zeros(len(paths), np.int32)
    dataset = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths)).repeat()
    dataset = dataset.map(example, tf.data.AUTOTUNE)
    dataset = dataset.batch(args.batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    return lambda: (batch["image"] for batch in dataset.as_numpy_iterator())


def work(args: argparse.Namespace) -> None:
    """Measures when asked."""
    start = (of_vit_jax if args.contender.startswith("vit_jax") else of_tf_data)(args)
    processor = 0.0

    def speed(seconds):
        nonlocal processor
        if not seconds:
            return processor
        batches = start()
        # In the warm-up, buffers fill and AUTOTUNE finds its settings.
        count_batches(batches, seconds / 2)
        before = time.process_time()
        count, took = count_batches(batches, seconds)
        processor = 1000 * (time.process_time() - before) / (args.batch * (count + 1))
        batches.close()
        return args.batch * count / took

    machine.answer(speed)


def count_batches(batches: Iterator[np.ndarray], seconds: float) -> tuple[int, float]:
    """Takes batches for about that many seconds; returns their number and the exact seconds."""
    next(batches)
    count, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < seconds or not count:
        next(batches)
        count += 1
    return count, took


def contender(name: str, args: argparse.Namespace) -> machine.Contender:
    """Starts a contender: asked to run for some seconds, it answers with its images/s.

    Asked for none, it answers with the processor time of an image in its last turn, in ms.
    """
    python = args.tf_python if name.startswith("tf.data") else sys.executable
    command = [
        python,
        "-m",
        "benchmarks.input_pipeline",
        f"--contender={name}",
        f"--photos={args.folders.get(name, args.photos)}",
        f"--batch={args.batch}",
        f"--image_size={args.image_size}",
        f"--threads={args.threads}",
        f"--prefetch={args.prefetch}",
    ]
    return machine.Contender(name, command)


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row for each contender: images/s, and vit_jax's speed relative to it."""
    contenders = [contender(name, args) for name in args.contenders]
    try:
        for c in contenders:
            c.ask(args.seconds / 4)
        turns = [[(c.ask(args.seconds), c.ask(0)) for c in contenders] for _ in range(args.rounds)]
    finally:
        for c in contenders:
            c.close()
    speeds, times = np.moveaxis(turns, 2, 0)
    first = args.contenders.index("vit_jax") if "vit_jax" in args.contenders else 0

    def ratio(i):
        return machine.median(turn[first] / turn[i] for turn in speeds)

    return [
        {
            "contender": name,
            "images/s": machine.median(turn[i] for turn in speeds),
            "slowest": min(turn[i] for turn in speeds),
            "fastest": max(turn[i] for turn in speeds),
            "processor ms/image": machine.median(turn[i] for turn in times),
            f"{args.contenders[first]} is": f"{ratio(i):.2f}x",
        }
        for i, name in enumerate(args.contenders)
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m benchmarks.input_pipeline`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input_pipeline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--photos", help="folder of JPEGs, <class>/*.jpg, instead of drawn ones")
    parser.add_argument("--count", type=int, default=512, help="JPEGs to draw")
    parser.add_argument("--copies", type=int, default=1, help="files of each drawn JPEG")
    parser.add_argument("--height", type=int, default=375, help="pixels of a drawn JPEG")
    parser.add_argument("--width", type=int, default=500, help="pixels of a drawn JPEG")
    parser.add_argument("--side", type=int, default=256, help="pixels of packed JPEGs")
    parser.add_argument("--quality", type=int, default=85, help="of packed JPEGs")
    parser.add_argument("--batch", type=int, default=64, help="images")
    parser.add_argument("--image_size", type=int, default=224, help="pixels")
    parser.add_argument("--threads", type=int, default=2, help="vit_jax's data.threads")
    parser.add_argument("--prefetch", type=int, default=4, help="vit_jax's data.prefetch")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contender")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a turn, without its warm-up")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--tf_python", default=sys.executable, help="interpreter with tensorflow")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.contender:
        return work(args)
    with tempfile.TemporaryDirectory() as folder:
        if not args.photos:
            drawn = pathlib.Path(folder) / "drawn"
            draw(drawn, args.count, args.height, args.width, args.copies)
            args.photos = str(drawn)
        needs_packed = any(name.endswith("packed") for name in args.contenders)
        args.folders = pack(pathlib.Path(folder), args) if needs_packed else {}
        sizes = [pathlib.Path(path).stat().st_size / 1000 for path in files(args.photos)]
        rows = compare(args)
    about = machine.description("grain", "simplejpeg")
    if any(name.startswith("tf.data") for name in args.contenders):
        code = "from importlib import metadata; print(metadata.version('tensorflow-cpu'))"
        found = subprocess.run([args.tf_python, "-c", code], capture_output=True, text=True)
        about["tensorflow-cpu"] = found.stdout.strip()
    about |= {"files": len(sizes), "median_kb": round(machine.median(sizes))}
    if needs_packed:
        about |= {"side": args.side, "quality": args.quality}
    about |= {k: getattr(args, k) for k in ("batch", "image_size", "threads", "prefetch", "rounds")}
    machine.report("Input pipeline", rows, about, args.json)


if __name__ == "__main__":
    main()
