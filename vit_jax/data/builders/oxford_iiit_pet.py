"""tfds's `oxford_iiit_pet`, 7,349 photos of cats and dogs, prepared without TensorFlow.

The classes are 37 breeds. With them come the species, a mask of the animal, and the box of its
head where that is known.
"""

from __future__ import annotations

import io
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import simplejpeg
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.datasets.oxford_iiit_pet import oxford_iiit_pet_dataset_builder as stock

from vit_jax.data.builders import archives

_SPLITS = {"train": "trainval.txt", "test": "test.txt"}


class OxfordIiitPet(stock.Builder, skip_registration=True):  # type: ignore[call-arg]
    """tfds's builder, but Python opens the archives, not TensorFlow.

    Both builders make data of the same name and version, with the same examples in the same order.
    """

    code_path = stock.Builder.code_path
    pkg_dir_path = code_path.parent  # has the checksums, the description, the citation

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        files = archives.download(self, dl_manager)
        read = archives.read(files["annotations.tar.gz"])
        annotations = {os.path.relpath(path, "annotations"): file.read() for path, file in read}
        return {
            split: self._generate_examples(files["images.tar.gz"], annotations, listed)
            for split, listed in _SPLITS.items()
        }

    def _generate_examples(
        self, archive: os.PathLike, annotations: dict[str, bytes], listed: str
    ) -> Iterator[tuple[str, dict]]:
        """Yields the photos of the archive that one of the annotations lists.

        Its lines are "NAME BREED SPECIES NUMBER"; breeds and species are counted from 1.
        """
        rows = [line.split() for line in annotations[listed].decode().splitlines()]
        labels = {f"images/{name}.jpg": (int(breed), int(kind)) for name, breed, kind, _ in rows}
        for path, photo in archives.read(archive, labels):
            breed, kind = labels[path]
            file_name = os.path.basename(path)
            name = file_name.removesuffix(".jpg")
            data, box = photo.read(), annotations.get(f"xmls/{name}.xml")
            yield (
                file_name,
                {
                    "image": io.BytesIO(
                        _encode_again(data) if name in stock._CORRUPT_SAMPLES else data
                    ),
                    "label": breed - 1,
                    "species": kind - 1,
                    "file_name": file_name,
                    "segmentation_mask": io.BytesIO(annotations[f"trimaps/{name}.png"]),
                    "head_bbox": _head(box) if box else stock._EMPTY_BBOX,
                },
            )


def _encode_again(data: bytes) -> bytes:
    """Returns a sound JPEG of a photo whose file is damaged, or a PNG under the name of a JPEG.

    The bytes are those that TensorFlow makes, whose decoder takes the fast DCT.
    """
    try:
        image = Image.fromarray(simplejpeg.decode_jpeg(data, fastdct=True, strict=False))
    except ValueError:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling="4:2:0", dpi=(300, 300))
    return file.getvalue()


def _head(xml: bytes) -> tfds.features.BBox:
    """Returns the box of an animal's head; its coordinates are shares of the image's sides."""
    root = ET.fromstring(xml)

    def number(path: str) -> float:
        return float(root.findtext(path, ""))

    width, height = number("size/width"), number("size/height")
    return tfds.features.BBox(
        ymin=number("object/bndbox/ymin") / height,
        xmin=number("object/bndbox/xmin") / width,
        ymax=number("object/bndbox/ymax") / height,
        xmax=number("object/bndbox/xmax") / width,
    )
