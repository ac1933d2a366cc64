import importlib.util
import logging
import os
import subprocess
import sys

import jax
import pytest
from conftest import REPOSITORY, environment

from vit_jax.cli import environment as cli_environment


@pytest.mark.parametrize(
    ("platforms", "expected"), [("cpu", True), ("cuda", False), ("tpu,cpu", False)]
)
def test_memory_settings_are_for_the_cpu_alone(platforms, expected):
    code = "from vit_jax.cli import environment; print(environment._on_cpu())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environment() | {"JAX_PLATFORMS": platforms},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(expected)


def test_compiled_programs_are_kept_for_the_next_start(tmp_path):
    """In the user's cache, where JAX was not told another place."""
    code = (
        "import jax; from vit_jax.cli import environment; environment.keep_programs();"
        "print(jax.config.jax_compilation_cache_dir)"
    )

    def place(**variables):
        env = environment() | {"XDG_CACHE_HOME": str(tmp_path), **variables}
        return subprocess.run(
            [sys.executable, "-c", code],
            env={k: v for k, v in env.items() if v},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    assert place(JAX_COMPILATION_CACHE_DIR="/told") == "/told"
    assert place(JAX_COMPILATION_CACHE_DIR="").startswith(str(tmp_path / "vit_jax"))


# ------------------------------------------------------------------------------------ devices

PATCHED = """
import pathlib
from jax._src import hardware_utils
from vit_jax.cli import environment
{}
environment.start_logging()
environment.start_devices()
import jax
print(jax.config.values["jax_platforms"] or "any", jax.default_backend())
"""
GPU = "environment._NVIDIA_DRIVER = pathlib.Path('.'); hardware_utils._NVIDIA_GPU_DEVICES = ['/']"


def start(code, packages, **variables):
    """What a process prints that starts its devices with some patches and installed packages."""
    env = environment() | {"JAX_PLATFORMS": "", "PYTHONPATH": str(packages), **variables}
    done = subprocess.run(
        [sys.executable, "-c", PATCHED.format(code)],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip(), done.stderr


def write_package(folder, name, source):
    path = folder.joinpath(*name.split("."))
    path.mkdir(parents=True)
    (path / "__init__.py").write_text(source)


no_plugin = pytest.mark.skipif(
    importlib.util.find_spec("jax_plugins") is not None, reason="JAX's plug-in for GPUs is there"
)


@no_plugin
def test_a_gpu_that_is_not_used_gets_one_warning_that_says_what_to_install(tmp_path):
    printed, warnings = start(GPU, tmp_path)
    assert printed.endswith("cpu")
    (line,) = warnings.splitlines()
    assert "JAX's plug-in for NVIDIA GPUs is not installed." in line
    assert '`pip install -e ".[cuda]"`' in line and '`pip install -e ".[cuda12]"`' in line


@no_plugin
def test_the_warning_has_the_reason_of_a_broken_plugin(tmp_path):
    source = "def initialize(): raise RuntimeError('cuDNN is too old')"
    write_package(tmp_path, "jax_plugins.xla_cuda12", source)
    (line,) = start(GPU, tmp_path)[1].splitlines()
    assert "JAX runs on the CPU: cuDNN is too old. To use the GPU" in line


def test_nothing_is_said_without_a_gpu_or_to_who_chose_the_cpu(tmp_path):
    absent = "environment._has_nvidia_gpu = lambda: False"
    assert start(absent, tmp_path)[1] == ""
    assert start(GPU, tmp_path, JAX_PLATFORMS="cpu") == ("cpu cpu", "")


# Stands for a plug-in: its devices are those of the CPU, or it can't start them.
PLUGIN = """
from jax._src import xla_bridge
def factory():
    {}
    return xla_bridge.make_cpu_client()
def initialize():
    xla_bridge.register_backend_factory({!r}, factory, priority=500, fail_quietly=False)
"""


@no_plugin
@pytest.mark.parametrize("plugin", [None, "rocm"])
def test_libtpu_is_started_only_where_there_is_a_tpu(tmp_path, plugin):
    """A package that says when it is started stands for libtpu; another plug-in is used."""
    if plugin:
        write_package(tmp_path, "jax_plugins.xla_rocm7", PLUGIN.format("print('rocm')", plugin))
    write_package(tmp_path, "libtpu", "def get_library_path(): return None")
    absent = (
        "environment._has_nvidia_gpu = lambda: False; from jax._src import xla_bridge as b;"
        "b._backend_factories['tpu'].factory.func.__code__ = (lambda **_: print('tpu')).__code__"
    )
    there = f"{absent}; environment._has_tpu = lambda: True"
    expected = [plugin] if plugin else []
    *started, last = start(absent, tmp_path)[0].splitlines()
    assert (started, last) == (expected, "any cpu")
    *started, last = start(there, tmp_path)[0].splitlines()
    assert "tpu" in started


@no_plugin
def test_a_gpu_that_does_not_start_gets_one_warning_and_the_cpu(tmp_path):
    source = PLUGIN.format("raise RuntimeError('the driver is too old')", "cuda")
    write_package(tmp_path, "jax_plugins.xla_cuda13", source)
    write_package(tmp_path, "libtpu", "def get_library_path(): return None")
    printed, warnings = start(GPU, tmp_path)
    assert printed == "cpu cpu"
    (line,) = warnings.splitlines()
    assert (
        "JAX runs on the CPU: Unable to initialize backend 'cuda': the driver is too old." in line
    )


@no_plugin
def test_a_plugin_for_other_gpus_is_not_taken_for_nvidias(tmp_path):
    write_package(tmp_path, "jax_plugins.xla_rocm7", "def initialize(): pass")
    assert "JAX's plug-in for NVIDIA GPUs is not installed." in start(GPU, tmp_path)[1]


@no_plugin
@pytest.mark.parametrize(
    ("plugin", "has_gpu", "on_cpu"),
    [("cuda13", False, True), ("cuda13", True, False), ("rocm7", False, False)],
)
def test_a_plugin_for_nvidia_gpus_without_one_leaves_the_cpu(tmp_path, plugin, has_gpu, on_cpu):
    write_package(tmp_path, f"jax_plugins.xla_{plugin}", "def initialize(): pass")
    code = f"environment._has_nvidia_gpu = lambda: {has_gpu}; print(environment._on_cpu())"
    assert start(code, tmp_path)[0].splitlines()[0] == str(on_cpu)


def test_devices_that_are_not_there_get_one_paragraph(tmp_path):
    env = environment() | {"JAX_PLATFORMS": "nonsense"}
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.predict", "checkpoints/quickstart", "docs/flowers"],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("JAX can't start its devices: Unable to initialize backend")
    assert "Traceback" not in done.stderr


def test_a_start_of_several_processes_says_that_it_waits(monkeypatch, caplog):
    def refuse(*arguments, **options):
        raise RuntimeError("DEADLINE_EXCEEDED.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    caplog.set_level(logging.INFO, "vit_jax")
    with pytest.raises(SystemExit, match="can't be connected"):
        cli_environment.join_processes("10.0.0.1:1234", 4, 0, 100)
    assert caplog.messages == [
        "Waiting for all 4 processes at 10.0.0.1:1234, for 5 minutes at most."
    ]


@pytest.mark.parametrize(
    ("on_cpu", "has_gpu", "flags", "expected"),
    [
        (True, True, "--xla_dump_to=a", "--xla_dump_to=a"),
        (False, True, "--xla_dump_to=a", "--xla_dump_to=a --xla_gpu_enable_triton_gemm=false"),
        (False, True, "", "--xla_gpu_enable_triton_gemm=false"),
        (False, True, "--xla_gpu_enable_triton_gemm=true", "--xla_gpu_enable_triton_gemm=true"),
        (False, False, "--xla_dump_to=a", "--xla_dump_to=a"),  # a TPU, or a GPU of another maker
    ],
)
def test_matmuls_are_left_to_cublas_on_nvidia_gpus(monkeypatch, on_cpu, has_gpu, flags, expected):
    monkeypatch.setattr(cli_environment, "_on_cpu", lambda: on_cpu)
    monkeypatch.setattr(cli_environment, "_has_nvidia_gpu", lambda: has_gpu)
    monkeypatch.setenv("XLA_FLAGS", flags)
    cli_environment.prefer_cublas()
    assert os.environ["XLA_FLAGS"] == expected


def test_xla_knows_the_flag_of_cublas():
    """XLA ends the process at a flag that it doesn't know."""
    env = environment() | {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}
    code = "import jax; jax.jit(lambda x: x + 1)(1.0)"
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
