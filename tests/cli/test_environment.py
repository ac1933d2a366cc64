import subprocess
import sys

import pytest
from conftest import REPOSITORY, environment


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
