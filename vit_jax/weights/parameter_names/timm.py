"""Names in state dicts of timm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_jax.weights.layout import Layout, Rule
from vit_jax.weights.parameter_names.rules import (
    ATTENTION,
    BLOCK,
    CONV,
    DENSE,
    DISTILLATION,
    FLAT,
    HEADS,
    REGISTERS,
    TABLE,
    TIMM_CONV_HEAD,
    UNIT,
    layer_rules,
    norm_rules,
)

# Biases that some of timm's models lack.
ZEROS = r"embedding/bias|(Transformer|MAPHead_0)/.*/bias"


def _torch_stages(prefix: str, projected_norm: bool) -> list[Rule]:
    """Returns the rules of a ResNet's stages in timm.

    Args:
      prefix: begins the file's names.
      projected_norm: True if the projection of a residual is normalised.
    """
    unit = prefix + "stages.{s-1}.blocks.{u-1}."
    rules = [Rule((f"{UNIT}conv_proj/kernel",), f"{unit}downsample.conv.weight", CONV)]
    if projected_norm:
        rules += norm_rules(f"{UNIT}gn_proj", f"{unit}downsample.norm")
    for n in (1, 2, 3):
        rules.append(Rule((f"{UNIT}conv{n}/kernel",), f"{unit}conv{n}.weight", CONV))
        rules += norm_rules(f"{UNIT}gn{n}", f"{unit}norm{n}")
    return rules


def timm_rules(stem: str = "", *, stages: bool = False, gate: str = "") -> list[Rule]:
    """Returns the rules of timm's `vit_*`, `deit*` and `vit_*_r*`.

    Args:
      stem: begins the file's names of the root convolution and its norm. "" if there is none.
      stages: True if the stem has stages of residual units.
      gate: of a gated MLP: "packed" if the gate and the first layer are one array, the gate first;
        else the file's names of the two.
    """
    block = "blocks.{i}."
    fuse = ("query", "key", "value")
    rules = [
        Rule(("cls",), "cls_token"),
        Rule((DISTILLATION,), "dist_token"),
        Rule((REGISTERS,), "reg_token"),
        Rule((TABLE,), "pos_embed"),
        *layer_rules("embedding", "patch_embed.proj", CONV),
        *layer_rules(ATTENTION, f"{block}attn.qkv", HEADS, FLAT, fuse),
        *layer_rules(f"{ATTENTION}out", f"{block}attn.proj", DENSE),
        *norm_rules("patch_norm", "patch_embed.norm"),
        *norm_rules("Transformer/pre_norm", "norm_pre"),
        *norm_rules("Transformer/encoder_norm", "norm"),
        *norm_rules("fc_norm", "fc_norm"),
        *layer_rules("pre_logits", "pre_logits.fc", DENSE),
        *layer_rules("head", "head", DENSE),
        *layer_rules("head_dist", "head_dist", DENSE),
        *_attention_pooling(),
    ]
    for n in (0, 1):
        rules += norm_rules(f"{BLOCK}LayerNorm_{n}", f"{block}norm{n + 1}")
        rules.append(Rule((f"{BLOCK}LayerScale_{n}",), f"{block}ls{n + 1}.gamma"))
    mlp = f"{BLOCK}MlpBlock_0/"
    rules += layer_rules(f"{mlp}Dense_1", f"{block}mlp.fc2", DENSE)
    if gate == "packed":
        rules += layer_rules(mlp, f"{block}mlp.fc1", DENSE, fuse=("Gate", "Dense_0"))
    elif gate:
        for ours, theirs in zip(("Gate", "Dense_0"), gate.split(), strict=True):
            rules += layer_rules(f"{mlp}{ours}", f"{block}mlp.{theirs}", DENSE)
    else:
        rules += layer_rules(f"{mlp}Dense_0", f"{block}mlp.fc1", DENSE)
    if stem:
        rules.append(Rule(("conv_root/kernel",), f"{stem}conv.weight", CONV))
        rules += norm_rules("gn_root", f"{stem}norm")
    return rules + (_torch_stages("patch_embed.backbone.", True) if stages else [])


def _attention_pooling() -> list[Rule]:
    """Returns the rules of timm's `AttentionPoolLatent`."""
    head, theirs = "MAPHead_0/", "attn_pool."
    attention = f"{head}MultiHeadDotProductAttention_0/"
    rules = [
        Rule((f"{head}probe",), f"{theirs}latent"),
        *layer_rules(f"{attention}query", f"{theirs}q", HEADS, FLAT),
        *layer_rules(attention, f"{theirs}kv", HEADS, FLAT, ("key", "value")),
        *layer_rules(f"{attention}out", f"{theirs}proj", DENSE),
        *norm_rules(f"{head}LayerNorm_0", f"{theirs}norm"),
    ]
    for n in (0, 1):
        rules += layer_rules(f"{head}MlpBlock_0/Dense_{n}", f"{theirs}mlp.fc{n + 1}", DENSE)
    return rules


def _timm_bit() -> list[Rule]:
    """Returns the rules of timm's `resnetv2_*_bit`."""
    return [
        Rule(("conv_root/kernel",), "stem.conv.weight", CONV),
        *norm_rules("gn_pre_head", "norm"),
        *layer_rules("head", "head.fc", TIMM_CONV_HEAD),
        *_torch_stages("", False),
    ]


# Of MLPs that multiply by a gate, the files don't all have the same names; see `read_timm`.
_OPTIONS: Mapping[str, Any] = {"zeros": ZEROS, "class_rows": None}
TIMM_PACKED = Layout("timm", timm_rules(gate="packed"), **_OPTIONS)
TIMM = (
    Layout("timm", timm_rules(), **_OPTIONS),
    Layout("timm", timm_rules("patch_embed.backbone.")),  # R+Ti/16: a root, no stages
    Layout("timm", timm_rules("patch_embed.backbone.stem.", stages=True)),
    Layout("timm", timm_rules(gate="fc1_g fc1_x"), **_OPTIONS),
    Layout("timm", _timm_bit()),
)
