"""Which models of timm open, and whether they give timm's logits.

    python -m benchmarks.registry --pattern='*siglip*' --out=registry.json

Each model of timm's modules `vision_transformer` and `deit` is made with two blocks and random
numbers in all of its parameters, written by timm as for Hugging Face's hub, and opened by
`vit_jax.load`. Both compute the logits of the same uint8 images, of the model's own size; timm gets
them normalised as its config.json says. A model is opened rightly if no logit differs by more than
2e-5 of the largest. The tanh approximation of GELU, in place of the exact one, makes them differ by
1.6e-4.

The command prints a row for each family. It fails if a model is opened wrongly. It needs timm and
PyTorch, 4.6 GB of memory and, on two cores, 4.5 minutes for all.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import pathlib
import re
import sys
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np

import vit_jax
from benchmarks import machine
from vit_jax.models.patches import to_float

machine.import_torchvision()  # before timm
import timm  # noqa: E402
import torch  # noqa: E402
from timm.models import save_for_hf  # noqa: E402

MODULES = ("vision_transformer", "deit")
TOLERANCE = 2e-5  # of the largest logit
_MANY_PATCHES = 1024  # of models with more of them, only one image is compared


class Result(NamedTuple):
    """What came of one model.

    Attributes:
      model: timm's name.
      error: the largest difference of logits, divided by the largest logit. None if the model was
        refused.
      refused: why it was refused, "" if it was opened.
    """

    model: str
    error: float | None
    refused: str = ""


def names(pattern: str = "*") -> list[str]:
    """Returns the names of timm's models of `MODULES` that a pattern as of a shell matches."""
    every = [name for module in MODULES for name in timm.list_models(module=module)]
    return sorted(fnmatch.filter(every, pattern))


def family(name: str) -> str:
    """Returns a model's name without its size, and without those of its patches and images."""
    words = name.split("_")
    kept = [word for word in words[1:] if not re.fullmatch(_SIZE, word)]
    return " ".join([words[0], *(re.sub(r"^reg\d$", "reg", word) for word in kept)])


_SIZE = (
    r"(patch)?\d+|tiny|x?small|d?p?wee|d?little|mediumd?|base|betwixt|large|huge|giant(opt)?"
    r"|gigantic|so\d+m2?|intern300m|\db"
)


def create(name: str, seed: int = 0, **arguments: Any) -> torch.nn.Module:
    """Returns a model of timm whose parameters are all random.

    Activations of the blocks are of a moderate size. The tokens that enter the first block are so
    small that the epsilon of its normalisation matters.

    Args:
      name: timm's name.
      seed: of the numbers.
      **arguments: of timm's model.
    """
    with torch.device("meta"):  # timm's own numbers would take longer than all the rest
        model = timm.create_model(name, **arguments)
    model = model.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            kind = key.rpartition(".")[2]
            if kind == "weight" and parameter.ndim > 1:
                parameter *= parameter[0].numel() ** -0.5
            elif kind in ("weight", "gamma"):  # of a normalisation or a LayerScale
                parameter.mul_(0.1).add_(1)
            elif kind == "bias":
                parameter *= 0.1
            if key.startswith(("patch_embed", "pos_embed", "cls_token", "reg_token", "dist_token")):
                parameter *= 0.01
    return model


def compare(model: torch.nn.Module, images: np.ndarray, **attributes: Any) -> Result:
    """Returns what comes of a model of timm that is written by timm and opened by `vit_jax.load`.

    Args:
      model: the model.
      images: (b, h, w, 3) uint8.
      **attributes: of our model, as for `vit_jax.load`.
    """
    name = model.pretrained_cfg["architecture"]
    expected = _logits_of_timm(model, images)
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(model, folder, safe_serialization=True)
        del model
        try:
            found = vit_jax.load(folder, **attributes)
        except ValueError as error:
            return Result(name, None, str(error).removeprefix(f"{folder}/model.safetensors "))
        params = jax.tree.map(np.asarray, found.params)  # reads them
        height, width = found.image_shape  # timm ignores what is left over beside whole patches
        pixels = to_float(images[:, :height, :width])
        logits = np.asarray(jax.jit(found.model().apply)({"params": params}, pixels))
    if logits.shape != expected.shape:
        return Result(name, float("inf"))
    return Result(name, float(np.abs(logits - expected).max() / np.abs(expected).max()))


def random_images(model: torch.nn.Module, seed: int = 0) -> np.ndarray:
    """Returns two images, or one if they are large, of the size that a model of timm is made for.

    Returns:
      Images (b, h, w, 3) uint8.
    """
    size = model.patch_embed.img_size
    count = 2 if model.patch_embed.num_patches <= _MANY_PATCHES else 1
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def _logits_of_timm(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    mean, std = (torch.tensor(model.pretrained_cfg[key]) for key in ("mean", "std"))
    normalised = (torch.tensor(images) / 255 - mean) / std
    with torch.no_grad():
        return model(normalised.permute(0, 3, 1, 2)).numpy()


def rows_of(results: list[Result]) -> list[dict[str, Any]]:
    """Returns the rows of the table, one for each family."""
    rows = []
    for name in dict.fromkeys(family(result.model) for result in results):
        ours = [result for result in results if family(result.model) == name]
        errors = [result.error for result in ours if result.error is not None]
        reasons = dict.fromkeys(
            result.refused.split(" has ")[-1].partition(", which our")[0]
            for result in ours
            if result.refused
        )
        rows.append(
            {
                "family": name,
                "models": len(ours),
                "opened": sum(error <= TOLERANCE for error in errors),
                "largest error": max(errors, default=None),
                "refused because of": "; ".join(reasons),
            }
        )
    return rows


def main() -> None:
    """Compares the models, prints the table, and writes the results of all models as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pattern", default="*", help="names of timm's models, as in a shell")
    parser.add_argument("--out", help="JSON file that is written")
    arguments = parser.parse_args()
    results = []
    for name in names(arguments.pattern):
        model = create(name, depth=2)
        results.append(compare(model, random_images(model)))
        print(f"{name}: {results[-1].refused or results[-1].error}", file=sys.stderr, flush=True)
        del model
        jax.clear_caches()
        gc.collect()
    if not results:
        sys.exit(f"No model of timm's modules {' and '.join(MODULES)} is like {arguments.pattern}.")
    opened = sum(r.error is not None and r.error <= TOLERANCE for r in results)
    title = f"{opened} of {len(results)} models of timm give timm's logits"
    about = machine.description("timm", "torch")
    machine.report(title, rows_of(results), about, None)
    if arguments.out:
        text = json.dumps({"about": about, "models": [r._asdict() for r in results]}, indent=1)
        pathlib.Path(arguments.out).write_text(text + "\n", encoding="utf-8")
    if wrong := [r.model for r in results if r.error is not None and r.error > TOLERANCE]:
        sys.exit(f"Opened wrongly: {', '.join(wrong)}.")


if __name__ == "__main__":
    main()
