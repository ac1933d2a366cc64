"""tfds's `oxford_flowers102`, 8,189 photos of 102 kinds of flowers, prepared without TensorFlow."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.oxford_flowers102 import (
    oxford_flowers102_dataset_builder as stock,
)

from vit_jax.data.builders import archives

# The splits, and the arrays of setid.mat that have the numbers of their photos.
_SPLITS = {
    tfds.Split.TRAIN: "trnid",
    tfds.Split.TEST: "tstid",
    tfds.Split.VALIDATION: "valid",
}


class OxfordFlowers102(stock.Builder, skip_registration=True):  # type: ignore[call-arg]
    """tfds's builder, but Python opens the archive, not TensorFlow.

    Both builders make data of the same name and version, with the same examples in the same order.
    """

    code_path = stock.Builder.code_path
    pkg_dir_path = code_path.parent  # has the checksums, the description, the citation

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        import scipy.io  # not at the start of each command: it takes long

        files = archives.download(self, dl_manager)
        (labels,) = scipy.io.loadmat(files["imagelabels.mat"])["labels"]  # of 1, 2, … 8189
        numbers = scipy.io.loadmat(files["setid.mat"])
        return {
            split: self._generate_examples(
                files["102flowers.tgz"],
                {f"jpg/image_{n:05d}.jpg": int(labels[n - 1]) - 1 for n in numbers[key].flat},
            )
            for split, key in _SPLITS.items()
        }

    def _generate_examples(
        self, archive: os.PathLike, labels: dict[str, int]
    ) -> Iterator[tuple[str, dict]]:
        """Yields the photos of the archive whose paths `labels` has."""
        for path, photo in archives.read(archive, labels):
            name = os.path.basename(path)
            image = io.BytesIO(photo.read())
            yield name, {"image": image, "label": labels[path], "file_name": name}
