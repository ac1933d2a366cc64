"""FLOPs of matmuls and convolutions in HLO, computed by XLA itself or by a library for GPUs."""

from __future__ import annotations

import math
import re

from vit_jax.analysis.hlo_text import Computation, Instruction, dimensions
from vit_jax.models.flops import valid_pairs


def instruction_flops(instruction: Instruction, computation: Computation) -> int | None:
    """Returns the multiplications and additions of a matmul, a convolution or a library's call.

    It is 0 for all other instructions, and None if a library computes something that is not known
    here. Of attention, the derivative computes the scores again, which is counted.

    Args:
      instruction: an instruction of `computation`.
      computation: where the shapes of the operands are found.
    """
    if instruction.kind == "dot":
        return _matmul(instruction, computation)
    if instruction.kind == "convolution":
        return _convolution(instruction, computation)
    name = instruction.library_call
    if instruction.kind != "custom-call" or not name:
        return 0
    if re.match(r"__cublas\$(gemm|lt\$matmul)", name):
        return _matmul(instruction, computation)
    if re.match(r"__cudnn\$conv(\w*Forward|BackwardFilter|BackwardInput)$", name):
        return _convolution(instruction, computation)
    if match := re.match(r"__cudnn\$fmhaSoftmax(Backward)?$", name):
        query, key = (dimensions(computation[x].shape) for x in instruction.operands[:2])
        matmuls = 5 if match[1] else 2
        return matmuls * 2 * math.prod(query) * key[1]  # query: (b, n, heads, depth)
    return None


def _matmul(instruction: Instruction, computation: Computation) -> int:
    """XLA writes the axes as attributes, cuBLAS as JSON."""
    (contracted, *_) = re.findall(
        r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', instruction.rest
    )
    lhs = dimensions(computation[instruction.operands[0]].shape)
    inner = math.prod(lhs[int(axis)] for axis in re.findall(r"\d+", contracted))
    return 2 * math.prod(dimensions(instruction.shape)) * inner


def _convolution(instruction: Instruction, computation: Computation) -> int:
    """Counts as XLA does: without multiplications by padding or by the zeros of a dilation.

    This matters on TPUs, where XLA turns a batch of matmuls into a convolution with dilation. The
    attributes of cuDNN's derivatives are those of the convolution that they are derivatives of.
    """
    first, second = (dimensions(computation[x].shape) for x in instruction.operands[:2])
    lhs, rhs, out = first, second, dimensions(instruction.shape)
    if "BackwardFilter" in instruction.library_call:  # reads the input and the gradient
        lhs, rhs, out = first, out, second
    elif "BackwardInput" in instruction.library_call:  # reads the gradient and the filter
        lhs, rhs, out = out, second, first
    (labels, *_) = re.findall(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    settings = re.findall(r"window=\{([^}]*)\}", instruction.rest)
    window = dict(part.split("=") for part in settings[0].split()) if settings else {}
    lhs_labels, rhs_labels, out_labels = labels
    pairs = out[out_labels.index("b")] * out[out_labels.index("f")] * rhs[rhs_labels.index("i")]
    for axis in range(len(lhs_labels) - 2):
        sizes = (
            array[names.index(str(axis))]
            for array, names in zip((lhs, rhs, out), labels, strict=True)
        )
        pairs *= valid_pairs(
            *sizes,
            stride=_along(window, "stride", axis, 1),
            padding=_along(window, "pad", axis, 0),
            lhs_dilation=_along(window, "lhs_dilate", axis, 1),
            rhs_dilation=_along(window, "rhs_dilate", axis, 1),
        )
    return 2 * pairs


def _along(window: dict[str, str], name: str, axis: int, default: int) -> int:
    """Returns a setting of a window along an axis; of padding, what lies before the input."""
    return int(window[name].split("x")[axis].split("_")[0]) if name in window else default
