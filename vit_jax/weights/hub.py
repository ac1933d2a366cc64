"""Models of the Hugging Face hub: downloaded and uploaded by its own client, huggingface_hub.

The client has a cache of its own (HF_HOME), and reads HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE. It
is imported when it is first used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from vit_jax.common.files import cannot_write, reason_of
from vit_jax.common.messages import first_few
from vit_jax.common.names import printable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

PREFIXES = ("hf://", "hf-hub:")  # of names on the hub: ours and timm's

# What says how to read the weights, downloaded wherever it is there.
_DESCRIPTIONS = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "open_clip_config.json",
    "model.safetensors.index.json",
)
# The weights, of which the first that is there is downloaded.
_WEIGHTS = (
    r"model\.safetensors",
    r"model-\d+-of-\d+\.safetensors",
    r"open_clip_model\.safetensors",
    r"pytorch_model\.bin",
    r"open_clip_pytorch_model\.bin",
)


def split_name(address: str) -> tuple[str, str]:
    """Returns (ORGANISATION/NAME, revision) of an address; the revision is "main" if none is given.

    Args:
      address: such as "hf://timm/vit_base_patch16_224.mae@main".

    Raises:
      ValueError: it has another form.
    """
    for prefix in PREFIXES:
        address = address.removeprefix(prefix)
    name, _, revision = address.strip("/").partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII):
        raise ValueError(f"hf://{printable(address)} isn't hf://ORGANISATION/NAME.")
    return name, revision or "main"


def download(address: str) -> str:
    """Returns the folder of a model in the client's cache, after downloading what is missing.

    Only the weights and what describes them are downloaded.

    Args:
      address: as for `split_name`.

    Raises:
      FileNotFoundError: the hub has no such model or revision.
      ValueError: the model has no weights that can be opened, may not be read, or the hub can't be
        reached.
      OSError: the cache can't be written.
    """
    from huggingface_hub import try_to_load_from_cache

    name, revision = split_name(address)
    api = _client()
    with _explained(name, revision, "downloaded"):
        try:
            info = api.model_info(name, revision=revision, files_metadata=True)
        except Exception as error:
            if not _is_unreachable(error) or (found := _cached(api, name, revision)) is None:
                raise
            logger.warning("hf://%s: %s Taken: %s", name, _unreachable(error), found)
            return found
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if not (needed := _needed(sizes)):
        raise ValueError(
            f"hf://{name} has no weights that can be opened: it has {first_few(sorted(sizes))}. "
            f"Weights are read from model.safetensors, also in several parts, from "
            f"pytorch_model.bin, and from open_clip's files."
        )
    with _explained(name, revision, "downloaded"):
        missing = [
            file
            for file in needed
            if not isinstance(try_to_load_from_cache(name, file, revision=info.sha), str)
        ]
        if missing:
            mebibytes = sum(sizes[file] for file in missing) / 2**20
            logger.info("hf://%s: downloading %.0f MiB", name, mebibytes)
        return api.snapshot_download(name, revision=revision, allow_patterns=needed)


def _needed(names: Collection[str]) -> list[str]:
    """Returns the files of a model that are needed. [] if it has no weights."""
    for pattern in _WEIGHTS:
        if found := [name for name in names if re.fullmatch(pattern, name)]:
            return [name for name in _DESCRIPTIONS if name in names] + found
    return []


def _cached(api: HfApi, name: str, revision: str) -> str | None:
    """Returns the folder of a model that is in the cache. None if nothing of it can be used."""
    try:
        folder = api.snapshot_download(
            name, revision=revision, local_files_only=True, allow_patterns=list(_DESCRIPTIONS)
        )
    except Exception:  # it isn't there, or something is missing
        return None
    return folder if _needed(os.listdir(folder)) else None


def upload(folder: str | os.PathLike, name: str, *, private: bool = False) -> str:
    """Uploads a folder as a model, which is made if the hub does not have it; returns its address.

    Args:
      folder: its files become those of the model; others that the model has stay.
      name: ORGANISATION/NAME, or USER/NAME.
      private: if True, a new model can be seen by its organisation or user alone.

    Raises:
      ValueError: the name has another form, the hub refuses it, or can't be reached.
    """
    name, revision = split_name(name)
    api = _client()
    with _explained(name, revision, "uploaded"):
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=pathlib.Path(folder),
            commit_message="Upload weights by vit_jax",
        )
    return str(address)


def _client() -> HfApi:
    from huggingface_hub import HfApi

    return HfApi(library_name="vit_jax")


def _is_unreachable(error: Exception) -> bool:
    """Returns True if the hub gave no answer, or one that says that it does not work now."""
    status = getattr(getattr(error, "response", None), "status_code", 500)
    return status >= 500 or status == 429


def _unreachable(error: Exception) -> str:
    if os.environ.get("HF_HUB_OFFLINE"):
        return "HF_HUB_OFFLINE is set, so the Hugging Face hub isn't asked."
    return f"the Hugging Face hub can't be reached ({reason_of(error)})."


@contextlib.contextmanager
def _explained(name: str, revision: str, done: str) -> Iterator[None]:
    """Raises one clear error for what huggingface_hub raises.

    Args:
      name: of the model.
      revision: of the model.
      done: what can't be done: "downloaded" or "uploaded".
    """
    from huggingface_hub import constants, errors, get_token

    token = (
        "The token that was sent (HF_TOKEN, or of `hf auth login`) does not allow it"
        if get_token()
        else "No token was sent: set HF_TOKEN, or run `hf auth login`"
    )
    try:
        yield
    except errors.GatedRepoError as error:
        raise ValueError(
            f"hf://{name} can't be {done}: its owners ask for consent. Open "
            f"{constants.ENDPOINT}/{name}, and agree to their conditions. {token}."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no hf://{name}, or it is private. Check its spelling. {token}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"hf://{name} has no revision {printable(revision)!r}: give one of its branches, its "
            f"tags, or a commit."
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ValueError(f"hf://{name} can't be {done}: {status}. {token}.") from error
        raise ValueError(f"hf://{name} can't be {done}: {_first_line(error)}.") from error
    except errors.HFValidationError as error:
        raise ValueError(
            f"hf://{name} is no name that the hub takes: {_first_line(error)}."
        ) from error
    except Exception as error:  # of the system, or of the HTTP client that huggingface_hub has
        if isinstance(error, OSError) and error.errno:
            raise OSError(cannot_write(pathlib.Path(constants.HF_HUB_CACHE), error)) from error
        raise ValueError(
            f"hf://{name} can't be {done}: {_unreachable(error)} Check the network, or bring its "
            f"files by another way: a folder of them is opened, too."
        ) from error


def _first_line(error: Exception) -> str:
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__).rstrip(
        "."
    )
