"""Runs of the command that tests break."""

import contextlib
import resource
import subprocess
import time

import jax
import pytest
from conftest import REPOSITORY, environment, launch

_MAIN = """
from absl import app
from vit_jax.cli.flags import parse_flags
from vit_jax.main import main
app.run(main, flags_parser=parse_flags)
"""


def start(folder, workdir, *options, before=""):
    """Starts the command on one device, after a few lines of Python that change it."""
    command = launch(
        "--config.eval_every=0",
        "--config.checkpoint.every=3",
        *options,
        folder=folder,
        workdir=workdir,
    )
    command[1:3] = ["-c", before + _MAIN]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, condition):
    deadline = time.monotonic() + 150
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def finish(process):
    """Returns what a process says until it ends: its status, stdout and stderr."""
    out, errors = process.communicate(timeout=150)
    return process.returncode, out, errors


def run(*args, **kwargs):
    """Starts a job and waits for its end."""
    return finish(start(*args, **kwargs))


@contextlib.contextmanager
def mounted(folder, megabytes):
    """A small file system of its own in a folder."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True
    )
    if made.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def limited(size):
    """Files of this process can't grow beyond some bytes, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 10**6)  # no file is cut off
    try:
        yield
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
