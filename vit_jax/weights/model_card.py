"""The model card of weights on the Hugging Face hub: README.md, with what is known of them."""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath
from flax.traverse_util import flatten_dict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.common.files import looks_like_path
from vit_jax.common.messages import first_few
from vit_jax.common.names import printable
from vit_jax.config.defaults import default
from vit_jax.weights import hub
from vit_jax.weights.catalogue import published_row
from vit_jax.weights.loading import loading_lines
from vit_jax.weights.summary import describe

_LIBRARIES = {"hf": "transformers", "timm": "timm"}
_METRICS = {  # shares of the images
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "precision_at_1": "precision at 1",
}
_HUB_LICENCES = ("apache-2.0", "apple-amlr", "apple-ascl", "cc-by-nc-4.0", "mit")
_LOCAL_KEYS = ("data.dir", "fewshot.dir", "init_from")  # folders of one machine; or told elsewhere
_MOST_NAMES = 100  # of classes that are listed


class Results(NamedTuple):
    """What a run measured of a checkpoint.

    Attributes:
      dataset: the data set's name; of a folder, the name of the folder alone.
      split: of the data set. "" if it is not known.
      images: number of images. 0 if it is not known.
      shares: the shares of the images, in [0, 1], by the names of `_METRICS`.
    """

    dataset: str
    split: str
    images: int
    shares: dict[str, float]


def find_results(checkpoint: Checkpoint, *, average: bool = False) -> Results | None:
    """Returns what the metrics.csv of a checkpoint's run says of it. None if it says nothing.

    Args:
      checkpoint: as it was read from the run's folder.
      average: True for the results of its Polyak average.
    """
    folder = epath.Path(checkpoint.path).parent
    table = folder.parent / "metrics.csv"
    if folder.name != "checkpoints" or not table.exists():
        return None
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    row = next((row for row in rows if row.get("step") == str(checkpoint.step)), {})
    prefix = "polyak_test_" if average else "test_"
    shares = {name: float(row[prefix + name]) for name in _METRICS if row.get(prefix + name)}
    test = (checkpoint.data or {}).get("test", {})
    name = _without_folders(checkpoint.config.data.name)
    return Results(name, test.get("split", ""), test.get("images", 0), shares) if shares else None


def model_card(
    checkpoint: Checkpoint, name: str, *, format: str, source: str, results: Results | None
) -> str:
    """Returns a README.md: accuracy, data, configuration, how to use it, and where it comes from.

    It begins with the header that the hub reads. It has only what is known, and no path of this
    machine.

    Args:
      checkpoint: what is uploaded.
      name: ORGANISATION/NAME on the hub.
      format: "hf" or "timm".
      source: what the checkpoint was opened as.
      results: what was measured of it.
    """
    sections = {
        "Accuracy": _accuracy(results),
        "Data": _data(checkpoint),
        "Configuration": _configuration(checkpoint),
        "How to use it": _use(checkpoint, name, format),
        "Source": _source(checkpoint, source),
    }
    lines = [f"---\n{_header(checkpoint, name, format, source, results)}\n---", f"# {name}"]
    lines.append(f"A Vision Transformer for {_LIBRARIES[format]}: {describe(checkpoint)}.")
    lines += [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join(lines) + "\n"


def _header(
    checkpoint: Checkpoint, name: str, format: str, source: str, results: Results | None
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    is_classifier = bool(checkpoint.num_classes)
    task = "image-classification" if is_classifier else "image-feature-extraction"
    row = published_row(source)
    licence = row.licence if row is not None else ""
    is_known = licence in _HUB_LICENCES
    base = row.url if row is not None else source
    trained_on = checkpoint.config.data.name if checkpoint.step else None
    measured = results and [
        EvalResult(
            task_type=task,
            dataset_type=results.dataset,
            dataset_name=results.dataset,
            dataset_split=results.split or None,
            metric_type=metric,
            metric_name=_METRICS[metric],
            metric_value=round(value, 4),
        )
        for metric, value in results.shares.items()
    ]
    return ModelCardData(
        model_name=name,
        library_name=_LIBRARIES[format],
        pipeline_tag=task,
        tags=["vit_jax"],
        datasets=[trained_on] if trained_on and _is_public(trained_on) else None,
        base_model=hub.split_name(base)[0] if base.startswith(hub.PREFIXES) else None,
        eval_results=measured,
        license=(licence if is_known else "other") if licence else None,
        license_name=licence if licence and not is_known else None,
    ).to_yaml()


def _accuracy(results: Results | None) -> str:
    if results is None:
        return ""
    split = f", split `{results.split}`" * bool(results.split)
    images = f" ({results.images:,} images)" * bool(results.images)
    shares = ", ".join(f"{_METRICS[k]} {100 * x:.2f} %" for k, x in results.shares.items())
    return f"Measured by the run that trained it, on {results.dataset}{split}{images}: {shares}."


def _data(checkpoint: Checkpoint) -> str:
    lines = []
    if checkpoint.step:
        lines.append(f"Trained on {_without_folders(checkpoint.config.data.name)}.")
    for part in ("train", "test"):
        if found := (checkpoint.data or {}).get(part):
            lines.append(f"- {part}: `{found['split']}`, {found['images']:,} images")
    if names := checkpoint.class_names:
        lines.append(f"\n{len(names)} classes, in the order of the logits:\n")
        lines.append(f"```text\n{first_few(names, most=_MOST_NAMES)}\n```")
    return "\n".join(lines).strip()


def _configuration(checkpoint: Checkpoint) -> str:
    """Returns the keys that are not at their defaults; of weights of other code, the model's."""
    config, usual = (flatten_dict(x.to_dict(), sep=".") for x in (checkpoint.config, default()))
    lines = [
        f"config.{key} = {_without_folders(value)!r}"
        for key, value in config.items()
        if (
            checkpoint.step
            or key.startswith(("model.", "data.image_size", "data.eval_", "data.crop_fraction"))
        )
        and json.dumps(value) != json.dumps(usual.get(key))  # which has tuples as lists
        and key not in _LOCAL_KEYS
    ]
    told = f"Trained for {checkpoint.step:,} steps. " if checkpoint.step else ""
    keys = "\n".join(lines)
    return f"{told}What differs from vit_jax's defaults:\n\n```python\n{keys}\n```"


def _use(checkpoint: Checkpoint, name: str, format: str) -> str:
    path = f"hf-hub:{name}" if format == "timm" else name
    theirs = loading_lines(checkpoint, path, format)
    ours = loading_lines(checkpoint, f"hf://{name}", "orbax")
    return (
        f"By {_LIBRARIES[format]}:\n\n```python\n{theirs}\n```\n\nBy vit_jax:\n\n"
        f"```python\n{ours}\n```"
    )


def _source(checkpoint: Checkpoint, source: str) -> str:
    lines = list(_origins(checkpoint, source))
    if checkpoint.changes:
        lines.append("What was changed in these weights:\n")
        lines += [f"- {change}" for change in checkpoint.changes]
    return "\n".join(lines)


def _origins(checkpoint: Checkpoint, source: str) -> Iterator[str]:
    row = published_row(source)
    if row is not None:
        on = f", trained on {row.data}" * bool(row.data)
        yield f"Converted from {row.url}{on}.\n"
    elif "://" in source or source.startswith(hub.PREFIXES):
        yield f"Converted from {source}.\n"
    start = checkpoint.config.get("init_from")
    if checkpoint.step and start and _is_public(start):
        yield f"The run started from {start}.\n"


def _is_public(name: str) -> bool:
    """Returns True if a name is no path of this machine."""
    return "://" in name or not (looks_like_path(name) or pathlib.Path(name).exists())


def _without_folders(value: Any) -> Any:
    """Returns a value of a configuration; of a path of this machine, only its last part."""
    if not isinstance(value, str) or _is_public(value):
        return value
    return printable(pathlib.PurePath(value).name)
