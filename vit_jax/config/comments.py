"""What the comments of defaults.py say of each key, for `python -m vit_jax.main --help`."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

from vit_jax.config import defaults


class Described(NamedTuple):
    """A key of `defaults.default`, or a section, with its comments.

    Attributes:
      key: in full, such as "optim.lr".
      comment: what the key means: the comment at the end of its line, else that above it.
      note: a comment above a key that has one of its own: it is about several keys from here on.
    """

    key: str
    comment: str
    note: str


def describe_keys() -> list[Described]:
    """Returns all keys and sections in the order of defaults.py."""
    source = inspect.getsource(defaults)
    comments = {
        token.start[0]: token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found: dict[str, Described] = {}
    for key, first, last in _assignments(source):
        beside = _text([comments[last]] if last in comments else [])
        above: list[tokenize.TokenInfo] = []
        while (line := first - 1 - len(above)) in comments and _is_alone(comments[line]):
            above.insert(0, comments[line])
        note = _text(above)
        entry = Described(key, beside, note) if beside else Described(key, note, "")
        found.setdefault(key, entry)  # a second assignment only gives the value
    return list(found.values())


def _assignments(source: str) -> Iterator[tuple[str, int, int]]:
    """Yields the key, the first and the last line of every `config.KEY = VALUE`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            name, _, key = ast.unparse(node.targets[0]).partition(".")
            if name == "config":
                yield key, node.lineno, node.end_lineno or node.lineno


def _is_alone(token: tokenize.TokenInfo) -> bool:
    """Returns True if there is nothing but a comment in its line."""
    return token.line.lstrip().startswith("#")


def _text(tokens: list[tokenize.TokenInfo]) -> str:
    return " ".join(token.string.removeprefix("#").strip() for token in tokens)
