"""The rules that keep the house in order: imports go one way, and TensorFlow stays out."""

import ast
import os
import subprocess
import sys

from conftest import REPOSITORY

PACKAGE = REPOSITORY / "vit_jax"

# A file imports only from those before it.
ORDER = [
    "datasets.rendered_flowers",
    "datasets.tf_flowers",
    "datasets.prepare",
    "datasets.vtab",
    "preprocess",
    "randaugment",
    "data",
    "models.patches",
    "models.positions",
    "models.layers",
    "models.attention",
    "models.axial",
    "models.encoder",
    "models.resnet",
    "models.vit",
    "models.masked",
    "models.variants",
    "models",
    "cost",
    "objectives",
    "config",
    "optim",
    "step",
    "parallel",
    "checkpoint",
    "interop.layouts",
    "interop.weights",
    "interop.npz",
    "interop.torch",
    "interop.surgery",
    "interop.download",
    "interop",
    "fewshot",
    "interpret",
    "metrics",
    "train",
    "figures",
    "study",
    "main",
    "convert",
    "predict",
    "visualize",
    "demo",
    "export",
    "hlo",
    "plan",
]


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported(path):
    """The modules of the package that a file imports, as names below it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vit_jax"):
            base = node.module.removeprefix("vit_jax").lstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}".lstrip(".")
                yield name if name in ORDER else base


def test_imports_follow_the_map():
    files = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    files.pop("datasets")
    files.pop("__init__")  # imports the classifier when it is asked for
    assert set(files) == set(ORDER)
    for name, path in files.items():
        allowed = ORDER[: ORDER.index(name)]
        assert set(imported(path)) <= set(allowed), f"{name} imports from below it"


def test_only_parallel_speaks_of_devices_layout():
    words = ("pmap(", "pmean", "psum", "NamedSharding", "shard_map", "jax.sharding", "axis_index")
    for path in PACKAGE.rglob("*.py"):
        if path.name != "parallel.py":
            assert not [word for word in words if word in path.read_text()], path


def test_the_package_never_imports_configs():
    for path in PACKAGE.rglob("*.py"):
        assert "import configs" not in path.read_text()
        assert "from configs" not in path.read_text()


def test_a_whole_run_does_not_import_tensorflow(image_folder, tmp_path):
    """Trains for two steps where importing TensorFlow ends the program."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('TensorFlow imported')")
    program = f"""
from vit_jax import config, main, train
import vit_jax.data.builders.tf_flowers
c = config.default()
c.model.update(variant="Ti/16", width=16, depth=1, mlp_dim=16, num_heads=1)
c.data.name, c.data.image_size = {str(image_folder)!r}, 16
c.batch_size = c.eval_batch_size = 8
c.total_steps = 2
train.train(c, {str(tmp_path / "run")!r})
"""
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    refused = subprocess.run([sys.executable, "-c", "import tensorflow"], env=environment)
    assert refused.returncode != 0  # so the program above would have noticed
