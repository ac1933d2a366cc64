"""What a wheel holds besides code, and that it is found from an empty folder."""

import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from conftest import REPOSITORY, environment

from vit_jax.common.repository import find_config, find_in_repository

SLOW = pytest.mark.slow  # of what needs a wheel
SOURCE = (  # what a wheel is made of
    *("vit_jax", "configs", "checkpoints/quickstart"),
    *("setup.py", "pyproject.toml", "README.md", "checkpoints/published.csv"),
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what a wheel installs, which was made from a source distribution."""
    if None in map(importlib.util.find_spec, ("pip", "setuptools")):
        pytest.skip("pip or setuptools is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in SOURCE:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, source / name)
    (source / "checkpoints" / "download.npz").touch()

    def call(*command, cwd):
        command = [sys.executable, *command]
        subprocess.run(command, cwd=cwd, env=environment(), check=True, capture_output=True)

    call("setup.py", "-q", "sdist", f"--dist-dir={folder}", cwd=source)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (unpacked,) = (folder / "sdist").iterdir()
    options = ["-q", "--no-deps", "--no-index", "--no-build-isolation", f"--wheel-dir={folder}"]
    call("-m", "pip", "wheel", *options, ".", cwd=unpacked)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def run(installed, folder, *command):
    env = environment() | {"PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


@SLOW
def test_it_holds_configurations_the_list_and_the_small_checkpoint(installed):
    own = installed / "vit_jax" / "repository"
    for pattern in ("configs/*.py", "checkpoints/published.csv", "checkpoints/quickstart/**/*"):
        expected = {x.relative_to(REPOSITORY): x for x in REPOSITORY.glob(pattern) if x.is_file()}
        assert expected
        for name, original in expected.items():
            assert (own / name).read_bytes() == original.read_bytes()
    assert sorted(x.name for x in (own / "checkpoints").iterdir()) == [
        "published.csv",
        "quickstart",
    ]
    assert {x.name for x in installed.iterdir() if x.suffix != ".dist-info"} == {"vit_jax"}


@SLOW
@pytest.mark.parametrize(
    ("config", "variant"),
    [
        (["--config=configs/quickstart.py"], "Nano/8"),
        (["--config", "configs/pretrain.py:Ti/16,PHOTOS"], "Ti/16"),
        (["--config=finetune:S/16,cifar10"], "S/16"),
    ],
)
def test_a_configuration_is_found_and_said(installed, tmp_path, config, variant):
    done = run(installed, tmp_path, "-m", "vit_jax.main", *config, "--print_config")
    assert f"--config.model.variant={variant}" in done.stdout.splitlines()
    path = config[-1].removeprefix("--config=").partition(":")[0]
    name = f"configs/{pathlib.PurePath(path).stem}.py"
    assert done.stderr == (
        f"There is no {name} in this folder: taking the package's own, "
        f"{installed / 'vit_jax' / 'repository' / name}.\n"
    )


def test_an_image_is_made_of_the_same_files():
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line[0] == "!"}
    assert lines[1] == "*" and allowed == {*SOURCE, "constraints.txt"}
    commands = (REPOSITORY / "Dockerfile").read_text()
    setup = (REPOSITORY / "setup.py").read_text()
    assert all(f'"{extra}": ' in setup for extra in re.findall(r"EXTRA=([a-z]+)", commands))


def test_a_file_of_the_current_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "configs/quickstart.py"
    assert find_in_repository(name) == str(REPOSITORY / name)
    (tmp_path / "configs").mkdir()
    assert find_in_repository("configs/none.py") == "configs/none.py"
    (tmp_path / name).touch()
    assert find_in_repository(name) == name


def test_a_configuration_has_one_name_in_several_spellings(tmp_path, monkeypatch):
    """A file of that path comes first, then `configs/NAME.py` here, then the package's own."""
    monkeypatch.chdir(tmp_path)
    spellings = ("masked", "masked.py", "configs/masked", "vit_jax/configs/masked.py")
    own = str(REPOSITORY / "configs" / "masked.py")
    assert [find_config(name) for name in spellings] == [own] * 4
    for path in ("", ".", "none", "other/masked.py", "/masked.py", "./masked", "configs/", "a\nb"):
        assert find_config(path) == path
    (tmp_path / "masked").mkdir()  # a folder is no configuration
    assert find_config("masked") == own
    for name in ("masked", "mine"):
        (tmp_path / "configs").mkdir(exist_ok=True)
        (tmp_path / "configs" / f"{name}.py").touch()
    assert [find_config(name) for name in spellings] == ["configs/masked.py"] * 4
    assert find_config("mine") == "configs/mine.py"
    (tmp_path / "masked.py").touch()
    assert find_config("masked.py") == "masked.py" and find_config(own) == own


PROGRAM = """
import json, pathlib, vit_jax
from vit_jax.common import repository
from vit_jax.weights import catalogue
print(json.dumps({
    "path": vit_jax.load("checkpoints/quickstart").path,
    "published": len(catalogue.published()),
    "example": catalogue.published_source("B/16"),
    "downloads": str(catalogue._downloads()),
    "install": repository.install_command("onnx"),
    "others": [repository.find_in_repository(x) for x in ("setup.py", "configs/../x", "/configs")],
}))
"""


@SLOW
def test_checkpoints_are_found_by_name(installed, tmp_path):
    found = json.loads(run(installed, tmp_path, "-c", PROGRAM).stdout)
    lines = (REPOSITORY / "checkpoints" / "published.csv").read_text().splitlines()
    assert found == {
        "path": str(installed / "vit_jax" / "repository" / "checkpoints" / "quickstart"),
        "published": len(lines) - 1,
        "example": "B/16",
        "downloads": str(tmp_path / "cache" / "vit_jax" / "checkpoints"),
        "install": 'pip install "vit_jax[onnx]"',
        "others": ["setup.py", "configs/../x", "/configs"],
    }
