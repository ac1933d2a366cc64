"""Small archives in the layout of those that tfds's data sets come in, and a server for them.

Each `write_…` function writes the files of a data set into a folder. It returns their names, and
the examples in them by split, with the values that tfds's features have.
"""

import contextlib
import functools
import hashlib
import http.server
import io
import tarfile
import threading

import cv2
import numpy as np
import scipy.io
import simplejpeg
from tensorflow_datasets.core.download.checksums import UrlInfo

FLOWERS = {"daisy": 4, "roses": 3, "tulips": 5}
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@contextlib.contextmanager
def serve(folder):
    """Serves the files of a folder, and gives their URL."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://localhost:{httpd.server_port}"
        httpd.shutdown()


def url_infos(url, folder, names):
    """What tfds has to know of files to download them from a server."""
    infos = {}
    for name in names:
        data = (folder / name).read_bytes()
        infos[f"{url}/{name}"] = UrlInfo(len(data), hashlib.sha256(data).hexdigest(), name)
    return infos


def pixels(seed, height=12, width=16, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def jpeg(seed):
    return simplejpeg.encode_jpeg(pixels(seed))


def png(seed, channels):
    return cv2.imencode(".png", pixels(seed, channels=channels))[1].tobytes()


def write_tar(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_tf_flowers(folder):
    names = [f"{kind}/{i}.jpg" for kind, count in FLOWERS.items() for i in range(count)]
    photos = {name: jpeg(seed) for seed, name in enumerate(names)}
    files = {f"flower_photos/{name}": photo for name, photo in photos.items()}
    write_tar(folder / "flower_photos.tgz", {"flower_photos/LICENSE.txt": b"CC-BY", **files})
    numbers = {"daisy": 1, "roses": 4, "tulips": 2}  # as tfds orders them
    examples = [
        {"image": photo, "label": numbers[name.split("/")[0]]} for name, photo in photos.items()
    ]
    return ["flower_photos.tgz"], {"train": examples}


def write_cifar10(folder):
    return _write_cifar(
        folder / "cifar-10-binary.tar.gz",
        prefix="cifar-10-batches-bin",
        splits={
            "train": {f"data_batch_{n}.bin": 3 for n in range(1, 6)},
            "test": {"test_batch.bin": 4},
        },
        names={"label": ("batches.meta.txt", CIFAR10)},
    )


def write_cifar100(folder):
    return _write_cifar(
        folder / "cifar-100-binary.tar.gz",
        prefix="cifar-100-binary",
        splits={"train": {"train.bin": 7}, "test": {"test.bin": 3}},
        names={
            "coarse_label": ("coarse_label_names.txt", [f"group_{n}" for n in range(20)]),
            "label": ("fine_label_names.txt", [f"class_{n}" for n in range(100)]),
        },
    )


def _write_cifar(path, prefix, splits, names):
    """Writes an example as https://www.cs.toronto.edu/~kriz/cifar.html says, and adds it."""
    rng = np.random.default_rng(3)
    files, examples = {}, {}
    for split, counts in splits.items():
        examples[split] = []
        for file, count in counts.items():
            data = b""
            for _ in range(count):
                labels = {key: int(rng.integers(len(known))) for key, (_, known) in names.items()}
                image = rng.integers(0, 256, (32, 32, 3), np.uint8)
                data += bytes(labels.values())
                data += b"".join(image[..., channel].tobytes() for channel in range(3))
                name = f"{split}_{len(examples[split]):05d}".encode()
                examples[split].append({"id": name, "image": image, **labels})
            files[f"{prefix}/{file}"] = data
    for file, known in names.values():
        files[f"{prefix}/{file}"] = "\n".join([*known, "", ""]).encode()
    write_tar(path, {f"{prefix}/readme.html": b"<html>", **files})
    return [path.name], examples


def write_oxford_flowers102(folder):
    labels = np.random.default_rng(5).integers(1, 103, 12)
    parts = {"trnid": [12, 3, 7], "valid": [1, 2], "tstid": [11, 4, 5, 6, 8]}  # 9 and 10 are left
    names = {"train": "trnid", "validation": "valid", "test": "tstid"}
    photos = {number: jpeg(number) for number in range(1, 13)}
    write_tar(
        folder / "102flowers.tgz",
        {f"jpg/image_{number:05d}.jpg": photo for number, photo in photos.items()},
    )
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    scipy.io.savemat(folder / "setid.mat", {k: np.uint16([v]) for k, v in parts.items()})
    examples = {
        split: [
            {
                "image": photos[number],
                "label": int(labels[number - 1]) - 1,
                "file_name": f"image_{number:05d}.jpg".encode(),
            }
            for number in parts[part]
        ]
        for split, part in names.items()
    }
    return ["102flowers.tgz", "imagelabels.mat", "setid.mat"], examples


DAMAGED = jpeg(60)[:-2] + bytes(range(16)) + b"\xff\xd9"  # with bytes that belong to nothing
PETS = {  # name: photo, breed, species, the box of the head as xmin, ymin, xmax, ymax
    "train": {
        "Abyssinian_100": (jpeg(61), "Abyssinian", "Cat", (3, 2, 9, 8)),
        "Abyssinian_5": (png(62, 4), "Abyssinian", "Cat", (1, 1, 16, 12)),
        "beagle_116": (DAMAGED, "beagle", "Dog", (4, 3, 12, 9)),
        "yorkshire_terrier_9": (png(63, 3), "yorkshire_terrier", "Dog", (2, 6, 8, 12)),
    },
    "test": {
        "Egyptian_Mau_14": (png(64, 3), "Egyptian_Mau", "Cat", None),
        "american_bulldog_201": (jpeg(65), "american_bulldog", "Dog", None),
    },
}
BREEDS = {"Abyssinian": 1, "american_bulldog": 2, "beagle": 5, "Egyptian_Mau": 12}
BREEDS["yorkshire_terrier"] = 37
XML = """<annotation><filename>{name}.jpg</filename><size><width>16</width><height>12</height>
<depth>3</depth></size><object><name>head</name><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>
<xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object></annotation>"""


def write_oxford_iiit_pet(folder):
    images = {"images/Abyssinian_101.mat": b"MATLAB", "images/unlisted_1.jpg": jpeg(66)}
    annotations, examples = {}, {}
    for (split, pets), listed in zip(PETS.items(), ("trainval", "test"), strict=True):
        lines, examples[split] = [], []
        for name, (photo, breed, species, box) in pets.items():
            lines.append(f"{name} {BREEDS[breed]} {1 + (species == 'Dog')} 7\n")
            mask = png(len(images), 1)
            images[f"images/{name}.jpg"] = photo
            annotations[f"annotations/trimaps/{name}.png"] = mask
            annotations[f"annotations/trimaps/._{name}.png"] = b"metadata of a Mac"
            if box:
                annotations[f"annotations/xmls/{name}.xml"] = XML.format(*box, name=name).encode()
            left, top, right, bottom = box or (0, 0, 0, 0)
            examples[split].append(
                {
                    "image": photo,
                    "label": BREEDS[breed] - 1,
                    "species": int(species == "Dog"),
                    "file_name": f"{name}.jpg".encode(),
                    "segmentation_mask": mask,
                    "head_bbox": np.float32([top / 12, left / 16, bottom / 12, right / 16]),
                }
            )
        annotations[f"annotations/{listed}.txt"] = "".join(lines).encode()
    write_tar(folder / "images.tar.gz", images, "w:")  # the real ones aren't compressed either
    write_tar(folder / "annotations.tar.gz", annotations, "w:")
    return ["images.tar.gz", "annotations.tar.gz"], examples
