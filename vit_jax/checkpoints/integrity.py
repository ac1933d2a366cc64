"""integrity"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Collection

from etils import epath

from vit_jax.common.files import is_bucket

MANIFEST = "manifest.json"


def write_manifest(folder: epath.Path) -> None:
    folder = pathlib.Path(folder)
    manifest = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.glob("*/**/*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_damage(folder: epath.Path, items: Collection[str] | None = None) -> list[str]:
    """Returns a sentence for each file of a checkpoint that is not as it was written.

    Args:
      folder: of the checkpoint; without a manifest, nothing is known.
      items: the parts of it to look at; None for all.
    """
    if is_bucket(folder) or not (path := pathlib.Path(folder) / MANIFEST).is_file():
        return []
    try:
        manifest = json.loads(path.read_bytes())
        noted = [(name, file["bytes"], file["sha256"]) for name, file in manifest.items()]
    except (AttributeError, KeyError, TypeError, ValueError):
        return [f"{MANIFEST} can't be read"]
    found = []
    for name, size, digest in noted:
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


def damage_message(folder: epath.Path, found: list[str]) -> str:
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return f"The checkpoint {folder} is damaged: {'; '.join(found[:5])}{more}."


def check_whole(folder: epath.Path, *items: str) -> None:
    if found := find_damage(folder, items):
        raise ValueError(damage_message(folder, found))
