"""Fixtures and helper functions that the tests of several rooms share."""

import os
import tempfile

# Set before JAX is imported. The CPU poses as eight devices, for the tests of sharding. XLA
# optimizes the programs, but LLVM does not: that takes longer than to run them.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Each of the processes that run tests side by side has one core. PyTorch's threads would wait for
# each other.
os.environ["OMP_NUM_THREADS"] = "1"
# Tests and the processes they start compile the same programs: they share one compilation cache.
os.environ["JAX_COMPILATION_CACHE_DIR"] = (
    os.environ["JAX_COMPILATION_CACHE_DIR"]
    if "PYTEST_XDIST_WORKER" in os.environ
    else tempfile.mkdtemp(prefix="vit_jax-tests-")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import csv
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import simplejpeg

from vit_jax import models
from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.config.defaults import default
from vit_jax.data.dataset import Example
from vit_jax.models.params import parameter_shapes
from vit_jax.weights import recognise

REPOSITORY = pathlib.Path(__file__).parents[1]
ONE_DEVICE = os.environ["XLA_FLAGS"].split()[0]  # XLA_FLAGS of a process with one device
IMAGE, CLASSES = 16, 7  # the tiny models' image size in pixels, and the size of their heads
# The model of the smallest run.
TINY = dict(variant="Ti/16", width=16, depth=1, mlp_dim=16, num_heads=2, patch_size=8)


# ----------------------------------------------------------------------------- pytest's hooks


def pytest_collection_modifyitems(items):
    """Gives every test in tests/faults the marker `faults`."""
    for item in items:
        if item.path.is_relative_to(REPOSITORY / "tests" / "faults"):
            item.add_marker("faults")


def pytest_unconfigure():
    """Removes the compilation cache; workers use that of the process that started them."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def clear_compiled_programs():
    """Frees the compiled programs of a file of tests when it is done.

    Each program takes memory maps, of which Linux gives a process 65,530. All tests together would
    need more, and the program that gets none ends in a segmentation fault.
    """
    yield
    jax.clear_caches()


# ------------------------------------------------------------------------------------- models


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tiny(num_classes=CLASSES, **overrides):
    """A ViT that compiles and runs in no time, for images of 16 x 16 pixels: 2 x 2 patches."""
    sizes = dict(width=24, depth=1, mlp_dim=32, num_heads=2, patch_size=8)
    return models.build("Ti/16", num_classes=num_classes, **{**sizes, **overrides})


def random_params(model, seed=0):
    """Parameters that are all random: a head of zeros would hide differences."""
    images = np.zeros((1, IMAGE, IMAGE, 3))
    params = jax.jit(model.init)(jax.random.key(seed), images)["params"]
    rng = np.random.default_rng(seed)  # by NumPy, because XLA compiles each draw for long
    return jax.tree.map(lambda x: x + np.float32(0.1) * rng.standard_normal(x.shape, "f4"), params)


def random_checkpoint(variant, num_classes=3, **attributes):
    """A checkpoint without a file, for images of 32 x 48 pixels; a class name contains HTML."""
    shape = (32, 48)
    shapes = parameter_shapes(models.build(variant, num_classes=num_classes, **attributes), shape)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    config = recognise.config_for(variant, shape, **attributes)
    names = ("a <b>", "b", "c")[:num_classes]
    return Checkpoint("a/checkpoint", params, config, names, 0)


# --------------------------------------------------------------------------------------- data


class DrawnImages:
    """A data set without files, as tfds has: one split of noise, and ids that are no paths.

    A subclass has its `class_names`.
    """

    name = "some_images"

    def __init__(self, labels):
        self.labels, self.splits = labels, {"test": len(labels)}

    def source(self, split):
        return self

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 256, (32, 48, 3), np.uint8)
        return Example(image, self.labels[index], f"{self.name}-test.array_record__{index}")


@pytest.fixture
def batch(rng):
    """A batch of sixteen images of noise; the last three are padding."""
    return {
        "image": rng.integers(0, 256, (16, IMAGE, IMAGE, 3)).astype(np.uint8),
        "label": rng.integers(0, CLASSES, 16).astype(np.int32),
        "mask": np.arange(16) < 13,
    }


def write_jpegs(folder, counts, size=(20, 24)):
    """Writes {class: number} JPEGs, each of noise around its class's colour; returns the folder."""
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        colour = np.array([(60, 120, 200), (200, 60, 60), (90, 220, 90), (230, 220, 40)][label % 4])
        for i in range(count):
            image = np.clip(colour + rng.normal(0, 25, (*size, 3)), 0, 255).astype(np.uint8)
            (folder / name / f"{i}.jpg").write_bytes(simplejpeg.encode_jpeg(image))
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A folder of three classes with 40, 24 and 16 images, without splits."""
    counts = {"blue": 40, "red": 24, "green": 16}
    return write_jpegs(tmp_path_factory.mktemp("images"), counts)


@pytest.fixture(scope="session")
def photos():
    """The folder of real flower photos; tests are skipped on machines without it."""
    folder = REPOSITORY.parent / "shared" / "data" / "flower_photos"
    if not folder.is_dir():
        pytest.skip("the real flower photos are not on this machine")
    return folder


# --------------------------------------------------------------------------------------- runs


@pytest.fixture
def settings(image_folder):
    """The configuration of a run of six steps on `image_folder`."""
    settings = default()
    settings.model.update(**TINY, dropout=0.1)
    settings.data.update(name=str(image_folder), image_size=16, crop_area=0.5)
    settings.update(batch_size=16, eval_batch_size=8, total_steps=6, log_every=2, eval_every=3)
    settings.optim.lr = 0.1
    settings.checkpoint.every = 2
    return settings


def launch(*arguments, config="configs/pretrain.py:Ti/16,{}", folder, workdir):
    """The command that trains the smallest model on a folder of images."""
    flags = [f"--config.model.{k}={v}" for k, v in TINY.items() if k != "variant"]
    return [
        sys.executable,
        "-m",
        "vit_jax.main",
        "--config=" + config.format(folder),
        f"--workdir={workdir}",
        "--config.data.image_size=32",
        "--config.batch_size=16",
        "--config.eval_batch_size=16",
        *flags,
        *arguments,
    ]


def environment():
    """This process's environment variables without its flags of XLA: those of a user."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def rows(workdir):
    """The rows of a run's metrics.csv, as dictionaries of strings."""
    return rows_of(workdir / "metrics.csv")


def rows_of(path):
    """The rows of a CSV file, as dictionaries of strings."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
