"""Names in `.npz` files: the published ViTs and BiT ResNets, and our own."""

from __future__ import annotations

from vit_jax.weights.layout import Layout, Rule
from vit_jax.weights.parameter_names.big_vision import BIG_VISION
from vit_jax.weights.parameter_names.rules import (
    ATTENTION,
    BIT_CONV_HEAD,
    BLOCK,
    TABLE,
    UNIT,
    norm_rules,
    same_rules,
)


def _published() -> list[Rule]:
    """Returns the rules of the published `.npz` of ViTs and hybrids.

    They come from Flax before Linen, which numbered submodules of all kinds in one sequence.
    """
    attention = BLOCK + "MultiHeadDotProductAttention_1/"
    rules = same_rules("cls", TABLE)
    for name in ("embedding", "pre_logits", "head"):
        rules += same_rules(f"{name}/kernel", f"{name}/bias")
    for name in ("query", "key", "value", "out"):
        for x in ("kernel", "bias"):
            rules.append(Rule((f"{ATTENTION}{name}/{x}",), f"{attention}{name}/{x}"))
    for ours, theirs in (("LayerNorm_0", "LayerNorm_0"), ("LayerNorm_1", "LayerNorm_2")):
        rules += norm_rules(BLOCK + ours, BLOCK + theirs, ("scale", "bias"), "/")
    for n in (0, 1):
        for x in ("kernel", "bias"):
            layer = f"Dense_{n}/{x}"
            rules.append(Rule((f"{BLOCK}MlpBlock_0/{layer}",), f"{BLOCK}MlpBlock_3/{layer}"))
    rules += same_rules(*(f"Transformer/encoder_norm/{x}" for x in ("scale", "bias")))
    rules += same_rules("conv_root/kernel", "gn_root/scale", "gn_root/bias")
    for part in ("1", "2", "3", "_proj"):
        conv, norm = f"{UNIT}conv{part}", f"{UNIT}gn{part}"
        rules += same_rules(f"{conv}/kernel", f"{norm}/scale", f"{norm}/bias")
    return rules


def _bit() -> list[Rule]:
    """Returns the rules of the published `.npz` of BiT ResNets."""
    unit, conv = "resnet/block{s}/unit{u:02d}/", "standardized_conv2d/kernel"
    names = ("gamma", "beta")
    rules = [
        Rule(("conv_root/kernel",), f"resnet/root_block/{conv}"),
        Rule((f"{UNIT}conv_proj/kernel",), f"{unit}a/proj/{conv}"),
        Rule(("head/kernel",), "resnet/head/conv2d/kernel", BIT_CONV_HEAD),
        Rule(("head/bias",), "resnet/head/conv2d/bias"),
        *norm_rules("gn_pre_head", "resnet/group_norm", names, "/"),
    ]
    for n, letter in enumerate("abc", 1):
        rules.append(Rule((f"{UNIT}conv{n}/kernel",), f"{unit}{letter}/{conv}"))
        rules += norm_rules(f"{UNIT}gn{n}", f"{unit}{letter}/group_norm", names, "/")
    return rules


OURS = Layout("our own")
# The first that knows most names is taken: ours begin like those of big_vision before 2022.
NPZ = (
    Layout("published JAX", _published()),
    Layout("published BiT", _bit()),
    BIG_VISION,
    OURS,
)
