"""tf_flowers"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.tf_flowers import tf_flowers_dataset_builder as stock

_BUCKET = "download.tensorflow.org"


def _secure(url: str) -> str:
    """Returns the https address of a file in the stock builder's bucket, which it names by http."""
    return url.replace(f"http://{_BUCKET}/", f"https://storage.googleapis.com/{_BUCKET}/")


class TfFlowers(stock.Builder, skip_registration=True):
    """The stock builder, except that Python opens the archive instead of TensorFlow.

    Data prepared by either has the same name, version and examples in the same order.
    """

    code_path = stock.Builder.code_path  # beside it: the archive's checksum,
    pkg_dir_path = code_path.parent  # the description and the citation
    url_infos = stock.Builder.url_infos | {
        _secure(url): info for url, info in stock.Builder.url_infos.items()
    }

    def _split_generators(self, dl_manager):
        files = _files(dl_manager.download(_secure(stock._URL)))
        return [
            tfds.core.SplitGenerator(name=tfds.Split.TRAIN, gen_kwargs={"images_dir_path": files})
        ]


def _files(archive: os.PathLike) -> Iterator[tuple[str, BinaryIO]]:
    """Yields the name and the open contents of every file in the archive; writes none of them.

    Raises:
      ValueError: it has a member that would be outside the folder it is unpacked in.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            try:
                if os.path.isabs(member.name):
                    raise tarfile.AbsolutePathError(member)
                member = tarfile.data_filter(member, os.fspath(archive))
            except tarfile.FilterError as error:
                raise ValueError(f"The archive {archive} is refused: {error}.") from error
            if member.isfile():
                yield member.name, tar.extractfile(member)
