"""The text of `python -m vit_jax.main --help`: jobs, configurations, variants, flags and keys."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator

from absl import flags
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.common.repository import REPOSITORY
from vit_jax.config.comments import describe_keys
from vit_jax.config.defaults import default
from vit_jax.config.keys import look_up
from vit_jax.jobs.table import JOBS

CONFIGS = REPOSITORY / "configs"
_COLUMN = 40  # characters before the explanations

_EXAMPLES = """\
  python -m vit_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
  python -m vit_jax.main --config=configs/pretrain.py:Conv+Nano/16,PHOTOS --workdir=runs/photos
  python -m vit_jax.main --config=configs/finetune.py:B/16,PHOTOS --print_config=diff
  python -m vit_jax.main --config=configs/quickstart.py --workdir=runs/test \\
    --config.job=evaluate --config.init_from=runs/quickstart
"""


def manual(command: str, values: flags.FlagValues = flags.FLAGS) -> str:
    """Returns the help of `vit_jax.main`.

    Args:
      command: the program's path as `values` know it, such as `sys.argv[0]`.
      values: the flags that the command defines.
    """
    sections = (
        ("", [inspect.cleandoc(_USE)]),
        ("Examples; PHOTOS is a folder with a subfolder of images for each class:", [_EXAMPLES]),
        ("Jobs, the values of --config.job:", map(_job, JOBS)),
        ("Configurations, the values of --config; each file says more at its top:", _configs()),
        ("Variants, the values of --config.model.variant:", [_wrapped("  ", models.VARIANTS)]),
        ("Flags:", (_flag(x) for x in values.get_key_flags_for_module(command))),
        ("Keys, --config.KEY=VALUE, with their defaults; a configuration sets some:", _keys()),
    )
    return "\n\n".join("\n".join(filter(None, [head, *lines])).rstrip() for head, lines in sections)


_USE = """
    Runs a job:
      python -m vit_jax.main --config=FILE[:ARGUMENT] --workdir=FOLDER [--config.KEY=VALUE …]

    FILE is a path, or the NAME of configs/NAME.py in this folder or else in the package.
    FOLDER gets checkpoints and results. The same command again goes on where the run stopped. The
    last line on stdout is the result, as JSON. On several hosts the same command runs on each: with
    --distributed on a TPU pod, in Slurm and in Open MPI, elsewhere with --coordinator_address,
    --num_processes and --process_id.
"""


def _job(name: str) -> str:
    return _entry(name, (inspect.getdoc(JOBS[name]) or "").partition("\n")[0])


def _configs() -> Iterator[str]:
    """Yields a configuration file with its argument, its first line and its default argument."""
    for path in sorted(CONFIGS.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        (function,) = (node for node in functions if node.name == "get_config")
        argument = re.search(r'for "?([A-Z,]+)"?\.', ast.get_docstring(function) or "")
        purpose = (ast.get_docstring(tree) or "").partition("\n")[0]
        usual = "".join(f" Default: {ast.literal_eval(x)}." for x in function.args.defaults)
        name = f"configs/{path.name}" + (f":{argument[1]}" if argument else "")
        yield _entry(name, purpose + usual)


def _flag(flag: flags.Flag) -> str:
    return _entry(f"--{flag.name}", re.sub("^<.*?>: ", "", flag.help or ""))  # without choices


def _keys() -> Iterator[str]:
    """Yields keys without a section first, then each section."""
    config = default()
    sections = [key for key, value in config.items() if isinstance(value, ConfigDict)]
    for key, comment, note in sorted(
        describe_keys(), key=lambda entry: entry.key.partition(".")[0] in sections
    ):
        if note:
            yield _wrapped("  ", note.split())
        if key in sections:
            yield f"\n{_wrapped('', f'{key}: {comment}'.rstrip(' :').split())}"
        else:
            value = "{}" if key == "compare.runs" else repr(look_up(config, key, None))
            yield _entry(f"{key}={value}", _TABLE.sub(_with_choices, comment))


_TABLE = re.compile(r"\b([a-z_]+(?:\.[a-z_]+)+)\.([A-Z_]+)\b")  # such as training.optim.OPTIMIZERS


def _with_choices(table: re.Match) -> str:
    choices = getattr(importlib.import_module(f"vit_jax.{table[1]}"), table[2])
    return f"{table[0]} ({', '.join(choices)})"


def _entry(name: str, text: str) -> str:
    """Returns a name, and beside it, or below if it is long, what it means."""
    body = _wrapped(" " * _COLUMN, text.split())
    head = f"  {name}"
    return f"{head:{_COLUMN}}{body[_COLUMN:]}" if len(head) < _COLUMN else f"{head}\n{body}"


def _wrapped(indent: str, words: Iterable[str]) -> str:
    width = min(100, max(60, shutil.get_terminal_size((100, 0)).columns))
    return textwrap.fill(
        " ".join(words),
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
