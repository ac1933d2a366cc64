import os
import tempfile

# Before JAX starts: eight devices on one CPU, for tests of what is spread over devices.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests and the processes they start build the same programs again and again: compiled once.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="vit_jax-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

import pathlib
import shutil

import numpy as np
import pytest
import simplejpeg

REPOSITORY = pathlib.Path(__file__).parents[1]


def pytest_unconfigure():
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def photos():
    """The real flower photos, where the machine has them."""
    folder = REPOSITORY.parent / "shared" / "data" / "flower_photos"
    if not folder.is_dir():
        pytest.skip("the real flower photos are not on this machine")
    return folder


def write_jpegs(folder, counts, size=(20, 24)):
    """Writes {class: number} JPEGs of noise round one colour a class; returns the folder."""
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
