"""The attributes of the models, one row each: what may be written there, and what depends on it.

`ATTRIBUTES` has every attribute of `VisionTransformer` and `ResNet` that `config.model` can set.
An attribute's kind decides who may change it:

- "size" makes the variant. The shapes of the parameters show it.
- "weights": the parameters were trained for this value and can't be used with another.
- "mathematics" is what is computed with the same parameters. A run may choose another value; it
  takes that of the weights it starts from if it leaves the attribute open.
- "run" is chosen anew by every run.
- "device" is how the same result is computed on a device.

A new attribute needs a row here, a field in `vit.py` (and in `encoder.py` if the encoder reads
it), and a key in `config/defaults.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np

from vit_jax.models.encoder import MLPS, REMATS
from vit_jax.models.layers import GELUS, IMPLEMENTATIONS, NORMS
from vit_jax.models.pooling import POOLS
from vit_jax.models.positions import KINDS, PLACES
from vit_jax.models.vit import FINAL_NORMS

DTYPES = ("float32", "bfloat16")  # of a model's computation

Kind = Literal["size", "weights", "mathematics", "run", "device"]


class Attribute(NamedTuple):
    """What an attribute can be.

    Attributes:
      kind: what depends on it, see the top of this file.
      fits: value -> True if the attribute can have it.
      expected: which values fit, as an error message says it after "must be".
      choices: all values that fit, () if they can't be listed.
    """

    kind: Kind
    fits: Callable[[Any], bool]
    expected: str
    choices: tuple[Any, ...] = ()


def _whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and x > 0


def _count(x: Any) -> bool:
    return _whole(x) or (x == 0 and isinstance(x, int) and not isinstance(x, bool))


def _wholes(x: Any) -> bool:
    return isinstance(x, tuple) and all(map(_whole, x))


def _finite(x: Any) -> bool:
    largest = float(np.finfo(np.float32).max)
    return isinstance(x, int | float) and not isinstance(x, bool) and -largest <= x <= largest


def _fraction(x: Any) -> bool:
    return _finite(x) and 0 <= x < 1


def _whole_number(kind: Kind) -> Attribute:
    return Attribute(kind, _whole, "a whole number above 0")


def _fraction_number(kind: Kind) -> Attribute:
    return Attribute(kind, _fraction, "a number in [0, 1)")


def _flag(kind: Kind) -> Attribute:
    return Attribute(kind, lambda x: isinstance(x, bool), "True or False")


def _one_of(kind: Kind, *choices: Any) -> Attribute:
    return Attribute(kind, choices.__contains__, " or ".join(map(repr, choices)), choices)


ATTRIBUTES: Mapping[str, Attribute] = MappingProxyType(
    {
        "depth": _whole_number("size"),
        "width": _whole_number("size"),
        "mlp_dim": _whole_number("size"),
        "patch_size": Attribute(
            "size", lambda x: _whole(x) or (_wholes(x) and len(x) == 2), "one side or two"
        ),
        "num_heads": _whole_number("size"),
        "stem": Attribute("size", lambda x: x is None or _wholes(x), "numbers of units, or None"),
        "conv_stem": Attribute(
            "size", lambda x: x is None or (_wholes(x) and len(x) > 0), "channels, or None"
        ),
        "axial": _flag("size"),
        "class_tokens": Attribute(
            "weights", lambda x: x is None or _count(x), "a whole number of at least 0, or None"
        ),
        "registers": Attribute("weights", _count, "a whole number of at least 0"),
        "patch_norm": _flag("weights"),
        "pre_norm": _flag("weights"),
        "final_norm": _one_of("weights", *FINAL_NORMS),
        "norm": _one_of("weights", *NORMS),
        "mlp": _one_of("weights", *MLPS),
        "layers": Attribute("size", lambda x: _wholes(x) and len(x) > 0, "numbers of units"),
        "width_factor": _whole_number("size"),
        "positions": _one_of("weights", *KINDS),
        "positions_at": _one_of("weights", *PLACES),
        "pool": _one_of("mathematics", *POOLS),
        "gelu": _one_of("mathematics", *GELUS),
        "norm_epsilon": _fraction_number("mathematics"),
        "kernel_epsilon": Attribute(
            "mathematics", lambda x: x is None or _fraction(x), "a number in [0, 1), or None"
        ),
        "crop_to_patches": _flag("mathematics"),
        "dropout": _fraction_number("run"),
        "stochastic_depth": _fraction_number("run"),
        "pre_logits": _flag("run"),
        "projection": Attribute("run", _count, "a whole number of at least 0"),
        "head_bias": Attribute("run", _finite, "a finite number"),
        "lora_rank": Attribute("run", _count, "a whole number of at least 0"),
        "lora_alpha": Attribute(
            "run", lambda x: x is None or (_finite(x) and x > 0), "a number above 0, or None"
        ),
        "residual_dtype": _one_of("run", None, *DTYPES),
        "remat": _one_of("device", *REMATS),
        "scan": _flag("device"),
        "implementation": _one_of("device", None, *IMPLEMENTATIONS),
    }
)


def names(*kinds: Kind) -> tuple[str, ...]:
    """Returns the names of the attributes of these kinds, in the order of the table."""
    return tuple(name for name, attribute in ATTRIBUTES.items() if attribute.kind in kinds)


def of_kind(attributes: Mapping[str, Any], *kinds: Kind) -> dict[str, Any]:
    """Returns the attributes that are of one of these kinds.

    Args:
      attributes: values by name. Names that are not in `ATTRIBUTES` are left out.
      *kinds: one or more kinds.
    """
    return {name: value for name, value in attributes.items() if name in names(*kinds)}


def without(attributes: Mapping[str, Any], *kinds: Kind) -> dict[str, Any]:
    """Returns the attributes that are of none of these kinds.

    Args:
      attributes: values by name. Names that are not in `ATTRIBUTES`, such as "variant", are kept.
      *kinds: one or more kinds.
    """
    return {name: value for name, value in attributes.items() if name not in names(*kinds)}


def check(attributes: Mapping[str, Any]) -> None:
    """Raises ValueError if an attribute has a value that doesn't fit.

    Args:
      attributes: values by name. Names that are not in `ATTRIBUTES` are not checked.

    Raises:
      ValueError: a value doesn't fit; names the attribute and what fits.
    """
    for name, attribute in ATTRIBUTES.items():
        if name in attributes and not attribute.fits(value := attributes[name]):
            if attribute.choices:
                raise ValueError(f"{name}={value!r} is unknown: {attribute.expected}.")
            raise ValueError(f"{name}={value!r} must be {attribute.expected}.")
