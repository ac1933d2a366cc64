"""A small tfds data set whose files tests damage."""

import io
import struct

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from small_archives import jpeg
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from vit_jax.data.builders import prepare

SIZES = {"train": 12, "test": 6}


class Meadow(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images of two classes, in two splits, that need no download."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["grass", "moss"])
        features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(count) for split, count in SIZES.items()}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": io.BytesIO(jpeg(i)), "label": i % 2}


def prepare_meadow(patch, root):
    """Prepares the data set below a folder; returns the folder of its version."""
    patch.setitem(prepare._OWN, "meadow", Meadow)
    return prepare.prepare("meadow", str(root)).data_path


def read_records(path):
    reader = ArrayRecordReader(str(path))
    records = list(reader.read_all())
    reader.close()
    return records


def write_records(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def to_tfrecords(folder):
    """Turns a version's array_record files into TFRecord files."""
    for path in list(folder.glob("*array_record*")):
        content = b""
        for record in read_records(path):
            length = struct.pack("<Q", len(record))
            content += (
                length
                + struct.pack("<I", masked_crc32c(length))
                + record
                + struct.pack("<I", masked_crc32c(record))
            )
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(content)
        path.unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
