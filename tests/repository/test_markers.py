"""The fast run of the tests: `make test-fast`."""

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.slow
def test_the_fast_run_has_tests_of_every_folder():
    (expression,) = re.findall(r'-m "(.*)"', (REPOSITORY / "Makefile").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-m", expression],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    collected = set(re.findall(r"^tests/(\w+)/test_\w+\.py", done.stdout, re.MULTILINE))
    files = (REPOSITORY / "tests").glob("*/test_*.py")
    assert collected == {path.parent.name for path in files} - {"faults"}
