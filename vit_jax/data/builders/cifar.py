"""tfds's `cifar10` and `cifar100`, 60,000 images of 32 x 32 pixels, prepared without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar as stock

from vit_jax.data.builders import archives

_SHAPE = (3, 32, 32)  # of the pixels in the archive, one colour after the other


class Cifar10(stock.Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """tfds's builder, but Python opens the archive, and Pillow writes the PNG files.

    Both builders make data of the same name and version, with the same examples in the same order.
    The bytes of the PNG files differ, the pixels in them do not.
    """

    code_path = stock.Cifar10.code_path  # where tfds looks for the archive's checksum

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        source = self._cifar_info
        (archive,) = archives.download(self, dl_manager).values()
        names = [*source.label_files, *source.train_files, *source.test_files]
        paths = [source.prefix + name for name in names]  # 180 MB together
        files = {path: file.read() for path, file in archives.read(archive, paths)}
        for key, name in zip(source.label_keys, source.label_files, strict=True):
            self.info.features[key].names = files[source.prefix + name].decode().split()
        train, test = (
            b"".join(files[source.prefix + name] for name in part)
            for part in (source.train_files, source.test_files)
        )
        return {
            tfds.Split.TRAIN: self._generate_examples("train_", train),
            tfds.Split.TEST: self._generate_examples("test_", test),
        }

    def _generate_examples(self, split_prefix: str, data: bytes) -> Iterator[tuple[int, dict]]:
        """Yields the examples in the bytes of a split's files, one after the other.

        An example has a byte for each label, and then the pixels
        (https://www.cs.toronto.edu/~kriz/cifar.html).
        """
        keys = self._cifar_info.label_keys
        rows = np.frombuffer(data, np.uint8).reshape(-1, len(keys) + np.prod(_SHAPE))
        for i, row in enumerate(rows):
            labels = dict(zip(keys, row[: len(keys)].tolist(), strict=True))
            pixels = row[len(keys) :].reshape(_SHAPE).transpose(1, 2, 0)
            image = Image.fromarray(pixels)  # tfds encodes it as PNG
            yield i, {"id": f"{split_prefix}{i:05d}", "image": image, **labels}


class Cifar100(Cifar10, stock.Cifar100, skip_registration=True):  # type: ignore[call-arg]
    """As `Cifar10`, with the labels of 100 classes and of 20 groups of these."""

    VERSION = stock.Cifar100.VERSION
