"""tfds's `tf_flowers`, 3,670 photos of five kinds of flowers, prepared without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.tf_flowers import tf_flowers_dataset_builder as stock


class TfFlowers(stock.Builder, skip_registration=True):
    """The stock builder, except that Python opens the archive instead of TensorFlow.

    Data prepared by either has the same name, version and examples in the same order.
    """

    code_path = stock.Builder.code_path  # beside it: the archive's checksum,
    pkg_dir_path = code_path.parent  # the description and the citation

    def _split_generators(self, dl_manager):
        files = _files(dl_manager.download(stock._URL))
        return [
            tfds.core.SplitGenerator(name=tfds.Split.TRAIN, gen_kwargs={"images_dir_path": files})
        ]


def _files(archive: os.PathLike) -> Iterator[tuple[str, BinaryIO]]:
    """Yields the name and the open contents of every file in the archive."""
    with open(archive, "rb") as file:
        yield from tfds.download.iter_archive(file, tfds.download.ExtractMethod.TAR_GZ)
