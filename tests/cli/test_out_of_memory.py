"""What a command says where memory runs out before it can say it itself."""

import contextlib
import errno
import os
import resource
import subprocess
import sys

import jax
import pytest
from conftest import REPOSITORY, environment

from vit_jax.cli.memory import memory_paragraph, require_address_space
from vit_jax.common.memory import is_out_of_memory


class OpenCvError(Exception):
    """What OpenCV raises, as seen from its name alone."""


OpenCvError.__module__ = "cv2"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("std::bad_alloc"),
        RuntimeError("can't start new thread"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes."),
        ImportError("libjax_common.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        jax.errors.JaxRuntimeError("INTERNAL: YNNPACK operation failed: error"),
        OpenCvError("(-4:Insufficient memory) Failed to allocate 120000000000 bytes"),
    ],
)
def test_errors_of_memory_are_known(error):
    assert is_out_of_memory(error)
    later = ValueError("an image can't be read")
    later.__cause__ = error
    assert is_out_of_memory(later)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Out of luck"),
        ValueError("Out of memory is the name of a class"),
        jax.errors.JaxRuntimeError("INTERNAL: something else"),
        OSError(errno.ENOSPC, "No space left on device"),
        OpenCvError("(-215:Assertion failed) !ssize.empty()"),
    ],
)
def test_other_errors_are_not_taken_for_them(error):
    assert not is_out_of_memory(error)


def test_a_long_text_is_cut_and_an_empty_one_replaced():
    text = memory_paragraph(RuntimeError("RESOURCE_EXHAUSTED:\n 1\n" + "x" * 1000), "Take less.")
    assert text.startswith("Out of memory: RESOURCE_EXHAUSTED: 1 xxx") and len(text) < 400
    text = memory_paragraph(RuntimeError("INTERNAL: YNNPACK operation failed"), "Take less.")
    assert text == "Probably out of memory: INTERNAL: YNNPACK operation failed. Take less."
    assert memory_paragraph(MemoryError(), "Take less.") == (
        "Out of memory: Python could not allocate an array. Take less."
    )


@pytest.mark.parametrize(
    ("cpus", "gibibytes", "starts"),
    [(1, 1.7, False), (1, 1.9, True), (2, 1.9, False), (8, 2.4, False), (64, 2.6, True)],
)
def test_a_limit_is_refused_only_where_jax_would_abort(monkeypatch, cpus, gibibytes, starts):
    limits = (int(gibibytes * 2**30), resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cpus)), raising=False)
    with contextlib.nullcontext() if starts else pytest.raises(SystemExit, match="ulimit -v"):
        require_address_space()


def run(code):
    """Runs code as a command runs, after `install_memory_hooks`."""
    start = "from vit_jax.cli.memory import install_memory_hooks as e; e()\n"
    return subprocess.run(
        [sys.executable, "-c", start + code],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "code",
    [
        "raise MemoryError('std::bad_alloc')",
        "import threading; e = threading.Event()\n"
        "def fail(): raise MemoryError('std::bad_alloc')\n"
        "threading.Thread(target=fail).start(); e.wait()",  # else for ever
    ],
)
def test_an_error_that_nothing_catches_is_one_paragraph(code):
    done = run(code)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("Out of memory: std::bad_alloc. `ulimit -v`")
    assert len(done.stderr.strip().splitlines()) == 1


def test_other_errors_keep_their_traceback():
    done = run(
        "import threading\ndef fail(): return 1 / 0\n"
        "t = threading.Thread(target=fail); t.start(); t.join(); fail()"
    )
    assert done.returncode == 1 and done.stderr.count("ZeroDivisionError") == 2
