"""tfds data sets without TensorFlow: opened, prepared, and converted from TFRecord files.

A data set is in DATA_DIR/NAME[/CONFIG]/VERSION (https://www.tensorflow.org/datasets/external_tfrecord).
Its array_record files (https://github.com/google/array_record) have `group_size:1`, which makes
single records quick to read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
from importlib.util import find_spec
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath
from requests import RequestException
from tensorflow_datasets.core import naming, read_only_builder
from tensorflow_datasets.core.download import downloader
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tqdm import tqdm

from vit_jax.common.bars import progress_bar
from vit_jax.common.files import (
    FULL_DISK,
    absolute,
    cannot_write,
    folders_beside,
    is_bucket,
    local_path,
    no_empty_folders,
    replacing,
    write_file,
)
from vit_jax.common.messages import closest, first_few
from vit_jax.common.repository import install_command
from vit_jax.config.keys import is_folder
from vit_jax.data.builders.cifar import Cifar10, Cifar100
from vit_jax.data.builders.oxford_flowers102 import OxfordFlowers102
from vit_jax.data.builders.oxford_iiit_pet import OxfordIiitPet
from vit_jax.data.builders.record_files import (
    INFO,
    DataError,
    check_count,
    explain_json_damage,
    read_tfrecords,
    system_errors,
)
from vit_jax.data.builders.rendered_flowers import RenderedFlowers
from vit_jax.data.builders.tf_flowers import TfFlowers

# The data sets that this package prepares, without TensorFlow.
_OWN = {
    cls.name: cls
    for cls in (Cifar10, Cifar100, OxfordFlowers102, OxfordIiitPet, RenderedFlowers, TfFlowers)
}
logger = logging.getLogger(__name__)

_ARRAY_RECORD = "array_record"


def open_builder(name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Returns a data set ready for `as_data_source`. It is prepared first if none is there.

    Args:
      name: NAME, NAME/CONFIG or NAME:VERSION, or the path of a version's folder. Without a
        version, the newest that is there is opened; of a data set that this package prepares, the
        version that it prepares.
      data_dir: tfds's folder. None for $TFDS_DATA_DIR or ~/tensorflow_datasets, its default.

    Raises:
      DataError: there is no such data set, version or config; its files have another format or are
        damaged; or it can't be prepared from the files that were put by hand.
      FileNotFoundError: files of the data set are missing.
      ImportError: preparing the data set needs TensorFlow.
      ConnectionError: the data set could not be downloaded.
      OSError: the disk is full.
    """
    folder = epath.Path(local_path(name)) if is_folder(name) else find(name, data_dir)
    return _open(folder) if folder else prepare(name, data_dir)


def find(name: str, data_dir: str | None = None) -> epath.Path | None:
    """Returns the folder of the version that `open_builder` opens, or None if none is prepared.

    Raises:
      DataError: this can't be the name of a data set, or its JSON files are damaged.
    """
    parsed, options = _parse(name)
    if parsed in _OWN:
        options.setdefault("version", str(_OWN[parsed].VERSION))
    root = _root(data_dir)
    try:
        with explain_json_damage(root / parsed):
            found = read_only_builder.builder_from_files(parsed, data_dir=root, **options)
    except tfds.core.DatasetNotFoundError:
        return None
    return found.data_path


def prepare(name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Downloads a data set, writes it as array_record files, and returns it opened.

    tfds shows its progress bars. A version that is there already is not prepared again. Arguments
    and errors are those of `open_builder`.
    """
    find(name, data_dir)  # raises an error if what is there is damaged
    builder = _builder(name, _root(data_dir))
    if builder.data_path.exists():
        logger.info("%s is prepared already, in %s", builder.info.full_name, builder.data_path)
    else:
        _generate(builder, name, _root(data_dir))
    return _open(builder.data_path)


def _generate(builder: tfds.core.DatasetBuilder, name: str, root: epath.Path) -> None:
    """Downloads and prepares a data set. `name` is the user's, `root` is tfds's folder."""
    there = _prepared(root, builder.name)
    command = f"`python -m vit_jax.data prepare {name} --data_dir {root}`"
    manual = root / "downloads" / "manual"  # tfds's manual_dir
    by_hand = ""
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        by_hand = f"Put its files by hand into {manual}, the manual_dir: {instructions} Then "
    if builder.__module__.startswith("tensorflow_datasets.") and not find_spec("tensorflow"):
        raise ImportError(
            f"{there}, and tfds's own code needs TensorFlow once to prepare {name}, though not to "
            f"read it. {by_hand or 'To prepare it, '}run `{install_command('prepare')}` "
            f"(tensorflow-cpu), and {command}, here or on another machine. "
            f"The folder to be read is {builder.data_path}."
        )
    # Retries take 3 s; tfds's default of 10 takes 3 minutes if there is no network.
    downloader.MAX_RETRIES = 4
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # warns of every retry
    downloads = root / "downloads" / "extracted"  # folders that tfds makes
    try:
        with no_empty_folders(downloads), no_empty_folders(builder.data_path), system_errors():
            builder.download_and_prepare(file_format=_ARRAY_RECORD)
    except (RequestException, tfds.download.DownloadError, NonMatchingChecksumError) as error:
        url = getattr(getattr(error, "request", None), "url", "")  # the text of other errors has it
        urls = [url for url, info in (builder.url_infos or {}).items() if info.filename]
        raise ConnectionError(
            f"{there}, and downloading {name} failed: run {command} where there is a network, and "
            f"copy {builder.data_path}, the folder to be read; or run it here after you have put "
            f"these files by hand into {manual}: {first_few(urls)}. "
            f"The cause: {' '.join(f'{url} {error}'.split())}"
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and builder.data_path.exists():
            return  # another process was faster
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            raise OSError(cannot_write(builder.data_path, error)) from error
        if not by_hand:
            raise
        raise DataError(  # builders tell missing files by errors of many kinds
            f"{there}, and preparing {name} failed. {by_hand}run {command}. "
            f"The cause: {' '.join(str(error).split())}"
        ) from error


def _builder(name: str, root: epath.Path) -> tfds.core.DatasetBuilder:
    """Returns the builder that prepares a data set: this package's own, or else tfds's."""
    parsed, options = _parse(name)
    there = _prepared(root, parsed)
    try:
        cls = _OWN.get(parsed) or tfds.builder_cls(parsed)
    except tfds.core.DatasetNotFoundError:
        raise _unknown(name, f" {there}.") from None
    try:
        return cls(data_dir=root, **options)
    except (AssertionError, ValueError) as error:  # tfds has no such version or config
        reason = str(error).partition(". ")[0].rstrip(".")
        configs = first_few(cls.builder_configs, 9) or "none"
        message = f"{there}, and tfds can't prepare {name}: {reason} (configs: {configs})."
        raise DataError(message) from error


def _open(folder: epath.Path) -> tfds.core.DatasetBuilder:
    """Returns the builder of a version's folder, whose files must be array_record files."""
    builder = _read(folder)
    form = builder.info.file_format.value
    if form != _ARRAY_RECORD:
        raise DataError(
            f"{builder.info.full_name} in {folder} is prepared as {form} files; array_record files "
            f"are needed: run `python -m vit_jax.data convert {folder}` once."
        )
    for split in builder.info.splits.values():
        for path, count in zip(split.filepaths, split.shard_lengths, strict=True):
            check_count(path, count)
    return builder


def _read(folder: epath.Path) -> tfds.core.DatasetBuilder:
    """Returns the builder of a version's folder, for its array_record files if it has any.

    Raises:
      DataError: dataset_info.json or features.json is damaged.
      FileNotFoundError: files are missing.
    """
    present = {path.name for path in folder.iterdir()}
    missing = [name for name in (INFO, "features.json") if name not in present]
    if not missing:
        with explain_json_damage(folder):
            builder = tfds.builder_from_directory(folder)
            if tfds.core.FileFormat.ARRAY_RECORD in builder.info.available_file_formats():
                builder.info.set_file_format(_ARRAY_RECORD, True, override_if_initialized=True)
            splits = builder.info.splits.values()
            if not splits:
                raise ValueError(f"{INFO} names no splits")
            files = [path.name for split in splits for path in split.filepaths]
        missing = [name for name in files if name not in present]
    if missing:
        raise FileNotFoundError(
            f"The data set in {folder} is incomplete: it lacks {len(missing)} of its files, "
            f"such as {missing[0]}. Copy it again, or delete the folder to have it prepared anew."
        )
    return builder


def convert(directory: str | pathlib.Path) -> pathlib.Path:
    """Copies TFRecord files into array_record files beside them, and returns the folder.

    The records keep their order, and the TFRecord files stay. dataset_info.json changes last, so
    that a conversion that was interrupted has changed nothing, and can be started again. One that
    fails removes what it has written.

    Args:
      directory: the folder of a version, which holds dataset_info.json; or a folder above it, if
        it is the only one there.

    Raises:
      FileNotFoundError: there is no prepared data set, or files of it are missing.
      DataError: there are several data sets, a file is damaged, or a file does not have as many
        records as dataset_info.json says.
      OSError: the files can't be written, as on a full disk.
    """
    folder = _version_folder(local_path(directory))
    builder = _read(epath.Path(folder))
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        print(f"{folder} is in {builder.info.file_format.value} files: there is nothing to do.")
        return folder
    info = json.loads((folder / INFO).read_bytes())
    with contextlib.ExitStack() as undo:
        for split in info["splits"]:
            shards = builder.info.splits[split["name"]]
            stem = f"{info['name']}-{split['name']}.{_ARRAY_RECORD}"
            with progress_bar(total=shards.num_examples, desc=stem, unit=" records") as bar:
                for i, source in enumerate(shards.filepaths):
                    target = folder / f"{stem}-{i:05d}-of-{shards.num_shards:05d}"
                    _copy_records(source, target, shards.shard_lengths[i], bar)
                    undo.callback(target.unlink, missing_ok=True)
            split["filepathTemplate"] = naming.DEFAULT_FILENAME_TEMPLATE
        write_file(folder / INFO, json.dumps(info | {"fileFormat": _ARRAY_RECORD}, indent=2))
        undo.pop_all()
    return folder


def _version_folder(directory: pathlib.Path) -> pathlib.Path:
    """Returns the only folder with dataset_info.json that is `directory`, or up to three below."""
    found = sorted(path.parent for n in range(4) for path in directory.glob("*/" * n + INFO))
    if not found:
        raise FileNotFoundError(f"There is no {INFO} in {directory}: it holds no tfds data.")
    if len(found) > 1:
        raise DataError(f"{directory} has several data sets; choose: {', '.join(map(str, found))}")
    return found[0]


def _copy_records(source: epath.Path, target: pathlib.Path, count: int, bar: tqdm) -> None:
    """Copies a TFRecord file of `count` records to an array_record file; `bar` counts them."""
    with replacing(target) as partial, system_errors():
        with contextlib.closing(ArrayRecordWriter(str(partial), "group_size:1")) as writer:
            for record in read_tfrecords(source):
                writer.write(record)
                bar.update()
        check_count(partial, count, source)


def _parse(name: str) -> tuple[str, dict[str, Any]]:
    """Returns a data set's name without, and as keyword arguments with, its config and version."""
    try:
        parsed, options = naming.parse_builder_name_kwargs(name)
    except ValueError:
        parsed = None
    if parsed is None or parsed.namespace:
        raise _unknown(name)
    return parsed.name, options


def _unknown(name: str, prepared: str = "") -> DataError:
    """Returns the error for a name that is nothing; `prepared` is a sentence on tfds's folder."""
    builders = {*_OWN, *tfds.list_builders(with_community_datasets=False)}
    hint = closest(name.lower(), builders.union(folders_beside(name)), most=3)
    return DataError(
        f"{name!r} is neither an existing folder nor a data set that tfds knows{hint}. Give the "
        f"path of a folder of images, <class>/*.jpg, or the name of a data set: NAME, NAME/CONFIG "
        f"or NAME:VERSION.{prepared}"
    )


def _root(data_dir: str | None) -> epath.Path:
    folder = data_dir or tfds.core.constants.DATA_DIR
    return absolute(folder) if is_bucket(folder) else epath.Path(local_path(folder))


def _prepared(root: epath.Path, name: str) -> str:
    """Returns a clause that says which versions of a data set tfds's folder holds."""
    found = [path.parent for n in (1, 2) for path in (root / name).glob("*/" * n + INFO)]
    names = sorted(f"{folder.parent.relative_to(root)}:{folder.name}" for folder in found)
    return f"{root} holds {', '.join(names) or f'nothing of {name}'}"
