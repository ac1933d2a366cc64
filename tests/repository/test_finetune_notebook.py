"""docs/finetune.ipynb, run with a small checkpoint and few images, as it would be on a CPU."""

import re

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest
from conftest import REPOSITORY

import vit_jax
from vit_jax.models.flops import forward_flops
from vit_jax.weights import catalogue

NOTEBOOK = REPOSITORY / "docs" / "finetune.ipynb"


@pytest.fixture(scope="module")
def notebook():
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def code_cells(notebook, tag=None):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [cell for cell in cells if tag is None or tag in cell.metadata.get("tags", [])]


def parameters(notebook):
    (cell,) = code_cells(notebook, "parameters")
    namespace = {}
    exec(cell.source, namespace)
    return {name: value for name, value in namespace.items() if name.isupper()}


def test_it_has_no_outputs_that_were_not_computed_on_such_a_device(notebook):
    assert all(not cell.outputs and not cell.execution_count for cell in code_cells(notebook))


def test_its_checkpoint_is_a_published_one(notebook):
    chosen = parameters(notebook)
    row = catalogue.published()[chosen["CHECKPOINT"]]
    assert row.variant == "S/16" and row.url.startswith("gs://")
    (comment,) = re.findall(r"CHECKPOINT = .*# .* (\d+) MiB", code_cells(notebook)[0].source)
    assert int(comment) == row.mebibytes
    # The arithmetic of the text: three forward passes an image.
    images = chosen["STEPS"] * chosen["BATCH"]
    flops = 3 * images * forward_flops("S/16", chosen["SIZE"])
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert f"computes {flops / 1e15:.1f} PFLOPs" in text
    assert f"{flops / (0.4 * 8.1e12) / 60:.0f} minutes on a T4" in " ".join(text.split())
    assert f"{flops / (0.4 * 197e12):.0f} seconds on a TPU v5e" in " ".join(text.split())


def test_its_versions_are_those_of_the_repository(notebook):
    (cell,) = (c for c in code_cells(notebook, "install") if "PINS" in c.source)
    pin = re.compile(r"^([a-z-]+)==([\d.]+)", re.MULTILINE)
    pins = dict(pin.findall(cell.source))
    assert pins == dict(pin.findall((REPOSITORY / "constraints.txt").read_text()))
    assert {"jax", "flax", "orbax-checkpoint", "grain"} <= pins.keys()
    least = re.findall(r'"([a-z-]+)>=([\d.]+)"', (REPOSITORY / "setup.py").read_text())
    for name, version in least:
        if name in pins:
            assert [*map(int, pins[name].split("."))] >= [*map(int, version.split("."))], name


@pytest.mark.slow
def test_it_runs(notebook, image_folder, tmp_path, monkeypatch):
    """All cells but the installation, in order, with a small checkpoint and other settings."""
    vit_jax.save(vit_jax.load(REPOSITORY / "checkpoints" / "quickstart"), tmp_path / "small.npz")
    settings = f"""
CHECKPOINT, DATA = "small.npz", {str(image_folder)!r}
SIZE, BATCH, STEPS, WARMUP = 16, 16, 10, 1
"""
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    drawn = []
    monkeypatch.setattr(
        plt, "show", lambda: drawn.append([bool(ax.images or ax.lines) for ax in plt.gcf().axes])
    )
    namespace = {}
    for cell in code_cells(notebook):
        tags = cell.metadata.get("tags", [])
        if "install" not in tags:
            source = cell.source + settings * ("parameters" in tags)
            exec(compile(source, NOTEBOOK.name, "exec"), namespace)
    assert drawn == [[True] * count for count in (10, 2, 5, 5)]  # no picture is left out
    result, report = namespace["result"], namespace["report"]
    assert result["step"] == 10 and result["test_accuracy"] > 0.75  # of plain colours
    assert report["test_accuracy"] == result["test_accuracy"]
    assert len(namespace["test"]) == report["test_images"]
    # The notebook itself compares the answers of the folder for timm with those of the run.
    assert vit_jax.load("flowers-timm").class_names == ("blue", "green", "red")
