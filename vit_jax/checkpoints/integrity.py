"""The manifest of a checkpoint: sizes and hashes of its files, by which damage is found."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Collection, Iterator

from etils import epath

from vit_jax.common.files import is_bucket, reason_of
from vit_jax.common.memory import is_out_of_memory
from vit_jax.common.messages import first_few

MANIFEST = "manifest.json"


def write_manifest(folder: epath.Path) -> None:
    """Writes FOLDER/manifest.json: the bytes and the SHA-256 of every file in a subfolder.

    Args:
      folder: a complete checkpoint on this machine.
    """
    folder = pathlib.Path(folder)
    manifest = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.glob("*/**/*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def find_damage(folder: epath.Path, items: Collection[str] | None = None) -> list[str]:
    """Returns one phrase for each file of a checkpoint that is not as it was written.

    The list is empty for a checkpoint in a bucket, which hashes its objects itself, and for one
    without a manifest.

    Args:
      folder: the checkpoint's folder.
      items: the subfolders to check, such as "params". None checks all.
    """
    if is_bucket(folder) or not (path := pathlib.Path(folder) / MANIFEST).is_file():
        return []
    try:
        manifest = json.loads(path.read_bytes())
        recorded = [(name, file["bytes"], file["sha256"]) for name, file in manifest.items()]
    except (AttributeError, KeyError, TypeError, ValueError):
        return [f"{MANIFEST} can't be read"]
    found = []
    for name, size, digest in recorded:
        if items is not None and name.split("/")[0] not in items:
            continue
        file = path.parent / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif file.stat().st_size != size:
            found.append(f"{name} has {file.stat().st_size} bytes, not {size}")
        elif _sha256(file) != digest:
            found.append(f"{name} has other contents than were written")
    return found


def check_undamaged(folder: epath.Path, *items: str) -> None:
    """Raises ValueError if files of a checkpoint are damaged, and names them.

    Args:
      folder: the checkpoint's folder.
      *items: the subfolders to check.
    """
    if damage := find_damage(folder, items):
        raise ValueError(damage_message(folder, damage))


def damage_message(folder: epath.Path, damage: list[str]) -> str:
    """Returns the message on a damaged checkpoint.

    Args:
      folder: the checkpoint's folder.
      damage: what `find_damage` returned.
    """
    return f"The checkpoint {folder} is damaged: {first_few(damage, separator='; ')}."


@contextlib.contextmanager
def explain_damage(folder: epath.Path, item: str) -> Iterator[None]:
    """Turns the errors of reading a subfolder of a checkpoint into one that names both.

    Args:
      folder: the checkpoint's folder.
      item: the subfolder's name.

    Raises:
      ValueError: the subfolder is damaged.
      OSError: the system can't read it at the moment.
      Exception: as it is, if there is too little memory; see `is_out_of_memory`.
    """
    try:
        yield
    except Exception as error:  # Orbax and its parts raise errors of many kinds
        of_system = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        if of_system or "[os_error_code=" in str(error):  # TensorStore's
            raise OSError(f"{folder / item} can't be read: {reason_of(error)}.") from error
        if is_out_of_memory(error) or "RESOURCE_EXHAUSTED" in str(error):  # a ValueError, too
            raise
        reason = reason_of(error) or type(error).__name__
        raise ValueError(damage_message(folder, [f"{item} can't be read ({reason})"])) from error


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
