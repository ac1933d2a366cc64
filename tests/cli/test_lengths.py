"""A length of training on the command line takes the place of the configuration file's."""

import sys

import pytest
from absl import flags
from conftest import REPOSITORY
from ml_collections import config_flags

from vit_jax.cli.flags import parse_flags


@pytest.mark.parametrize(
    ("file", "given", "total_steps", "epochs", "compared"),
    [
        ("finetune.py:B/16,x", (), 500, None, ()),
        ("finetune.py:B/16,x", ("epochs=3",), None, 3.0, ()),
        ("finetune.py:B/16,x", ("total_steps=7",), 7, None, ()),
        ("finetune.py:B/16,x", ("epochs=3", "total_steps=7"), 7, 3.0, ()),  # total_steps is read
        ("pretrain.py:Nano/8,x", ("total_steps=7",), 7, None, ()),
        ("pretrain.py:Nano/8,x", ("compare.epochs=(1,)",), None, 25.0, (1,)),  # not of this job
        ("compare.py:x", (), None, None, (2, 6, 18)),
        ("compare.py:x", ("total_steps=7",), 7, None, ()),
        ("compare.py:x", ("epochs=1",), None, 1.0, ()),
        ("vtab.py:B/16,all", ("compare.epochs=(1, 2)",), None, None, (1, 2)),
    ],
)
def test_the_length_that_is_given_counts(file, given, total_steps, epochs, compared, monkeypatch):
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    command = ["main", f"--config={REPOSITORY}/configs/{file}", *(f"--config.{x}" for x in given)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=command)
    parse_flags(command, values)
    config = values["config"].value
    found = config.total_steps, config.epochs, config.compare.epochs
    assert found == (total_steps, epochs, compared)
