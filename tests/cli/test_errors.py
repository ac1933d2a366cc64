"""What a command says when memory runs out."""

import os
import subprocess

import jax
import pytest
from conftest import REPOSITORY, launch

import vit_jax.predict as predict_command
from vit_jax.cli.errors import describe_out_of_memory
from vit_jax.inference.classifier import Classifier

XLA = "RESOURCE_EXHAUSTED: Out of memory allocating 123456789 bytes.\n  0x1\n  0x2"


def test_too_little_memory_is_one_paragraph(monkeypatch):
    error = jax.errors.JaxRuntimeError(XLA + 1000 * " and more")
    message = describe_out_of_memory(error, "Take less.")
    assert "\n" not in message and len(message) < 400
    assert message.startswith("Out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 12345")
    assert message.endswith("Take less.")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in describe_out_of_memory(error, "Take less.")
    assert describe_out_of_memory(MemoryError(), "Take less.").startswith("Out of memory: ")


def test_other_errors_of_jax_are_not_hidden():
    error = jax.errors.JaxRuntimeError("INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        describe_out_of_memory(error, "Take less.")


def test_predict_ends_with_the_paragraph(monkeypatch):
    def fail(*unused):
        raise jax.errors.JaxRuntimeError(XLA)

    monkeypatch.setattr(Classifier, "stream", fail)
    with pytest.raises(SystemExit, match=r"^Out of memory: .*smaller --batch_size"):
        predict_command.main([f"{REPOSITORY}/checkpoints/quickstart", f"{REPOSITORY}/docs/flowers"])


@pytest.mark.slow
def test_training_under_a_real_limit_ends_with_the_paragraph(image_folder, tmp_path):
    """The step's memory is asked for at once, and the system refuses it."""
    size = 6 * 2**30
    code = (
        f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, ({size}, {size}));"
        "sys.argv[0] = 'vit_jax.main'; runpy.run_module('vit_jax.main', run_name='__main__')"
    )
    flags = [
        "--config.accumulate_steps=1",
        "--config.data.image_size=512",
        "--config.batch_size=64",
        "--config.model.patch_size=8",
        "--config.total_steps=1",
    ]
    command = launch(*flags, folder=image_folder, workdir=tmp_path / "run")
    command[1:3] = ["-c", code]
    one_device = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=one_device, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "GiB are free" in done.stderr  # the warning, as accumulate_steps is set
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Out of memory: ") and "--config.accumulate_steps" in last
