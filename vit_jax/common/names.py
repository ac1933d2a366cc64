"""Names of files and classes: as Unicode, and as text that is safe to show.

A file's name is bytes. Python holds those that aren't UTF-8 as lone surrogates (PEP 383), which
can't be written as UTF-8. A name may also hold a newline, a tab or what a terminal obeys.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
_JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji


def as_unicode(name: str) -> str:
    r"""Returns a name with the bytes that aren't UTF-8 as Python writes them, such as `\xe9`."""
    return _SURROGATE.sub(lambda match: _escaped(match[0]), name)


def printable(text: object, keep: str = "") -> str:
    r"""Returns a text with what can't be shown as Python writes it: `\n`, `\x1b`, `\u202e`.

    That is control and format characters, line and paragraph separators, and bytes that aren't
    UTF-8. Letters of every script, and spaces, stay.

    Args:
      text: is written as `str` writes it.
      keep: characters that stay as they are, such as "\n".
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c in keep or _can_be_shown(c) else _escaped(c) for c in text)


def require_unicode(path: str | os.PathLike[str]) -> None:
    """Raises ValueError if a path has bytes that aren't UTF-8: some libraries can't open it."""
    if as_unicode(os.fspath(path)) != os.fspath(path):
        raise ValueError(
            f"{printable(path)} has bytes in its name that are not UTF-8, and JAX and Orbax can't "
            f"write or read there: take another name."
        )


def class_name(name: str) -> str:
    """Returns the class that a name stands for: `as_unicode`, in the Unicode form NFC.

    macOS writes "é" as two characters, and others write one: both are the same class.
    """
    return unicodedata.normalize("NFC", as_unicode(name))


def from_system(name: str) -> str:
    """Returns the name or path of a file, read as UTF-8 in every locale, in the Unicode form NFC.

    Bytes that aren't UTF-8 are lone surrogates in it.

    Args:
      name: as Python's functions on files return it.
    """
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "surrogateescape"))


def class_of_folder(folder: pathlib.Path) -> str:
    """Returns the class that a folder's name stands for. It is read as UTF-8 in every locale."""
    return class_name(from_system(folder.name))


def check_distinct(names: Iterable[str], what: str) -> None:
    r"""Raises ValueError if two different names are written alike, as `a\xe9` and a byte e9 are.

    The Unicode form is no difference.

    Args:
      names: of classes.
      what: what has these names, for the message.
    """
    found: dict[str, str] = {}
    for name in names:
        normal = unicodedata.normalize("NFC", name)
        written = printable(class_name(name))
        if found.setdefault(written, normal) != normal:
            raise ValueError(
                f"Two {what} are both written {written}, though their names differ: one has a "
                f"character that can't be shown, or bytes that are not UTF-8. Give one of them "
                f"another name."
            )


def short_stem(path: str) -> str:
    """Returns a file's name without its suffix, `printable` and at most 200 of 255 possible bytes.

    It is for the name of another file, which adds to it.
    """
    stem = printable(pathlib.Path(path).stem).replace("\\", "_")
    return stem.encode()[:200].decode(errors="ignore")


def to_json(value: Any) -> str:
    """Returns a value as JSON of ASCII characters, with every text in it as `as_unicode`."""
    return json.dumps(_with_unicode(value))


def _with_unicode(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_with_unicode(key): _with_unicode(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_with_unicode(x) for x in value]
    return as_unicode(value) if isinstance(value, str) else value


def _can_be_shown(character: str) -> bool:
    kind = unicodedata.category(character)
    return character in _JOINERS or kind not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
