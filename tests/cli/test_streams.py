"""Streams that can't be used; whole commands are in tests/faults/test_machines.py."""

import io
import subprocess
import sys

import pytest
from conftest import REPOSITORY, environment

from vit_jax.cli.arguments import find_images, names_on_stdin
from vit_jax.common.bars import progress_bar

START = """
import sys
from vit_jax.cli.streams import prepare_streams
prepare_streams()
"""


def shell(line, code):
    """Runs a line of bash, in which "$@" is a program of Python that begins as a command."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line, "bash", sys.executable, "-c", START + code],
        cwd=REPOSITORY,
        env=environment() | {"PYTHONUNBUFFERED": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("line", "printed"),
    [
        ('"$@"', ("out\n", "error\n")),
        ('"$@" <&-', ("out\n", "error\n")),
        ('"$@" 2>&-', ("out\n", "")),
        ('"$@" >&-', ("", "error\n")),
        ('"$@" <&- >&- 2>&-', ("", "")),
    ],
)
def test_a_stream_that_is_not_there_does_not_matter(line, printed):
    done = shell(line, "print('out'); print('error', file=sys.stderr); sys.stdin.read()")
    assert (done.returncode, (done.stdout, done.stderr)) == (0, printed)


def test_logging_does_not_close_a_stream_that_is_not_there():
    """When another handler takes its place, that of absl closes any stream but Python's own."""
    code = """
import logging
from absl import logging as absl_logging
from vit_jax.cli.streams import GuardedStream
absl_logging.use_absl_handler()
sys.stderr = GuardedStream(sys.stderr, print)
logging.basicConfig(force=True)
print("error", file=sys.stderr)
"""
    assert shell('"$@" 2>&-', code).returncode == 0


@pytest.mark.parametrize("code", ["print('out')", "print('out', flush=True)", "print('o' * 20000)"])
def test_output_that_cannot_be_written_is_one_line(code):
    """Whether it is written at once, or when Python ends."""
    done = shell('"$@" > /dev/full', code)
    assert done.returncode == 1
    assert done.stderr == "The output can't be written to stdout: No space left on device.\n"


def test_output_without_a_reader_is_dropped_at_the_end():
    done = shell('"$@" | true', "import time; time.sleep(0.2); print('out')")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_stream_gives_its_number_to_no_other_file(tmp_path):
    """Else what a library prints on stderr would be in the first file that is opened."""
    file = tmp_path / "a"
    code = f"import os; a = open({str(file)!r}, 'w'); os.write(2, b'printed'); print(a.fileno())"
    done = shell('"$@" <&- 2>&-', code)
    assert (done.returncode, done.stdout, file.read_text()) == (0, "3\n", "")


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (b"x\n\0y.jpg\0", ["x\n", "y.jpg"]),
        (b"x\r\0y.jpg", ["x\r", "y.jpg"]),
        (b"x.jpg\r\n\ny.jpg\n", ["x.jpg", "y.jpg"]),
        (b"\xef\xbb\xbfx.jpg\n", ["x.jpg"]),
        ("\ufeffx.jpg\r\n".encode("utf-16-le"), ["x.jpg"]),
    ],
)
def test_names_on_stdin_are_those_that_were_listed(monkeypatch, data, names):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert find_images(["-"], names_on_stdin()) == names


def test_bars_of_the_library_need_no_stderr(monkeypatch):
    """A program that was started without has None for it."""
    monkeypatch.setattr(sys, "stderr", None)
    assert list(progress_bar(range(3), total=3, desc="counting")) == [0, 1, 2]
