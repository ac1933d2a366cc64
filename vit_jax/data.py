"""A tfds data set or a folder of images, as shuffled, sharded, resumable batches of uint8 images.

A data set is opened by name (`open_dataset`), a split of it gives a `Source` of encoded examples
by number, and `train_batches` and `eval_batches` turn a source into dictionaries of NumPy arrays:
`image` uint8 (b, h, w, 3), `label` int32 (b,), `mask` bool (b,): False for an example that only
fills up the last batch of an evaluation. Scaling to [-1, 1] is left to the device.

`python -m vit_jax.data prepare NAME` downloads and prepares a tfds data set ahead of a run,
`python -m vit_jax.data convert DIR` turns TFRecord-prepared data into array_record files. Neither
needs TensorFlow, but for the stock tfds builders that do.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from vit_jax import preprocess
from vit_jax.datasets import prepare

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
SPLIT_FOLDERS = ("train", "val", "validation", "test")
Batch = dict[str, np.ndarray]
_FOLDER_SEED = 0  # of the order inside a folder, which decides what `train[:85%]` holds


class Example(NamedTuple):
    """One encoded example: the file's bytes, its class, and a name for error messages."""

    image: bytes
    label: int
    id: str


class Source(Protocol):
    """A sequence of `Example`s with random access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class Dataset(Protocol):
    """What `open_dataset` returns: names of the classes, sizes of the splits, and the splits."""

    class_names: tuple[str, ...]
    splits: Mapping[str, int]

    def source(self, split: str) -> Source: ...


class _FolderSource:
    def __init__(self, files: Sequence[tuple[pathlib.Path, int]]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Example:
        path, label = self._files[index]
        return Example(path.read_bytes(), label, str(path))


class FolderDataset:
    """Images in `<class>/*` (one split, "train") or `train|val|test/<class>/*`.

    The order inside a split is a fixed permutation in which every slice holds all classes in
    their proportions, so that `train[:85%]` and `train[85%:]` are a stratified partition.

    Raises:
      FileNotFoundError: there is no such folder, or there are no images in it.
    """

    def __init__(self, folder: str | pathlib.Path):
        root = pathlib.Path(folder).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(f"There is no folder {str(folder)!r} to read images from.")
        split_folders = [root / name for name in SPLIT_FOLDERS if (root / name).is_dir()]
        classes = {d.name for s in split_folders or [root] for d in s.iterdir() if d.is_dir()}
        self.class_names = tuple(sorted(name for name in classes if not name.startswith(".")))
        self._files = {
            split.name if split_folders else "train": self._stratified(split)
            for split in split_folders or [root]
        }
        self.splits = {split: len(files) for split, files in self._files.items()}
        if not sum(self.splits.values()):
            raise FileNotFoundError(
                f"There are no images in {root}: expected <class>/* or train|val|test/<class>/* "
                f"with files named {', '.join(IMAGE_SUFFIXES)}."
            )

    def _stratified(self, folder: pathlib.Path) -> list[tuple[pathlib.Path, int]]:
        rng = np.random.Generator(np.random.Philox(_FOLDER_SEED))
        ranked = []
        for label, name in enumerate(self.class_names):
            files = [p for p in (folder / name).glob("*") if p.suffix.lower() in IMAGE_SUFFIXES]
            files.sort()
            shuffled = [files[i] for i in rng.permutation(len(files))]
            ranked += [((i + 0.5) / len(files), label, path) for i, path in enumerate(shuffled)]
        return [(path, label) for _, label, path in sorted(ranked)]

    def source(self, split: str) -> Source:
        """Returns the examples of a split such as `train[:85%]` or `train+val`."""
        infos = [tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0)
                 for name, n in self.splits.items()]
        parts = parse_split(split).to_absolute(tfds.core.splits.SplitDict(infos))
        return _FolderSource([x for p in parts for x in self._files[p.splitname][p.from_ : p.to]])


class _TfdsSource:
    def __init__(self, records: Sequence[Mapping[str, Any]], keys: tuple[str, str], name: str):
        self._records, (self._image, self._label), self._name = records, keys, name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        return Example(record[self._image], int(record[self._label]), f"{self._name} #{index}")


class TfdsDataset:
    """A tfds data set of images and class labels, prepared first where it is not yet.

    Raises:
      ValueError: it is not a set of images with one class label each.
      Exception: what `prepare.open_builder` raises.
    """

    def __init__(self, name: str, data_dir: str | None = None):
        self._builder = prepare.open_builder(name, data_dir)
        info = self._builder.info
        self._keys = info.supervised_keys or ("image", "label")
        image, label = (dict(info.features).get(key) for key in self._keys)
        if not isinstance(image, tfds.features.Image) or not hasattr(label, "names"):
            raise ValueError(
                f"The tfds data set {name} can't be used for classification: it has the features "
                f"{', '.join(info.features)}, and an image with one class label is needed."
            )
        self.class_names = tuple(label.names)
        self.splits = {split: info.splits[split].num_examples for split in info.splits}

    def source(self, split: str) -> Source:
        """Returns the examples of a split such as `train[:85%]` or `train+validation`."""
        decoders = {self._keys[0]: tfds.decode.SkipDecoding()}
        parse_split(split)
        records = self._builder.as_data_source(split, decoders=decoders)
        return _TfdsSource(records, self._keys, f"{self._builder.info.full_name} {split}")


def open_dataset(name: str, data_dir: str | None = None) -> Dataset:
    """Opens a folder of images or a tfds data set.

    Args:
      name: a folder (any existing one, or what starts with "/", "." or "~"), else the name of a
        tfds data set, such as `tf_flowers` or `name/config`.
      data_dir: where tfds keeps prepared data; None for its default, ~/tensorflow_datasets.

    Raises:
      FileNotFoundError: no such folder, or no images in it.
      ValueError: no such data set, or not one of images and labels.
    """
    if name.startswith(("/", ".", "~")) or pathlib.Path(name).is_dir():
        return FolderDataset(name)
    return TfdsDataset(name, data_dir)


def parse_split(split: str) -> tfds.core.ReadInstruction:
    """Parses tfds's split syntax: "train", "train[:85%]", "train[:800]+validation".

    Raises:
      ValueError: the syntax is wrong; the message gives examples.
    """
    try:
        return tfds.core.ReadInstruction.from_spec(split)
    except (ValueError, AssertionError) as error:
        raise ValueError(
            f"{split!r} is not a split: write one like 'train', 'train[:85%]', "
            f"'train[800:1000]' or 'train+validation'."
        ) from error


def default_splits(splits: Iterable[str]) -> tuple[str, str]:
    """Returns the (train, test) splits to use where the configuration names none.

    The data set's own test split where it has one, else its validation split, else the last 15 %
    of train.
    """
    held_out = [name for name in ("test", "validation", "val") if name in splits]
    return ("train", held_out[0]) if held_out else ("train[:85%]", "train[85%:]")


def image_shape(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Returns (height, width) in pixels for a `config.data.image_size`: a side, or both."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return height, width


def train_batches(
    source: Source,
    options: ConfigDict,
    *,
    num_classes: int,
    batch_size: int,
    seed: int,
    process: int = 0,
    processes: int = 1,
) -> grain.DatasetIterator:
    """Returns an endless iterator of training batches whose position Orbax can save.

    All processes go through one global order, reshuffled every epoch; process p takes examples
    p, p + processes, … of it, so the batches of two processes interleave to that of one. Each
    example's random numbers depend on (seed, position in the order) alone.

    Args:
      source: the examples.
      options: `config.data`: sizes, crops, threads.
      num_classes: labels must be below it.
      batch_size: examples a batch of this process.
      seed: of order and augmentation.
      process, processes: which of how many processes this is.

    Raises (when iterated):
      ValueError: an image can't be decoded or a label is out of range; it is named.
    """
    size = image_shape(options.image_size)

    def augment(tagged: tuple[int, Example]) -> np.ndarray:
        index, example = tagged
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
        image = _decode(example)
        if options.crop == "inception":
            image = preprocess.inception_crop(image, size, rng, area=(options.crop_area, 1.0))
        else:
            image = preprocess.resize_and_random_crop(image, size, rng, options.crop_fraction)
        return preprocess.random_flip(image, rng) if options.flip else image

    def batch(tagged: list[tuple[int, Example]]) -> Batch:
        images = [augment(t) for t in tagged]
        return _collate(images, [example for _, example in tagged], num_classes, batch_size, size)

    order = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    order = order.map_with_index(lambda index, example: (index, example))
    parts = order[process::processes].batch(batch_size, drop_remainder=True, batch_fn=list)
    return iter(parts.map(batch).to_iter_dataset(_read_options(options)))


def eval_batches(
    source: Source,
    options: ConfigDict,
    *,
    num_classes: int,
    batch_size: int,
    process: int = 0,
    processes: int = 1,
) -> Iterable[Batch]:
    """Returns an iterable of batches that hold every example exactly once over all processes.

    Every process gets the same number of batches of the same size: what is missing in the last
    ones is filled up with black images whose mask is False. Arguments and errors are those of
    `train_batches`.
    """
    size = image_shape(options.image_size)

    def batch(indices: np.ndarray) -> Batch:
        examples = [source[i] for i in indices if i < len(source)]
        images = [preprocess.central_crop(_decode(example), size, options.crop_fraction)
                  for example in examples]
        return _collate(images, examples, num_classes, batch_size, size)

    steps = -(-len(source) // (batch_size * processes))
    indices = grain.MapDataset.range(steps * batch_size * processes)
    batches = indices[process::processes].batch(batch_size).map(batch)
    return batches.to_iter_dataset(_read_options(options))


def _read_options(options: ConfigDict) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=options.threads, prefetch_buffer_size=options.prefetch)


def _decode(example: Example) -> np.ndarray:
    try:
        return preprocess.decode(example.image)
    except ValueError as error:
        raise ValueError(f"{example.id}: {error}") from error


def _collate(
    images: list[np.ndarray],
    examples: list[Example],
    num_classes: int,
    batch_size: int,
    size: tuple[int, int],
) -> Batch:
    batch = {
        "image": np.zeros((batch_size, *size, 3), np.uint8),
        "label": np.zeros(batch_size, np.int32),
        "mask": np.arange(batch_size) < len(examples),
    }
    for i, (image, example) in enumerate(zip(images, examples, strict=True)):
        if not 0 <= example.label < num_classes:
            raise ValueError(
                f"{example.id} has the label {example.label}, but there are {num_classes} classes "
                f"counted from 0: a split without labels can't be trained or evaluated on."
            )
        batch["image"][i], batch["label"][i] = image, example.label
    return batch


def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m vit_jax.data`."""
    parser = argparse.ArgumentParser(prog="python -m vit_jax.data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="download and prepare a tfds data set")
    preparing.add_argument("name", help="tfds name, such as tf_flowers")
    preparing.add_argument("--data_dir", help="default: tfds's own, ~/tensorflow_datasets")
    converting = commands.add_parser("convert", help="TFRecord-prepared data to array_record files")
    converting.add_argument("directory", help="the folder that holds dataset_info.json")
    args = parser.parse_args(argv)
    if args.command == "prepare":
        prepare.prepare(args.name, args.data_dir)
    else:
        print(prepare.convert(args.directory))


if __name__ == "__main__":
    main()
