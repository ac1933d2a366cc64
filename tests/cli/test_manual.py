"""`--help` of every command, and `--print_config`."""

import importlib
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY, environment

from vit_jax import models
from vit_jax.config.comments import describe_keys
from vit_jax.jobs.table import JOBS

# No device of this name can be started: what ends well has started none.
ENVIRONMENT = environment() | {"JAX_PLATFORMS": "nonsense", "COLUMNS": "100"}


def run(*arguments, command="main"):
    return subprocess.run(
        [sys.executable, "-m", f"vit_jax.{command}", *arguments],
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def manual():
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_it_lists_jobs_configurations_and_variants(manual):
    for job in JOBS:
        assert re.search(rf"^  {job}  +[A-Z]", manual, re.MULTILINE), job
    for path in (REPOSITORY / "configs").glob("*.py"):
        argument = {"quickstart.py": "", "compare.py": ":DATASET", "vtab.py": ":VARIANT,TASK"}
        name = path.name + argument.get(path.name, ":VARIANT,DATASET")
        assert re.search(rf"^  configs/{name} +[A-Z]", manual, re.MULTILINE), path.name
    variants = manual.partition("Variants, ")[2].partition("\n\n")[0].split()
    assert set(models.VARIANTS) <= set(variants)


def test_it_has_every_key_with_its_default_and_comment(manual):
    text = " ".join(manual.split())
    assert "optim.lr=0.01 base learning rate, reached after the warm-up" in text
    assert "compare.runs={} name -> the keys" in text
    assert "in training.optim.OPTIMIZERS (adam, sgd" in text or "OPTIMIZERS (sgd, adam" in text
    for key, comment, note in describe_keys():
        words = re.split(r"\b[a-z_.]+\.[A-Z_]+\b", comment)  # tables are followed by their choices
        assert all(part.strip() in text for part in (*words, note)), key
        assert re.search(rf"^(  {re.escape(key)}=|{key}\b)", manual, re.MULTILINE), key


def test_it_has_the_flags_of_main_alone(manual):
    flags = manual.partition("Flags:")[2].partition("\n\n")[0]
    names = re.findall(r"^  --(\w+)", flags, re.MULTILINE)
    assert {"config", "workdir", "print_config", "coordinator_address"} <= set(names)
    assert "logtostderr" not in names  # of absl


COMMANDS = ("convert", "cost", "data.__main__", "demo", "export", "plan", "predict", "visualize")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_other_commands_explain_themselves_with_examples(name, capsys):
    module = importlib.import_module(f"vit_jax.{name}")
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    command = f"python -m vit_jax.{name.removesuffix('.__main__')}"
    examples = re.findall(rf"^ +({re.escape(command)} .*)$", text, re.MULTILINE)
    assert len(examples) >= 2
    for example in examples:
        word = example.removeprefix(command).split()[0]
        if f"{word}," in text or f",{word}" in text:  # a subcommand
            with pytest.raises(SystemExit):
                module.main([word, "--help"])
            text += capsys.readouterr().out
        for flag in re.findall(r" (--\w+)", example):
            assert flag == "--config" or f"[{flag}" in text or f" {flag} " in text, flag


@pytest.mark.parametrize("only_changes", [True, False])
def test_a_configuration_is_printed_and_nothing_run(only_changes):
    done = run(
        "--config=configs/pretrain.py:Nano/8,/nowhere",
        "--config.optim.lr=0.5",
        "--print_config" + "=diff" * only_changes,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert {"--config.data.name=/nowhere", "--config.optim.lr=0.5"} <= set(lines)
    assert ("--config.optim.momentum=0.9" in lines) != only_changes


def test_a_run_without_a_workdir_is_refused():
    done = run("--config=configs/quickstart.py")
    assert done.returncode == 1
    assert done.stderr.startswith("--workdir=FOLDER is needed")
    done = run("--config=configs/quickstart.py", "--workdir", "/nowhere", "rest")
    assert (done.returncode, done.stderr.split(".")[0]) == (1, "unexpected arguments: rest")
