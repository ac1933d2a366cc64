"""Where the package can be imported, what it says of itself, and of what is to be installed."""

import ast
import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, environment

import vit_jax

REFUSAL = """
import importlib.util, sys
sys.argv, sys.orig_argv = {argv}, {orig_argv}
{patch}
import vit_jax
"""
OLD = "sys.version_info, sys.version = (3, 10, 13), '3.10.13 (main)'"
EMPTY = "find = importlib.util.find_spec; importlib.util.find_spec = lambda x: x != 'etils' or None"


def python(code, folder):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment(), capture_output=True, text=True
    )


@pytest.mark.parametrize("copied", [True, False])
def test_a_clone_below_does_not_hide_the_package(tmp_path, copied):
    """Python would take the clone's folder for a namespace package, if it found nothing else."""
    clone = tmp_path / "vit_jax"
    if copied:
        shutil.copytree(REPOSITORY / "vit_jax", clone / "vit_jax")
        shutil.copy(REPOSITORY / "README.md", clone)
    else:
        clone.symlink_to(REPOSITORY)
    code = (
        f"import sys; assert sys.path[0] == ''; from vit_jax import Classifier, __version__;"
        f"print(Classifier({str(REPOSITORY / 'checkpoints/quickstart')!r}).predict("
        f"[{str(REPOSITORY / 'docs/flowers/rose.png')!r}])[0][0].label)"
    )
    done = python(code, tmp_path)
    hint = "an older editable install: run `pip install -e .` again"
    assert done.stdout == "rose\n", f"{done.stderr} ({hint})"
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.cost", "Ti/16"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0


def test_the_version_has_one_source():
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "--quiet", "--version"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == vit_jax.__version__
    assert vit_jax.__version__ not in (REPOSITORY / "setup.py").read_text()


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (OLD, "vit_jax needs Python 3.11 or newer. This is 3.10.13."),
        (EMPTY, f"The packages that vit_jax needs are not installed for {sys.executable}."),
    ],
)
def test_a_python_that_can_not_run_it_gets_one_line(patch, message):

    def start(argv, *started):
        code = REFUSAL.format(argv=argv, orig_argv=["python", *started, *argv[1:]], patch=patch)
        return python(code, REPOSITORY)

    for module in ("vit_jax.main", "vit_jax", "benchmarks.soak"):
        command = start(["-m", "x"], "-m", module)
        assert command.returncode == 1
        assert command.stderr.startswith(message) and len(command.stderr.splitlines()) == 1
    for program in (start(["x.py"], "x.py"), start(["-m", "vit_jax"], "-m", "vit_jax_other")):
        assert f"ImportError: {message}" in program.stderr


STATE = "print(signal.getsignal(signal.SIGINT).__name__, sys.excepthook.__name__)"


@pytest.mark.parametrize(
    ("package", "started", "state"),
    [
        ("other", ["-m", "other"], "default_int_handler excepthook"),
        ("benchmarks", ["-m", "benchmarks"], "handle hook"),
        ("benchmarks", ["-mbenchmarks"], "handle hook"),
    ],
)
def test_ctrl_c_is_handled_in_own_commands_alone(tmp_path, package, started, state):
    """Another program, started by `python -m`, imports the library."""
    folder = tmp_path / package
    folder.mkdir()
    folder.joinpath("__init__.py").write_text("import vit_jax")
    folder.joinpath("__main__.py").write_text(f"import signal, sys; {STATE}")
    done = subprocess.run(
        [sys.executable, *started, "vit_jax"],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == state


def test_make_refuses_an_old_python_before_it_installs_anything(tmp_path):
    for name in ("Makefile", "setup.py"):
        shutil.copy(REPOSITORY / name, tmp_path)
    old = tmp_path / "python3.10"
    old.write_text(
        f"""#!/bin/sh\nexec {sys.executable} -c "import sys; {OLD}; exec(sys.argv[1])" "$2"\n"""
    )
    old.chmod(0o755)
    done = subprocess.run(
        ["make", "quickstart", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True
    )
    line = done.stderr.splitlines()[0]
    assert line == (
        f"vit_jax needs Python 3.11 or newer. {old} is 3.10.13. "
        f"Choose another: make quickstart PYTHON=python3.12"
    )
    assert not (tmp_path / ".venv").exists()


# ----------------------------------------------------------------------------------- extras


def extras():
    """The names of `extras_require` in setup.py."""
    for node in ast.walk(ast.parse((REPOSITORY / "setup.py").read_text())):
        if isinstance(node, ast.keyword) and node.arg == "extras_require":
            return {key.value for key in node.value.keys}


def texts():
    """Yields (path, text) of what users read, and of the code whose messages they read."""
    for pattern in ("*.md", "docs/*.md", "Makefile", "scripts/*.sh", "vit_jax/**/*.py", "*/*.md"):
        for path in sorted(REPOSITORY.glob(pattern)):
            yield path, path.read_text()


def test_extras_are_named_one_way_and_exist():
    known, named = extras(), set()
    assert {"cuda", "cuda12", "cuda13", "tpu"} <= known
    for path, text in texts():
        joined = re.sub(r"[\"']\s*\n\s*f?[\"']", "", text)  # literals on two lines
        own = path.name == "repository.py"  # whose command is for a package that is installed
        assert own or "vit_jax[" not in joined, path
        named |= set(re.findall(r"install_command\([\"'](\w+)[\"']\)", text))
        for found in re.findall(r"pip install[^\n`]*?\.\[([\w,]+)\]", joined):
            named |= set(found.split(","))
    assert named <= known
    assert {"cuda", "cuda12", "demo", "gcs", "onnx", "prepare", "tpu"} <= named
