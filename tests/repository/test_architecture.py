"""The rules of docs/architecture.md that a program can check.

Each rule is a function that returns the lines which break it. Its test finds none in the package,
and finds one in a small package that breaks the rule.
"""

import ast
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "vit_jax"
# A file imports from its own room and from those before it. Commands come last.
ROOMS = [
    "common",
    "config",
    "data",
    "models",
    "training",
    "checkpoints",
    "weights",
    "evaluation",
    "jobs",
    "inference",
    "interpret",
    "analysis",
    "cli",
    "commands",
]
# What `import vit_jax.models` must not wait for.
HEAVY = {"grain", "tensorflow_datasets", "cv2", "orbax"}


# ------------------------------------------------------------------------------------ reading


@pytest.fixture
def package(tmp_path):
    """Returns a function that writes {path: source} as a package and returns its folder."""

    def write(sources):
        for name, source in sources.items():
            path = tmp_path / "vit_jax" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return tmp_path / "vit_jax"

    return write


def is_command(path, package):
    """Returns True for files that are run: those at the top, and a room's __main__.py."""
    at_top = path.parent == package and path.name != "__init__.py"
    return at_top or path.name == "__main__.py"


def room(path, package):
    """Returns the room of a file of the package."""
    return "commands" if is_command(path, package) else path.relative_to(package).parts[0]


def sources(package):
    """Yields (path, syntax tree) of the files of a package, but of its own __init__.py."""
    for path in sorted(package.rglob("*.py")):
        if path != package / "__init__.py":
            yield path, ast.parse(path.read_text())


def imports(tree, package):
    """Yields the files of the package that a file imports, or the rooms' folders."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the room"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            first, *parts = name.split(".")
            if first == package.name and parts:
                yield found(package, parts)


def found(package, parts):
    """Returns the file or folder of a dotted name; the last part may be a name within it."""
    for end in (len(parts), len(parts) - 1):
        path = package.joinpath(*parts[:end])
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        if path != package and path.is_dir():
            return path / "__init__.py"
    return package / "__init__.py"


# -------------------------------------------------------------------------------------- rules


def imports_of_later_rooms(package):
    for path, tree in sources(package):
        own = ROOMS.index(room(path, package))
        for target in imports(tree, package):
            if target == package / "__init__.py" or ROOMS.index(room(target, package)) > own:
                yield f"{path.relative_to(package)} imports {target.relative_to(package)}"


def imports_of_commands(package):
    for path, tree in sources(package):
        for target in imports(tree, package):
            if is_command(target, package):
                yield f"{path.relative_to(package)} imports {target.relative_to(package)}"


def logic_in_init(package):
    """Yields what an __init__.py holds but a docstring, imports, lazy ones, and `__all__`.

    The package's own also has its version, refuses a Python that can't run it, and handles Ctrl-C
    if it is imported for one of its commands.
    """

    def allowed(node, is_own):
        own_names = ("__version__", "_problem", "_started", "_is_command")
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) if name in own_names:
                return is_own
            case ast.If():
                return is_own
            case ast.Import() | ast.ImportFrom():
                return True
            case ast.Expr(value=ast.Constant(value=str())):
                return True
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                return True
            case ast.With(items=[item]):
                lazy = ast.unparse(item.context_expr) == "epy.lazy_api_imports(globals())"
                return lazy and all(isinstance(x, ast.ImportFrom) for x in node.body)
        return False

    for path in sorted(package.rglob("__init__.py")):
        for node in ast.parse(path.read_text()).body:
            if not allowed(node, path.parent == package):
                yield f"{path.relative_to(package)}: {ast.unparse(node)}"


def misplaced_main_guards(package):
    """Yields commands that can't be run, and files of rooms that look as if they were to be run."""
    for path, tree in sources(package):
        guarded = any(
            isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"
            for node in tree.body
        )
        if path.name != "__main__.py" and guarded != is_command(path, package):
            yield f"{path.relative_to(package)} {'has' if guarded else 'lacks'} a main guard"


def layouts_outside_parallel(package):
    words = ("pmap(", "pmean", "psum", "NamedSharding", "shard_map", "jax.sharding", "axis_index")
    for path, _ in sources(package):
        if path != package / "training" / "parallel.py":
            for word in words:
                if word in path.read_text():
                    yield f"{path.relative_to(package)} uses {word}"


def imports_of_configs(package):
    for path, tree in sources(package):
        for node in ast.walk(tree):
            names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "configs" for name in names):
                yield f"{path.relative_to(package)}: {ast.unparse(node)}"


# For each rule: a package that breaks it, and what is found. `data/good.py` breaks none.
GOOD = {
    "__init__.py": "from etils import epy\n",
    "common/files.py": "",
    "data/__init__.py": '"""Data."""\n\nfrom vit_jax.data.good import f\n\n__all__ = ["f"]\n',
    "data/good.py": "from vit_jax.common import files\nimport vit_jax.common.files\n",
    "data/__main__.py": "from vit_jax.cli import flags\n",
    "cli/flags.py": "from vit_jax.data.good import f\nfrom vit_jax import data\n",
    "main.py": "import vit_jax.cli.flags\nif __name__ == '__main__':\n    print()\n",
    "training/parallel.py": "import jax.sharding\n",
}
VIOLATIONS = [
    (
        imports_of_later_rooms,
        {"data/bad.py": "def f():\n    from vit_jax.training import parallel\n"},
        ["data/bad.py imports training/parallel.py"],
    ),
    (
        imports_of_later_rooms,
        {"common/bad.py": "from vit_jax import data\n"},
        ["common/bad.py imports data/__init__.py"],
    ),
    (
        imports_of_later_rooms,
        {"data/bad.py": "import vit_jax.cli.flags as f\n"},
        ["data/bad.py imports cli/flags.py"],
    ),
    (
        imports_of_later_rooms,
        {"cli/bad.py": "from vit_jax import load\n"},
        ["cli/bad.py imports __init__.py"],
    ),
    (
        imports_of_commands,
        {"bad.py": "from vit_jax.main import run\n"},
        ["bad.py imports main.py"],
    ),
    (
        logic_in_init,
        {"data/__init__.py": "NAMES = []\n"},
        ["data/__init__.py: NAMES = []"],
    ),
    (
        logic_in_init,
        {"data/__init__.py": "if 1:\n    f()\n"},
        ["data/__init__.py: if 1:\n    f()"],
    ),
    (
        logic_in_init,
        {"__init__.py": "with epy.lazy_api_imports(globals()):\n    f()\n"},
        ["__init__.py: with epy.lazy_api_imports(globals()):\n    f()"],
    ),
    (misplaced_main_guards, {"bad.py": ""}, ["bad.py lacks a main guard"]),
    (
        misplaced_main_guards,
        {"data/bad.py": "if __name__ == '__main__':\n    f()\n"},
        ["data/bad.py has a main guard"],
    ),
    (
        layouts_outside_parallel,
        {"jobs/parallel.py": "jax.lax.psum(x)\n"},
        ["jobs/parallel.py uses psum"],
    ),
    (
        imports_of_configs,
        {"data/bad.py": "from configs import quickstart\n"},
        ["data/bad.py: from configs import quickstart"],
    ),
    (
        imports_of_configs,
        {"data/bad.py": "import configs.quickstart\n"},
        ["data/bad.py: import configs.quickstart"],
    ),
]
RULES = list(dict.fromkeys(rule for rule, _, _ in VIOLATIONS))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rules(rule):
    assert list(rule(PACKAGE)) == []


@pytest.mark.parametrize(("rule", "bad", "lines"), VIOLATIONS)
def test_a_violation_is_found(rule, bad, lines, package):
    assert list(rule(package(GOOD))) == []
    assert list(rule(package(bad))) == lines


def test_every_folder_of_the_package_is_a_room():
    folders = {path.parent.relative_to(PACKAGE).parts[:1] for path in PACKAGE.rglob("*.py")}
    assert folders - {()} == {(name,) for name in ROOMS if name != "commands"}


# ------------------------------------------------------------------ what programs import


def imported(program):
    """Runs a program in an interpreter of its own; returns which of `HEAVY` it has imported."""
    ending = f"\nimport sys\nprint(*{HEAVY} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program + ending],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "program",
    [
        "import vit_jax.models; vit_jax.models.build('S/16', num_classes=1)",
        "from vit_jax.training import optim, parallel, setup, step",
        "import runpy, sys; sys.argv[1:] = ['S/16']\n"
        "runpy.run_module('vit_jax.cost', run_name='__main__', alter_sys=True)",
    ],
    ids=["models", "training", "cost"],
)
def test_mathematics_imports_no_heavy_library(program):
    assert imported(program) == set()


def test_a_heavy_library_is_found():
    assert imported("from vit_jax.data import pipeline") >= {"grain"}


@pytest.mark.slow
def test_a_whole_run_does_not_import_tensorflow(image_folder, tmp_path):
    """Trains for two steps where an import of TensorFlow ends the program."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('TensorFlow imported')")
    program = f"""
import vit_jax.data.builders.tf_flowers
import vit_jax.main
from vit_jax.config.defaults import default
from vit_jax.jobs.train import train
c = default()
c.model.update(variant="Ti/16", width=16, depth=1, mlp_dim=16, num_heads=1)
c.data.name, c.data.image_size = {str(image_folder)!r}, 16
c.batch_size = c.eval_batch_size = 8
c.total_steps = 2
train(c, {str(tmp_path / "run")!r})
"""
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    refused = subprocess.run([sys.executable, "-c", "import tensorflow"], env=environment)
    assert refused.returncode != 0  # so the program above would have failed


def test_git_keeps_all_that_is_written_here():
    """A pattern of `.gitignore` for what runs leave behind must not take a source, too."""
    git = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "--directory"]
    listed = subprocess.run(
        [*git, "--", "*.py", "*.md", "*.sh"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    assert [name for name in listed.stdout.split() if not name.endswith("/")] == []
