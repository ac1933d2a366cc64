"""Machines as they are: little memory, no such device, no home folder, other systems, odd paths."""

import os
import pathlib
import pwd
import resource
import subprocess
import sys
import types

import pytest
from conftest import REPOSITORY, environment, launch, write_jpegs

from vit_jax.checkpoints.workdir import open_workdir
from vit_jax.cli import environment as cli_environment
from vit_jax.cli.arguments import find_images
from vit_jax.cli.errors import describe_error
from vit_jax.common.files import absolute, local_path
from vit_jax.data import __main__ as data_command
from vit_jax.data.builders import prepare
from vit_jax.data.sources import open_dataset
from vit_jax.inference.exporter import export
from vit_jax.interpret.report import write_report
from vit_jax.jobs.sweep import sweep
from vit_jax.weights.api import load, save

QUICKSTART = f"{REPOSITORY}/checkpoints/quickstart"
ROSE = f"{REPOSITORY}/docs/flowers/rose.png"
PREDICT = [sys.executable, "-m", "vit_jax.predict", QUICKSTART, ROSE]


def run(command, env=None, **options):
    return subprocess.run(
        command,
        cwd=options.pop("cwd", REPOSITORY),
        env=environment() | (env or {}),
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


# ------------------------------------------------------------------------------------- memory


def limit(gibibytes):
    def set_limit():
        size = int(gibibytes * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))

    return set_limit


@pytest.mark.parametrize("gibibytes", [0.3, 1.75])
def test_a_limit_too_small_for_jax_is_named_at_the_start(gibibytes):
    """JAX or OpenBLAS would abort the process, which nothing in it can prevent."""
    done = run(PREDICT, preexec_fn=limit(gibibytes))
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"Out of memory: this process may have {gibibytes:.2f} GiB (`ulimit -v`)"
    )


@pytest.mark.slow
def test_too_little_memory_for_a_run_is_no_traceback(tmp_path):
    """An image of 2048 x 2048 pixels has so many tokens that no attention matrix fits.

    The estimate refuses the run, or the system does, by how much memory is free.
    """
    photos = write_jpegs(tmp_path / "photos", {"a": 4, "b": 4})
    sizes = ["--config.batch_size=4", "--config.eval_batch_size=2", "--config.total_steps=1"]
    large = "--config.data.image_size=2048"
    command = launch(*sizes, folder=photos, workdir=tmp_path / "run")
    done = run([*command, large, "--config.data.prefetch=2"], preexec_fn=limit(24))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    refusals = ("Out of memory: ", "ValueError: The run doesn't fit into the memory of cpu: ")
    assert done.stderr.splitlines()[-1].startswith(refusals)


# ------------------------------------------------------------------------------------ devices

COMMANDS = """
import contextlib, sys
from vit_jax import demo, plan, predict, visualize
config = ["--config=configs/pretrain.py:Ti/16,imagenet2012", "--topology=local"]
source, image = sys.argv[1:]
for main, arguments in (
    (predict.main, [source, image]),
    (visualize.main, [source, image, "--out=/nowhere/at/all"]),
    (demo.main, [source]),
    (plan.main, config),
):
    try:
        main(arguments)
    except SystemExit as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("platforms", "reason"),
    [
        ("cuda", "this machine has none of JAX_PLATFORMS=cuda."),
        ("tpu,cpu", "Unable to initialize backend 'tpu'"),
    ],
)
def test_a_device_that_is_not_there_is_one_paragraph_in_every_command(platforms, reason):
    if cli_environment._has_nvidia_gpu() or cli_environment._has_tpu():
        pytest.skip("there is such a device")
    done = run([sys.executable, "-c", COMMANDS, QUICKSTART, ROSE], {"JAX_PLATFORMS": platforms})
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line.startswith(f"JAX can't start its devices: {reason}")
        assert "JAX_PLATFORMS=cpu chooses the CPU" in line and "(set JAX_PLATFORMS" not in line


# ---------------------------------------------------------------- no home, nothing can be written


@pytest.fixture
def no_home(monkeypatch):
    """The user of a container: HOME is not set, and the system doesn't know the user's number."""

    def nobody(*unused):
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(pwd, "getpwnam", nobody)


def test_without_a_home_compiled_programs_are_not_kept(no_home, monkeypatch, tmp_path):
    set_values = []
    config = types.SimpleNamespace(
        values={"jax_compilation_cache_dir": None}, update=lambda *x: set_values.append(x)
    )
    monkeypatch.setattr(cli_environment, "jax", types.SimpleNamespace(config=config))
    monkeypatch.chdir(tmp_path)
    cli_environment.keep_programs()
    for folder in ("/proc", "relative"):  # no folder can be made there; not a place of a cache
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        cli_environment.keep_programs()
    assert set_values == [] and list(tmp_path.iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cli_environment.keep_programs()
    ((name, folder),) = set_values
    assert name == "jax_compilation_cache_dir" and pathlib.Path(folder).is_dir()


def test_without_a_home_matplotlib_says_nothing_of_its_cache():
    code = "from vit_jax.cli.environment import start_logging as s; s(); import matplotlib"
    done = run([sys.executable, "-c", code], {"HOME": "/proc", "MPLCONFIGDIR": ""})
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("use", [local_path, load, lambda path: open_workdir(path).__enter__()])
def test_a_tilde_without_a_home_is_named(no_home, use):
    with pytest.raises(FileNotFoundError, match="~/run begins with ~, and this user has no home"):
        use("~/run")


def test_nothing_needs_to_be_writable():
    """Neither the checkout, nor the home folder, nor /dev/shm."""
    only_read = f"mount --bind {REPOSITORY} {REPOSITORY} && mount -o remount,bind,ro {REPOSITORY}"
    if run(["unshare", "-m", "sh", "-c", only_read]).returncode:
        pytest.skip("mounting is not permitted here")
    shell = f'{only_read}; mount -t tmpfs -o ro tmpfs /dev/shm; exec "$@"'
    env = {"HOME": "/proc", "JAX_COMPILATION_CACHE_DIR": ""}
    done = run(["unshare", "-m", "sh", "-c", shell, "sh", *PREDICT], env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rose" in done.stdout


def test_a_working_directory_that_is_gone_does_not_matter(tmp_path):
    shell = 'mkdir gone; cd gone; rmdir ../gone; exec "$@"'
    env = {"PYTHONPATH": str(REPOSITORY)}
    done = run(["sh", "-c", shell, "sh", *PREDICT], env, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "rose" in done.stdout


@pytest.mark.parametrize("use", [local_path, absolute, load, lambda x: find_images([x])])
@pytest.mark.parametrize("path", ["run", "."])
def test_a_relative_path_in_a_folder_that_is_gone_is_named(use, path, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError, match="started in is gone") as raised:
        use(path)
    assert str(raised.value).startswith(f"{path} can't be found")
    with pytest.raises(FileNotFoundError) as raised:
        os.getcwd()  # as libraries do
    assert "is gone" in describe_error(raised.value)


# ------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize(
    ("line", "status", "told"),
    [
        ('"$@" <&- >&- 2>&-', 0, ""),
        ('"$@" | head -c 0', 0, ""),
        ('"$@" > /dev/full', 1, "The output can't be written to stdout: No space left on device."),
    ],
)
def test_streams_that_cannot_be_used(line, status, told):
    done = run(["bash", "-o", "pipefail", "-c", line, "bash", *PREDICT])
    assert (done.returncode, done.stdout, done.stderr.strip()) == (status, "", told)


# -------------------------------------------------------------------------------------- paths

NO_PATHS = [
    ("s3://bucket/run", "s3: addresses"),
    ("az://box/run", "az: addresses"),
    ("hdfs://host/run", "hdfs: addresses"),
    ("http://host/run", "http: addresses"),
    ("file:///tmp/x", "file: addresses"),
    (pathlib.Path("gs://bucket/run"), "gs: addresses"),  # pathlib makes it gs:/bucket/run
    ("", "A path is empty"),
    (" \t", "A path is empty"),
    ("run\0", "holds a null byte"),
]


@pytest.mark.parametrize(("path", "told"), NO_PATHS)
def test_what_is_no_path_is_refused(path, told, settings, tmp_path, monkeypatch):
    """Workdirs, and every other place that takes a path. Nothing is made."""
    monkeypatch.chdir(tmp_path)
    checkpoint = load(QUICKSTART)
    uses = [
        lambda: open_workdir(path).__enter__(),
        lambda: sweep(settings, path),
        lambda: save(checkpoint, path, format="npz"),
        lambda: save(checkpoint, path, format="orbax"),
        lambda: write_report(checkpoint, [ROSE], path),
        lambda: prepare.convert(path),
    ]
    if path:  # None and "" stand for tfds's own folder
        uses.append(lambda: prepare.find("mnist", path))
    for use in uses:
        with pytest.raises(ValueError, match=told):
            use()
    for use in (
        lambda: load(path),
        lambda: export(checkpoint, path),
    ):  # have sentences of their own
        with pytest.raises(ValueError, match=f"{told}|hf://|isn't the address|a local path"):
            use()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["gs://", "gs:///run"])
@pytest.mark.parametrize("use", [absolute, load, lambda path: prepare.find("mnist", path)])
def test_a_bucket_without_a_name_is_refused(use, path):
    with pytest.raises(ValueError, match=f"{path} names no bucket"):
        use(path)


def test_a_bucket_where_only_this_machine_will_do_is_named_as_one():
    with pytest.raises(ValueError, match="gs://b/x is in a bucket, but a path of this machine"):
        local_path("gs://b/x")


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("s3://bucket/x.jpg", "s3://bucket/x.jpg can't be used: only paths of this machine"),
        ("gs://bucket/x.jpg", "gs://bucket/x.jpg is in a bucket"),
        ("", "A path is empty"),
    ],
)
def test_images_and_folders_that_are_no_paths_are_refused(argument, told, capsys):
    with pytest.raises(ValueError, match=told):
        find_images([argument])
    with pytest.raises(SystemExit, match=told):
        data_command.main(["check", argument])
    if argument:
        with pytest.raises(ValueError, match=told):
            open_dataset(argument)


@pytest.mark.parametrize("name", ["run:1", "a:b/c", "s3:run", "1:/x"])
def test_colons_in_names_are_no_addresses(name):
    assert local_path(name) == pathlib.Path(name)


# ------------------------------------------------------------------------------------ Windows


@pytest.mark.parametrize("missing", ["fcntl", "resource"])
@pytest.mark.parametrize("command", ["main", "predict", "data"])
def test_windows_is_told_to_use_wsl(command, missing, tmp_path):
    """Python for Windows lacks these two modules."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{missing!r}] = None")
    env = {"PYTHONPATH": str(tmp_path)}
    done = run([sys.executable, "-m", f"vit_jax.{command}"], env)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "On Windows, install WSL2" in done.stderr
    done = run([sys.executable, "-c", f"import vit_jax.{command}"], env)
    assert done.stderr.splitlines()[-1].startswith("ImportError: vit_jax needs Linux or macOS")
