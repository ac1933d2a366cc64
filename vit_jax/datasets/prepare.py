"""tfds data without TensorFlow: opened, prepared, and converted from TFRecord files.

tfds keeps a prepared data set in DATA_DIR/NAME[/CONFIG]/VERSION: dataset_info.json, features.json
and record files (https://www.tensorflow.org/datasets/external_tfrecord). Ours are array_record
(https://github.com/google/array_record), with `group_size:1` as tfds writes them: each record is
read without its neighbours.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import pathlib
import urllib.error

import grain
import requests
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core import naming, read_only_builder
from tensorflow_datasets.core.download import download_manager, downloader
from tqdm import tqdm

from vit_jax.datasets.rendered_flowers import RenderedFlowers
from vit_jax.datasets.tf_flowers import TfFlowers

_OWN = {cls.name: cls for cls in (RenderedFlowers, TfFlowers)}
_INFO, _FEATURES = "dataset_info.json", "features.json"
_ARRAY_RECORD, _TFRECORD = "array_record", "tfrecord"
_DOWNLOAD_ERRORS = (requests.RequestException, urllib.error.URLError, tfds.download.DownloadError,
                    download_manager.NonMatchingChecksumError)


class DataError(ValueError):
    """A data set is unknown, or not in a state to be read."""


def open_builder(name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Returns a data set that is ready to be read, preparing it first where nothing is prepared.

    Args:
      name: a tfds name: NAME, NAME/CONFIG, NAME:VERSION. Without a version it is the newest that
        is there, but for `rendered_flowers` and `tf_flowers` the one this package prepares.
      data_dir: tfds's folder; None for its default, $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Returns:
      A builder of array_record files, for `as_data_source`.

    Raises:
      DataError: there is no such data set, version or config, or it is in another format.
      FileNotFoundError: files are missing, or have to be downloaded by hand first.
      ImportError: preparing it needs TensorFlow.
      ConnectionError: it could not be downloaded.
    """
    parsed, options = _parse(name)
    if parsed in _OWN:
        options.setdefault("version", str(_OWN[parsed].VERSION))
    try:
        found = read_only_builder.builder_from_files(parsed, data_dir=_root(data_dir), **options)
    except tfds.core.DatasetNotFoundError:
        return prepare(name, data_dir)
    return _open(found.data_path)


def prepare(name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Downloads and prepares a data set as array_record files, showing tfds's progress bars.

    Where its newest version is there already, it is used as it is.

    Args, result and errors: as `open_builder`.
    """
    builder = _builder(name, _root(data_dir))
    if not builder.data_path.exists():
        _generate(builder, name, data_dir)
    return _open(builder.data_path)


def _generate(builder: tfds.core.DatasetBuilder, name: str, data_dir: str | None) -> None:
    root = _root(data_dir)
    there = _there(root, builder.name)
    command = f"`python -m vit_jax.data prepare {name}{f' --data_dir {root}' if data_dir else ''}`"
    of_tfds = type(builder).__module__.startswith("tensorflow_datasets.")
    if of_tfds and importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            f"{there}, and tfds's own code needs TensorFlow to prepare {name}, though not to read "
            f"it: run `pip install -e \".[prepare]\"` (tensorflow-cpu), then {command}, here or on "
            f"another machine. The folder to be read is {builder.data_path}."
        )
    manual = root / "downloads" / "manual"
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS and not (manual.exists() and any(manual.iterdir())):
        raise FileNotFoundError(
            f"{there}, and {name} has to be downloaded by hand into {manual}; then run {command}. "
            f"tfds says: {_line(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)}"
        )
    downloader.MAX_RETRIES = 4  # 3 s in all; tfds's 10 wait for a missing network for 3 minutes
    try:
        builder.download_and_prepare(file_format=_ARRAY_RECORD)
    except _DOWNLOAD_ERRORS as error:
        url = getattr(getattr(error, "request", None), "url", "")
        raise ConnectionError(
            f"{there}, and downloading {name} failed. Run {command} where there is a network, or "
            f"copy data prepared on another machine to {builder.data_path}, the folder to be read. "
            f"The cause: {url} {_line(error)}"
        ) from error
    except OSError:
        if not builder.data_path.exists():  # else another process was faster
            raise


def _builder(name: str, root: epath.Path) -> tfds.core.DatasetBuilder:
    """Returns the builder that prepares the data set, in tfds's code or ours."""
    parsed, options = _parse(name)
    there = _there(root, parsed)
    try:
        cls = _OWN.get(parsed) or tfds.builder_cls(parsed)
    except tfds.core.DatasetNotFoundError:
        known = {*_OWN, *tfds.list_builders(with_community_datasets=False)}
        close = ", ".join(difflib.get_close_matches(name.lower(), known)) or "none"
        raise DataError(
            f"tfds knows no data set {name!r} (close names: {close}), and {there}."
        ) from None
    try:
        return cls(data_dir=root, **options)
    except (AssertionError, ValueError) as error:  # tfds has no such version or config
        configs = ", ".join([*cls.builder_configs][:9])
        raise DataError(
            f"{there}, and tfds can't prepare {name}: {_line(error).split('. ')[0].rstrip('.')}."
            + (f" Some of its configs: {configs}." if configs else "")
        ) from error


def _open(folder: epath.Path) -> tfds.core.DatasetBuilder:
    builder, formats = _read(folder)
    if _ARRAY_RECORD not in formats:
        remedy = (f"run `python -m vit_jax.data convert {folder}` once" if _TFRECORD in formats
                  else "prepare it in another folder")
        raise DataError(
            f"{builder.info.full_name} in {folder} is prepared as {' and '.join(formats)} files, "
            f"but only array_record files are read at random without TensorFlow: {remedy}."
        )
    return builder


def _read(folder: epath.Path) -> tuple[tfds.core.DatasetBuilder, list[str]]:
    """Returns a builder of whole data, of array_record files if there are any, and the formats."""
    present = {path.name for path in folder.iterdir()}
    missing = [name for name in (_INFO, _FEATURES) if name not in present]
    if not missing:
        builder = tfds.builder_from_directory(folder)
        formats = sorted(f.value for f in builder.info.available_file_formats())
        if _ARRAY_RECORD in formats:
            builder.info.set_file_format(_ARRAY_RECORD, True, override_if_initialized=True)
        files = [path.name for split in builder.info.splits.values() for path in split.filepaths]
        missing = [name for name in files if name not in present]
    if missing:
        raise FileNotFoundError(
            f"The data set in {folder} is not whole: it lacks {len(missing)} of its files, such as "
            f"{missing[0]}. Copy it again, or delete the folder to have it prepared anew."
        )
    return builder, formats


def convert(directory: str | os.PathLike) -> pathlib.Path:
    """Copies the records of a TFRecord-prepared data set into array_record files beside them.

    The same records in the same order. The TFRecord files stay; dataset_info.json changes last, so
    that an interrupted conversion has changed nothing and is just started again.

    Args:
      directory: the version's folder, with dataset_info.json, or one above it that holds just one.

    Returns:
      The version's folder.

    Raises:
      FileNotFoundError: there is no prepared data set, or files of it are missing.
      DataError: there are several, or it is of a third format, or a file is damaged or holds
        another number of records than dataset_info.json says.
    """
    folder = _version_folder(pathlib.Path(directory).expanduser())
    builder, formats = _read(epath.Path(folder))
    if _ARRAY_RECORD in formats:
        print(f"{builder.info.full_name} in {folder} has array_record files already.")
        return folder
    if _TFRECORD not in formats:
        raise DataError(f"{folder} holds {' and '.join(formats)} files, and not TFRecord files.")
    info = json.loads((folder / _INFO).read_text())
    for split in info["splits"]:
        counts = [int(count) for count in split.get("shardLengths", ())]
        stem = f"{info['name']}-{split['name']}"
        with tqdm(total=sum(counts), desc=stem, unit=" records") as bar:
            for shard, source in enumerate(builder.info.splits[split["name"]].filepaths):
                target = f"{stem}.{_ARRAY_RECORD}-{shard:05d}-of-{len(counts):05d}"
                _copy_records(source, folder / target, counts[shard], bar)
        split["filepathTemplate"] = naming.DEFAULT_FILENAME_TEMPLATE
    partial = _partial(folder / _INFO)
    partial.write_text(json.dumps(info | {"fileFormat": _ARRAY_RECORD}, indent=2))
    partial.replace(folder / _INFO)
    return folder


def _version_folder(directory: pathlib.Path) -> pathlib.Path:
    levels = ("", "*/", "*/*/", "*/*/*/")  # of DATA_DIR/NAME/CONFIG/VERSION
    found = sorted(path.parent for level in levels for path in directory.glob(level + _INFO))
    if not found:
        raise FileNotFoundError(f"There is no {_INFO} in {directory}: it holds no tfds data.")
    if len(found) > 1:
        raise DataError(f"{directory} holds several data sets; choose one: "
                        + ", ".join(map(str, found)))
    return found[0]


def _copy_records(source: os.PathLike, target: pathlib.Path, count: int, bar: tqdm) -> None:
    partial = _partial(target)
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    try:
        for record in grain.experimental.TFRecordIterDataset(str(source)):
            writer.write(record)
            bar.update()
    except (ValueError, OverflowError, MemoryError):  # a length that the file can't hold
        raise DataError(f"{source} is cut off or damaged: copy or prepare it again.") from None
    finally:
        writer.close()
    copied = ArrayRecordReader(str(partial)).num_records()
    if copied != count:
        raise DataError(f"{source} holds {copied} records, but {_INFO} beside it says {count}: one "
                        f"of them is not of this data set.")
    partial.replace(target)


def _partial(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(tfds.core.constants.INCOMPLETE_PREFIX + path.name)


def _parse(name: str) -> tuple[str, dict]:
    try:
        parsed, options = naming.parse_builder_name_kwargs(name)
    except ValueError:
        parsed = None
    if parsed is None or parsed.namespace:
        raise DataError(f"{name!r} is no tfds name: write NAME, NAME/CONFIG or NAME:VERSION.")
    return parsed.name, options


def _root(data_dir: str | None) -> epath.Path:
    return epath.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()


def _there(root: epath.Path, name: str) -> str:
    """Says which versions of the data set are prepared in tfds's folder."""
    found = [path.parent for level in ("*/", "*/*/") for path in (root / name).glob(level + _INFO)]
    names = sorted(f"{folder.parent.relative_to(root)}:{folder.name}" for folder in found)
    return f"{root} holds {', '.join(names) or f'nothing of {name}'}"


def _line(text: object) -> str:
    return " ".join(str(text).split())
