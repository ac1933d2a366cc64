"""Archives that data sets come in: downloaded by tfds, opened by Python, which needs no TensorFlow.

Nothing is unpacked to the disk.
"""

from __future__ import annotations

import os
import pathlib
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

import tensorflow_datasets as tfds

from vit_jax.common.messages import first_few


def download(builder: tfds.core.DatasetBuilder, dl_manager: Any) -> dict[str, pathlib.Path]:
    """Downloads the files of a data set, and returns their paths by their names.

    The files, with their addresses, sizes and checksums, are those that tfds has recorded for the
    data set. tfds checks them and keeps them in DATA_DIR/downloads. A file that is there, or that
    was put by hand into DATA_DIR/downloads/manual, isn't downloaded again.

    Args:
      builder: the data set's builder, with `url_infos`.
      dl_manager: what tfds gives to `_split_generators`, a `tfds.download.DownloadManager`.

    Raises:
      RequestException, DownloadError: a file can't be downloaded.
      NonMatchingChecksumError: a file has another size or checksum.
    """
    return dl_manager.download({info.filename: url for url, info in builder.url_infos.items()})


def read(
    archive: os.PathLike, names: Iterable[str] | None = None
) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields the name and the contents, as an open file, of each file in a tar archive.

    Args:
      archive: the archive, which may be compressed.
      names: the files to yield. None for all.

    Raises:
      ValueError: a member of the archive would lie outside the folder that it is unpacked in, or
        is a link or a device; or the archive lacks some of `names`.
    """
    left = set(names or ())
    with tarfile.open(archive) as tar:
        for member in tar:
            name = os.path.normpath(member.name)
            outside = os.path.isabs(name) or name.split(os.sep)[0] == os.pardir
            if outside or not (member.isfile() or member.isdir()):
                raise ValueError(
                    f"The archive {archive} is refused: {member.name!r} is "
                    f"{'outside its folder' if outside else 'neither a file nor a folder'}."
                )
            contents = tar.extractfile(member) if member.isfile() else None
            if contents and (names is None or name in left):
                left.discard(name)
                yield name, contents
    if left:
        raise ValueError(f"The archive {archive} lacks {first_few(sorted(left))}.")
