"""Packs a data set into array_record files of small JPEGs, which are quick to read in any order.

The result is a folder in the format of a prepared tfds data set, with a file `PACK_FILE` beside
that says how it was made (https://www.tensorflow.org/datasets/external_tfrecord).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from vit_jax.common.bars import progress_bar
from vit_jax.common.files import cannot_write, local_path, replacing, write_file
from vit_jax.common.host import available_cpus
from vit_jax.common.messages import first_few
from vit_jax.common.names import printable, to_json
from vit_jax.config.keys import comparable_name, is_folder
from vit_jax.data.builders.record_files import PACK_FILE, DataError, count_records, system_errors
from vit_jax.data.dataset import Dataset, ReadError, Source, is_multi_label
from vit_jax.data.fingerprint import fingerprint
from vit_jax.data.packed_records import PackOptions, record_encoder, record_features
from vit_jax.data.parquet import ParquetSource
from vit_jax.data.read_ahead import spread
from vit_jax.data.skipped import SkippedImages
from vit_jax.data.sources import open_dataset
from vit_jax.data.splits import default_splits, own_test_split

logger = logging.getLogger(__name__)

_NAME, _VERSION, _FORMAT = "packed", "1.0.0", "array_record"  # in the names of tfds
_IMAGES_OF_FILE, _MOST_FILES = 2048, 512  # of a split; one process can't open very many files
_SEED = 0  # of the order


def pack(
    name: str,
    out: str | pathlib.Path,
    options: PackOptions,
    data_dir: str | None = None,
) -> pathlib.Path:
    """Packs a data set into a folder, which `open_dataset` opens, and returns the folder.

    Images are upright, shrunk with antialiasing, and never enlarged. Splits, classes and labels are
    those of the data set. If it has no split to test on, the images that a run holds out of "train"
    become the split "test": a run on the folder trains and tests on the same images.

    The images of a split are in a random order, which is always the same. Rows of Parquet files
    that are read slowly at random are mixed within what fits into memory, see
    `ParquetSource.shuffled`.

    The same call goes on after one that was ended at any moment: files that are finished are kept,
    and the result has the same bytes.

    Args:
      name, data_dir: of the data set, see `open_dataset`.
      out: the folder. It must be new or empty, or of the same call, and lie outside the data set.
      options: how images are packed.

    Raises:
      ValueError: the folder holds something else or lies in the data set, an image can't be used,
        the name of a class can't be stored, or an option is out of range.
      OSError: the folder can't be written, as on a full disk, or an image can't be read.
      As `open_dataset`.
    """
    options.check()
    folder = local_path(out)
    if is_folder(name) and folder.resolve().is_relative_to(local_path(name).resolve()):
        raise ValueError(
            f"{printable(folder)} lies in {printable(name)}, whose images are to be packed, and "
            f"would be a part of them: name a folder beside it."
        )
    dataset = open_dataset(name, data_dir)
    _check_class_names(dataset)
    splits = _choose_splits(dataset)
    sources = {split: dataset.source(text) for split, text in splits.items()}
    skipped = SkippedImages()
    plan = _describe(comparable_name(name), dataset, splits, options)
    total = sum(map(len, sources.values()))
    try:
        with _claim(folder, plan), progress_bar(total=total, desc="packing", unit=" images") as bar:
            infos = []
            features = record_features(dataset, several=any(map(is_multi_label, sources.values())))
            for split, source in sources.items():
                encode = record_encoder(dataset, source, features, options, skipped)
                infos.append(_write_split(folder, split, source, encode, skipped, bar))
            _write_info(folder, features, infos, plan)
    except (ReadError, FileNotFoundError):
        raise
    except OSError as error:
        raise OSError(
            f"{cannot_write(folder, error)} Files that are finished stay: when that is mended, "
            f"start the same command again."
        ) from error
    for info in infos:
        logger.info(
            "%s: %d images (%s of %s), files: %d, %.3g MB",
            *(info.name, info.num_examples, splits[info.name], printable(name)),
            *(info.num_shards, info.num_bytes / 1e6),
        )
    if left_out := total - sum(info.num_examples for info in infos):
        logger.warning("%d of %d images can't be used, and are left out.", left_out, total)
    return folder


def _check_class_names(dataset: Dataset) -> None:
    """Raises ValueError for a name that tfds would change: its file has a line a name."""
    changed = [x for x in dataset.class_names if x != x.strip() or len(x.splitlines()) != 1]
    if changed:
        raise ValueError(
            f"{len(changed)} classes of {printable(dataset.name)} have names that can't be packed: "
            f"{first_few(map(repr, changed))}. They begin or end with a space, are empty or hold a "
            f"newline: give them other names."
        )


def _choose_splits(dataset: Dataset) -> dict[str, str]:
    """Returns the split of the data set that each split of the result has."""
    splits = {name: name for name, count in dataset.splits.items() if count}
    if "train" in splits and own_test_split(splits) is None:
        train, test = default_splits(splits)
        if len(dataset.source(train)) and len(dataset.source(test)):
            splits |= {"train": train, "test": test}
    return splits


def _describe(
    name: str, dataset: Dataset, splits: Mapping[str, str], options: PackOptions
) -> dict[str, Any]:
    """Returns what `PACK_FILE` says: all that decides which images are packed, and how."""
    everything = "+".join(splits.values())
    found = fingerprint(dataset, labels=True, all=(everything, dataset.source(everything)))
    images = (found.splits or {})["all"]
    return {
        "source": name,
        "side": options.side,
        "quality": options.quality,
        "background": list(options.background),
        "classes": list(found.class_names),
        "splits": dict(splits),
        "images": images["images"],
        "images_hash": images["ids"],
    }


@contextlib.contextmanager
def _claim(folder: pathlib.Path, plan: Mapping[str, Any]) -> Iterator[None]:
    """Makes the folder with its `PACK_FILE`, or finds it as it is; keeps other processes out.

    Raises:
      ValueError: the folder holds something else, or another process packs into it.
    """
    file = folder / PACK_FILE
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{printable(folder)} is a file: name a folder that is new or empty.")
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if not file.exists():
            if any(not x.name.startswith(".partial-") for x in folder.iterdir()):
                raise ValueError(
                    f"{printable(folder)} holds something that isn't packed images: name a folder "
                    f"that is new or empty."
                )
            write_file(file, to_json(plan))
        try:
            old = dict(json.loads(file.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{printable(file)} is damaged: delete its folder, and start again."
            ) from error
        new = json.loads(to_json(plan))
        differences = [
            f"{key} was {_short(old.get(key))}, is {_short(new[key])}"
            for key in new
            if old.get(key) != new[key]
        ]
        if differences:
            raise ValueError(
                f"{printable(folder)} was packed from other images or in another way "
                f"({'; '.join(differences)}): name another folder, or delete this one."
            )
        yield


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of a folder; raises ValueError if one is there."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise ValueError(f"Another process packs into {printable(folder)}.") from None
    except OSError:  # some network file systems have no locks
        pass
    try:
        yield
    finally:
        os.close(opened)


def _short(value: Any) -> str:
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 200 else f"{text[:200]}…"


# ---------------------------------------------------------------------------------- files


def _write_split(
    folder: pathlib.Path,
    name: str,
    source: Source,
    encode: Callable[[int], bytes | None],
    skipped: SkippedImages,
    bar: tqdm,
) -> tfds.core.SplitInfo:
    """Writes the files of a split that are not finished yet, and returns what tfds says of all.

    Args:
      folder: where they are written.
      name: of the split.
      source: its examples.
      encode: from the index of an example to its record.
      skipped: what `encode` gives the images to that it leaves out.
      bar: counts the examples.

    Raises:
      ValueError: none of the images can be used.
    """
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=_NAME, split=name, filetype_suffix=_FORMAT
    )
    rng = np.random.Generator(np.random.Philox(_SEED))
    if isinstance(source, ParquetSource):
        order = source.shuffled(rng)
    else:
        order = rng.permutation(len(source))
    records = spread(grain.MapDataset.source(order).map(encode), len(available_cpus()), skipped)
    files = min(_MOST_FILES, -(-len(order) // _IMAGES_OF_FILE))
    lengths, size = [], 0
    for path, part in zip(
        template.sharded_filepaths(files), np.array_split(range(len(order)), files), strict=True
    ):
        lengths.append(_write_file(pathlib.Path(path), records[part[0] : part[-1] + 1], bar))
        size += path.stat().length
    if not sum(lengths):
        raise ValueError(f"None of the {len(order)} images of {name} can be used.")
    return tfds.core.SplitInfo(
        name=name, shard_lengths=lengths, num_bytes=size, filename_template=template
    )


def _write_file(path: pathlib.Path, records: grain.MapDataset, bar: tqdm) -> int:
    """Writes an array_record file, unless it is finished; returns the number of its records."""
    if path.exists():
        with contextlib.suppress(DataError):  # one that is damaged is written anew
            count = count_records(path)
            bar.update(len(records))
            return count
    threads = len(available_cpus())
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16 * threads)
    count = 0
    with replacing(path) as partial, system_errors():
        # JPEG files can't be compressed any further.
        writing = ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        with contextlib.closing(writing) as writer:
            for record in records.to_iter_dataset(reading):  # those that are None are left out
                writer.write(record)
                bar.update()
                count += 1
    bar.update(len(records) - count)
    return count


def _write_info(
    folder: pathlib.Path,
    features: tfds.features.FeaturesDict,
    splits: Sequence[tfds.core.SplitInfo],
    plan: Mapping[str, Any],
) -> None:
    """Writes the JSON files of tfds. The data set's config tells it from others."""
    content = {**plan, "source": "", "lengths": [x.shard_lengths for x in splits]}
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=_NAME,
            version=tfds.core.Version(_VERSION),
            data_dir=str(folder),
            module_name="",
            config_name=hashlib.blake2b(to_json(content).encode(), digest_size=8).hexdigest(),
        ),
        description=(
            f"Images of {plan['source']}, upright. Their shorter sides are at most {plan['side']} "
            f"pixels. They are JPEG files of quality {plan['quality']} with chroma at half of the "
            f"rows and columns. Transparent pixels were laid over RGB {plan['background']}."
        ),
        features=features,
        supervised_keys=("image", "label"),
        split_dict=tfds.core.SplitDict(splits),
    )
    info.set_file_format(_FORMAT)
    info.write_to_directory(folder)
