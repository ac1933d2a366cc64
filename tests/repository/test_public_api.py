"""Every public name has a docstring, and an example that runs."""

import doctest
import inspect
import subprocess
import sys

import pytest
from conftest import REPOSITORY, environment

import vit_jax

FUNCTIONS = (
    *("build", "load", "save", "adapt", "Classifier"),
    *("default_config", "train", "evaluate", "fit"),
)


def examples(text, name):
    return doctest.DocTestParser().get_doctest(text, {}, name, None, 0)


def test_the_public_names_are_these():
    assert set(vit_jax.__all__) == {*FUNCTIONS, "VARIANTS"}
    assert set(vit_jax.__all__) <= set(dir(vit_jax))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("train", "fit") else ())
        for name in (*FUNCTIONS, "VARIANTS")
    ],
)
def test_the_example_of_a_name_runs(name, monkeypatch, tmp_path, image_folder):
    """`photos` and `folder` stand for a folder of images and a folder to write to."""
    monkeypatch.chdir(REPOSITORY)
    text = vit_jax.__doc__ if name == "VARIANTS" else inspect.getdoc(getattr(vit_jax, name))
    example = examples(text, name)
    assert f"vit_jax.{name}" in "".join(x.source for x in example.examples)
    example.globs = {"vit_jax": vit_jax, "photos": str(image_folder), "folder": tmp_path}
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
    assert results.attempted and not results.failed


def test_a_wrong_example_would_be_found():
    wrong = examples(">>> 1 + 1\n3\n", "wrong")
    assert doctest.DocTestRunner(verbose=False).run(wrong, out=lambda text: None).failed == 1


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, vit_jax; print([m for m in ('jax', 'grain', 'cv2') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
