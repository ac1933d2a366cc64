"""tfds's `tf_flowers`, 3,670 photos of five kinds of flowers, prepared without TensorFlow."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import IO, Any

import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.tf_flowers import tf_flowers_dataset_builder as stock

_BUCKET = "download.tensorflow.org"


def _secure(url: str) -> str:
    """Returns the https address of a file that tfds's builder downloads over http."""
    return url.replace(f"http://{_BUCKET}/", f"https://storage.googleapis.com/{_BUCKET}/")


class TfFlowers(stock.Builder, skip_registration=True):  # type: ignore[call-arg]
    """tfds's builder, but Python opens the archive, not TensorFlow.

    Both builders make data of the same name and version, with the same examples in the same order.
    """

    code_path = stock.Builder.code_path
    pkg_dir_path = code_path.parent  # has the archive's checksum, the description, the citation
    url_infos = stock.Builder.url_infos | {
        _secure(url): info for url, info in stock.Builder.url_infos.items()
    }

    def _split_generators(self, dl_manager: Any) -> list[tfds.core.SplitGenerator]:
        files = _files(dl_manager.download(_secure(stock._URL)))
        return [
            tfds.core.SplitGenerator(name=tfds.Split.TRAIN, gen_kwargs={"images_dir_path": files})
        ]


def _files(archive: os.PathLike) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields the name and the contents, as an open file, of every file in an archive.

    Nothing is unpacked to the disk.

    Raises:
      ValueError: a member of the archive would lie outside the folder that it is unpacked in.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            try:
                if os.path.isabs(member.name):
                    raise tarfile.AbsolutePathError(member)
                member = tarfile.data_filter(member, os.fspath(archive))
            except tarfile.FilterError as error:
                raise ValueError(f"The archive {archive} is refused: {error}.") from error
            if contents := tar.extractfile(member) if member.isfile() else None:
                yield member.name, contents
