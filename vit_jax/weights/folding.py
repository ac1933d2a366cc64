"""What other code keeps in arrays of their own, folded into ours with which a model computes it.

`fold` takes arrays by our names, and by names that no model of ours has:

- `Transformer/encoderblock_{i}/LayerScale_{0,1}` (d,): factors of a residual branch's result
  (Touvron et al., arXiv 2103.17239)
- `distillation_token` (1, 1, d), `head_dist/{kernel,bias}`: the second class token of a distilled
  DeiT, and its head (Touvron et al., arXiv 2012.12877)

All of it is exact but for rounding in float32.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.weights.layout import Shape
from vit_jax.weights.parameter_names.rules import DISTILLATION, REGISTERS, TABLE
from vit_jax.weights.tensor_file import LazyArray

# The layer of a block whose result a LayerScale multiplies.
_SCALED = {
    "LayerScale_0": "MultiHeadDotProductAttention_0/out",
    "LayerScale_1": "MlpBlock_0/Dense_1",
}

Arrays = dict[str, LazyArray]


def fold(
    arrays: Mapping[str, LazyArray],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    patches: int | None = None,
    class_rows: bool | None = None,
    zeros: re.Pattern[str] = re.compile(""),
) -> tuple[Arrays, list[str]]:
    """Returns arrays of the same function by the names that our models have, and what was changed.

    Args:
      arrays: by name, see the top of this file.
      mean, std: of red, green and blue, see `TensorFile`. None if images are in [-1, 1].
      patches: number of patches of an image. None if it is not known.
      class_rows: see `Layout`.
      zeros: matches the names of biases that may be missing.

    Returns:
      The arrays by name, and a sentence for each kind of change.

    Raises:
      ValueError: something can't be folded; says what.
    """
    arrays = dict(arrays)
    changes = [
        _join_class_tokens(arrays),
        _complete_positions(arrays, patches, class_rows),
        _fold_layer_scale(arrays),
        _add_biases(arrays, zeros),
    ]
    if mean is not None and std is not None:
        changes.append(_fold_normalisation(arrays, mean, std))
    return arrays, [change for change in changes if change]


def derived(shape: Shape, function: Callable[..., np.ndarray], *arrays: LazyArray) -> LazyArray:
    """Returns the array of a shape that a function makes of others when it is asked for."""
    return LazyArray(shape, lambda: function(*map(np.asarray, arrays)))


def _join_class_tokens(arrays: Arrays) -> str:
    """Makes one array of the class token and the distillation token, and one head of the two."""
    if DISTILLATION not in arrays or "cls" not in arrays or len(arrays["cls"].shape) != 3:
        return ""
    cls, other = arrays["cls"], arrays.pop(DISTILLATION)
    arrays["cls"] = derived(
        (1, 2, cls.shape[-1]), lambda a, b: np.concatenate([a, b], axis=1), cls, other
    )
    if "head_dist/kernel" not in arrays:
        return ""
    for name, join in (
        ("kernel", lambda a, b: np.concatenate([a, b]) / 2),
        ("bias", lambda a, b: (a + b) / 2),
    ):
        own, dist = arrays.get(f"head/{name}"), arrays.pop(f"head_dist/{name}", None)
        if own is None or dist is None or own.shape != dist.shape:
            raise ValueError(f"head and head_dist must have a {name} of the same shape")
        shape = own.shape if name == "bias" else (2 * own.shape[0], *own.shape[1:])
        arrays[f"head/{name}"] = derived(shape, join, own, dist)
    return "The two heads are one head that reads both class tokens; it gives their mean."


def _complete_positions(arrays: Arrays, patches: int | None, class_rows: bool | None) -> str:
    """Makes the table of positions one of class tokens and patches; registers have none."""
    if TABLE not in arrays or len(arrays[TABLE].shape) != 3:
        return ""
    table = arrays[TABLE]
    _, rows, width = table.shape
    if any(len(arrays[name].shape) != 3 for name in ("cls", REGISTERS) if name in arrays):
        return ""  # it is reported as of another shape
    tokens = arrays["cls"].shape[1] if "cls" in arrays else 0
    registers = arrays[REGISTERS].shape[1] if REGISTERS in arrays else 0

    # Rows of other tokens than patches, as far as the number of the others can be one of patches.
    numbers = [0, tokens] if class_rows is False else [tokens, tokens + registers]
    if class_rows is None:
        numbers.append(0)
    known = [n for n in numbers if rows - n == patches]
    squares = [n for n in numbers if n < rows and math.isqrt(rows - n) ** 2 == rows - n]
    others = [*known, *squares, *numbers][0]
    if others == tokens:
        return ""
    if others:
        own = slice(tokens, tokens + registers)
        arrays[REGISTERS] = derived(
            (1, registers, width), lambda r, t: r + t[:, own], arrays[REGISTERS], table
        )
        arrays[TABLE] = derived(
            (1, rows - registers, width), lambda t: np.delete(t, own, axis=1), table
        )
        return "The registers' positions are added to the registers."
    arrays[TABLE] = derived(
        (1, tokens + rows, width),
        lambda t: np.concatenate([np.zeros((1, tokens, width), t.dtype), t], axis=1),
        table,
    )
    return "The class token, which has no position there, has one of zeros."


def _fold_layer_scale(arrays: Arrays) -> str:
    """Multiplies the last layer of each residual branch by the branch's factors."""
    names = [name for name in arrays if name.rsplit("/", 1)[-1] in _SCALED]
    for name in names:
        block, kind = name.rsplit("/", 1)
        scale = arrays.pop(name)
        for part in ("kernel", "bias"):
            layer = f"{block}/{_SCALED[kind]}/{part}"
            if layer not in arrays:
                continue
            if arrays[layer].shape[-1:] != scale.shape:
                raise ValueError(
                    f"{name} has the shape {scale.shape}, which doesn't fit {layer} "
                    f"{arrays[layer].shape}"
                )
            arrays[layer] = derived(arrays[layer].shape, np.multiply, arrays[layer], scale)
    blocks = {name.rsplit("/", 1)[0] for name in names}
    incomplete = sorted(b for b in blocks if sum(n.startswith(f"{b}/") for n in names) < 2)
    every = {m[0] for n in arrays if (m := re.match(r"Transformer/encoderblock_\d+", n))}
    if names and (incomplete or every - blocks):
        bad = (incomplete or sorted(every - blocks))[0]
        raise ValueError(f"{bad} lacks a LayerScale, which other blocks have")
    return "LayerScale is folded into the last layer of each residual branch." if names else ""


def _add_biases(arrays: Arrays, zeros: re.Pattern[str]) -> str:
    """Adds zeros for the biases that no layer of a kind has."""
    missing: dict[str, list[str]] = {}
    present = set()
    for name in [name for name in arrays if name.endswith("/kernel")]:
        bias = f"{name.removesuffix('kernel')}bias"
        kind = re.sub(r"\d+", "", bias, count=1)
        if bias in arrays:
            present.add(kind)
        elif zeros.fullmatch(bias):
            missing.setdefault(kind, []).append(bias)
    added = [bias for kind, names in missing.items() if kind not in present for bias in names]
    for bias in added:
        kernel = arrays[f"{bias.removesuffix('bias')}kernel"].shape
        inputs = len(kernel) - 1 if bias.endswith(("embedding/bias", "out/bias")) else 1
        arrays[bias] = LazyArray(
            kernel[inputs:], functools.partial(np.zeros, kernel[inputs:], np.float32)
        )
    kinds = sorted({bias.split("/")[-2] for bias in added})
    return f"Biases that are missing are zeros: {', '.join(kinds)}." if added else ""


def _fold_normalisation(arrays: Arrays, mean: Sequence[float], std: Sequence[float]) -> str:
    """Makes the patch embedding one of pixels in [-1, 1], as `models.patches.to_float` gives them.

    With pixels x in [0, 1], W (x - mean) / std + b is W / (2 std) (2 x - 1) + b + W (0.5 - mean) /
    std, summed over a patch.
    """
    if all(v == 0.5 for v in (*mean, *std)):
        return ""
    if min(std) <= 0:
        raise ValueError(f"the standard deviation of its images, {tuple(std)}, must be above 0")
    if "conv_root/kernel" in arrays:
        raise ValueError(
            f"its images are normalised with the mean {tuple(mean)} and the standard deviation "
            f"{tuple(std)}, which can't be folded into a stem of standardised kernels"
        )
    kernel, bias = (arrays.get(f"embedding/{x}") for x in ("kernel", "bias"))
    if kernel is None or bias is None or len(kernel.shape) != 4 or kernel.shape[2] != len(mean):
        return ""  # it is reported as missing, or as of another shape
    shift = (0.5 - np.asarray(mean, np.float64)) / np.asarray(std, np.float64)
    scale = 0.5 / np.asarray(std, np.float64)
    arrays["embedding/kernel"] = derived(kernel.shape, lambda k: k * scale[:, None], kernel)
    arrays["embedding/bias"] = derived(
        bias.shape,
        lambda k, b: b + np.einsum("hwcd,c->d", k.astype(np.float64), shift),
        kernel,
        bias,
    )
    numbers = ", ".join(f"{v:g}" for v in mean), ", ".join(f"{v:g}" for v in std)
    return (
        f"Mean ({numbers[0]}) and standard deviation ({numbers[1]}) of the images are folded into "
        f"the patch embedding."
    )


def unfold(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a checkpoint with parameters as timm keeps them, which `fold` takes back.

    Two class tokens become a class token and a distillation token, each with a head. Rows of the
    table of positions that belong to class tokens are left out if they are zeros; if not, registers
    get rows of zeros.
    """
    flat = flatten_dict(checkpoint.params, sep="/")
    if "cls" not in flat:
        return checkpoint
    cls = np.asarray(flat["cls"])
    tokens, width = cls.shape[1:]
    if TABLE in flat:
        table = np.asarray(flat[TABLE])
        own, patches = table[:, :tokens], table[:, tokens:]
        if not own.any():
            flat[TABLE] = patches
        elif REGISTERS in flat:
            rows = np.zeros_like(flat[REGISTERS], np.float32)
            flat[TABLE] = np.concatenate([own, rows, patches], axis=1)
    if tokens == 2 and checkpoint.model().pool == "token":
        flat["cls"], flat[DISTILLATION] = cls[:, :1], cls[:, 1:]
        if "head" in checkpoint.params:
            kernel = np.asarray(flat["head/kernel"])
            for layer, part in (("head", kernel[:width]), ("head_dist", kernel[width:])):
                flat[f"{layer}/kernel"], flat[f"{layer}/bias"] = 2 * part, flat["head/bias"]
    return checkpoint._replace(params=unflatten_dict(flat, sep="/"))
