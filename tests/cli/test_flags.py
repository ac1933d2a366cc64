"""A configuration as flags, and what wrong command lines are answered."""

import shlex

import pytest
from absl import flags
from conftest import REPOSITORY
from ml_collections import config_flags

from vit_jax.cli.flags import as_flags, parse_flags
from vit_jax.config.defaults import default

CONFIGS = (
    "compare.py",
    "finetune.py:S/16,cifar10",
    "masked.py",
    "quickstart.py",
    "vtab.py:B/16,all",
)


def parsed(config, *arguments):
    """The configuration of a command line."""
    values = flags.FlagValues()
    argv = ["python -m vit_jax.main", f"--config={REPOSITORY / 'configs' / config}", *arguments]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    parse_flags(argv, values)
    return holder.value


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("only_changes", [True, False])
def test_a_shell_reads_the_flags_back(config, only_changes):
    """Pasted behind the same file, they set what is set already."""
    wanted = parsed(config, "--config.optim.lr=0.3", "--config.data.name=some 'photos'")
    lines = list(as_flags(wanted, only_changes=only_changes))
    pasted = [word for line in lines for word in shlex.split(line, comments=True)]
    assert parsed(config, *pasted).to_json() == wanted.to_json()
    assert "--config.optim.lr=0.3" in lines


@pytest.mark.parametrize(("text", "value"), [("none", "none"), ("encoder", "encoder"), ("3", 3)])
def test_what_is_frozen_is_a_name_or_a_number(text, value):
    assert parsed("quickstart.py", f"--config.optim.freeze={text}").optim.freeze == value


def test_only_what_differs_from_the_defaults_is_a_change():
    config = default()
    assert list(as_flags(config, only_changes=True)) == []
    assert len(list(as_flags(config))) > 70
    config.data.flip, config.sweep.lr, config.data.image_size = False, (0.5,), (32, 48)
    assert set(as_flags(config, only_changes=True)) == {
        "--config.data.flip=false",
        "--config.sweep.lr='(0.5,)'",
        "--config.data.image_size='(32, 48)'",
    }


def test_keys_that_a_flag_cannot_set_are_commented_out():
    assert "# --config.init_from=None" in as_flags(default())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.optim.lrr=1"], "did you mean optim.lr?"),
        (["--config.optim.lr=fast"], "optim.lr must be a finite number."),
        (["--confg=x"], "Unknown command line flag 'confg'."),
    ],
)
def test_a_wrong_command_line_is_told_where_the_right_ones_are(arguments, message):
    with pytest.raises(SystemExit) as error:
        parsed("quickstart.py", *arguments)
    assert message in error.value.code
    assert "`python -m vit_jax.main --help` lists" in error.value.code


def test_a_missing_configuration_is_asked_for():
    values = flags.FlagValues()
    argv = ["python -m vit_jax.plan"]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    with pytest.raises(SystemExit, match=r"^--config=FILE is needed\. .*--help"):
        parse_flags(argv, values)


@pytest.mark.parametrize(
    ("name", "close"), [("quickstrt", "quickstart"), ("configs/finetun.py", "configs/finetune.py")]
)
def test_a_name_close_to_a_configurations_is_proposed(name, close):
    values, argv = flags.FlagValues(), ["python -m vit_jax.plan", f"--config={name}"]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    with pytest.raises(
        SystemExit, match=rf"no configuration file '{name}'; did you mean {close}\?"
    ):
        parse_flags(argv, values)


@pytest.mark.parametrize("job", ["evaluate", "fewshot"])
def test_a_recipe_of_training_has_no_view_of_other_weights(job, tmp_path):
    """A key on the command line stays, and so does that of a file for this job."""
    recipe, for_job = "finetune.py:S/16,cifar10", f"--config.job={job}"
    assert parsed(recipe).data.eval_crop == "whole"
    assert parsed(recipe, for_job).data.eval_crop is None
    assert parsed("quickstart.py").data.crop_fraction == 1.0
    assert parsed("quickstart.py", for_job).data.crop_fraction is None
    own = parsed(recipe, for_job, "--config.data.eval_crop=squash")
    assert (own.data.eval_crop, own.data.crop_fraction) == ("squash", None)
    (tmp_path / "own.py").write_text(
        f"from vit_jax import config\n\ndef get_config():\n    found = config.default()\n"
        f"    found.job, found.data.eval_crop = {job!r}, 'whole'\n    return found\n"
    )
    assert parsed(tmp_path / "own.py").data.eval_crop == "whole"
