"""State dicts that are cut off, note nonsense, or would run code."""

import os

import pytest
import safetensors.numpy
from tiny_weights import VIT, random_params

from vit_jax.weights.api import load_params, save_params


@pytest.mark.parametrize(
    "ending", ["x.npz", "x.safetensors", pytest.param("x.pth", marks=pytest.mark.peers)]
)
def test_truncated_files_are_named(tmp_path, ending):
    if ending == "x.pth":
        pytest.importorskip("torch")
    path = tmp_path / ending
    format = "npz" if ending == "x.npz" else "timm"
    params = random_params("B/16", **VIT)
    save_params(params, path, variant="B/16", format=format, **VIT)
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"can't be read as|is not a file of weights") as error:
            load_params(path, variant="B/16", **VIT)
        assert str(path) in str(error.value)


@pytest.mark.peers
def test_pickles_that_run_code_are_refused(tmp_path):
    torch = pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"x": Evil()}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="can't be read as a PyTorch state dict"):
        load_params(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "noted",
    [
        "[]",
        "{",
        '{"model": 3}',
        '{"model": {"width": "x"}}',
        '{"model": {"depth": 1000000000}}',
        '{"model": {"variant": {}}}',
        '{"image_size": "big"}',
        '{"class_names": 3}',
    ],
)
def test_notes_in_a_safetensors_file_may_be_wrong(tmp_path, noted):
    params = random_params("B/16", **VIT)
    path = tmp_path / "x.safetensors"
    save_params(params, path, variant="B/16", format="timm", **VIT)
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays, path, metadata={"vit_jax": noted})
    with pytest.raises(ValueError, match=str(path)):
        load_params(path)
