"""tfds's `tf_flowers`, 3,670 photos of five kinds of flowers, prepared without TensorFlow."""

from __future__ import annotations

from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.tf_flowers import tf_flowers_dataset_builder as stock

from vit_jax.data.builders import archives

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
    url_infos: ClassVar = {_secure(url): info for url, info in stock.Builder.url_infos.items()}

    def _split_generators(self, dl_manager: Any) -> list[tfds.core.SplitGenerator]:
        (archive,) = archives.download(self, dl_manager).values()
        return [
            tfds.core.SplitGenerator(
                name=tfds.Split.TRAIN, gen_kwargs={"images_dir_path": archives.read(archive)}
            )
        ]
