"""Every key of the default configuration is explained, and is read by the code."""

import ast
import importlib
import inspect
import re

import pytest
from conftest import REPOSITORY
from ml_collections import ConfigDict

from vit_jax.config.comments import describe_keys
from vit_jax.config.defaults import default
from vit_jax.config.keys import all_keys
from vit_jax.data.transforms import View
from vit_jax.jobs.key_checks import RANGES, choices
from vit_jax.models.attributes import ATTRIBUTES
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import VisionTransformer

DEFAULT = default()
KEYS = [key for key in all_keys(DEFAULT) if not isinstance(DEFAULT[key], ConfigDict)]
# The names that a key can take: those of a table, or those of the model's attribute.
CHOICES = {f"model.{name}": row.choices for name, row in ATTRIBUTES.items() if row.choices}
CHOICES.update(choices())


def comments():
    """Returns the comments above and behind the line of each key of `default`."""
    found, above = {}, []
    for line in map(str.strip, inspect.getsource(default).splitlines()):
        if line.startswith("#"):
            above.append(line.removeprefix("# "))
            continue
        if match := re.match(r"config\.([\w.]+) = .*?(?:  # (.*))?$", line):
            key, behind = match.groups()
            found[key] = " ".join([found.get(key, ""), *above, behind or ""]).strip()
        above = []
    return found


COMMENTS = comments()


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_a_comment(key):
    assert COMMENTS[key]


def test_descriptions_are_the_comments():
    found = {entry.key: " ".join([entry.note, entry.comment]).strip() for entry in describe_keys()}
    assert found.items() >= COMMENTS.items()
    (flip,) = (entry for entry in describe_keys() if entry.key == "data.flip")
    assert (flip.comment, flip.note) == ("mirrors half of the training images", "")
    (train,) = (entry for entry in describe_keys() if entry.key == "data.train")
    assert train.comment == "to train on" and train.note.startswith("Splits in the syntax")


@pytest.mark.parametrize("key", CHOICES)
def test_comments_name_the_choices_that_there_are(key):
    """A comment names every choice, or the table that has them."""
    known = {name for name in CHOICES[key] if name is not None}
    named = set(re.findall(r'"([^"]+)"', COMMENTS[key]))
    assert named <= known
    if table := re.search(r"\bin ([a-z_.]+)\.([A-Z_]+)\b", COMMENTS[key]):
        module, name = table.groups()
        assert getattr(importlib.import_module(f"vit_jax.{module}"), name) is CHOICES[key]
    else:
        assert named | {DEFAULT[key]} >= known


def test_choices_and_ranges_are_of_keys_that_there_are():
    assert set(CHOICES) | set(RANGES) <= set(KEYS)
    assert {f"model.{name}" for name in ATTRIBUTES} | {"model.variant"} == {
        key for key in KEYS if key.startswith("model.")
    }


def attributes_that_are_read(code):
    """Yields "optim.lr" for each expression that ends in `optim.lr` and isn't assigned to."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield ".".join(ast.unparse(node).split(".")[-2:])


def test_every_key_is_read_somewhere():
    """No setting without effect: the code reads each key by its name, and not only to check it."""
    checks = ("key_checks.py", "validation.py")
    files = [path for path in (REPOSITORY / "vit_jax").rglob("*.py") if path.name not in checks]
    read = {found for path in files for found in attributes_that_are_read(path.read_text())}
    for key in KEYS:
        section, _, name = key.rpartition(".")
        if section == "model" and name != "variant":  # handed to the module as they are
            fields = VisionTransformer.__dataclass_fields__ | ResNet.__dataclass_fields__
            assert name in fields
        elif section == "data" and name in View._fields:  # `view_of` reads all of them
            continue
        else:
            readers = {"": ("config",), "data": ("data", "options")}.get(section, (section,))
            assert read & {f"{reader}.{name}" for reader in readers}, f"nobody reads {key}"
