"""Names in files of Hugging Face's transformers.

Its version 5 has other names in memory than version 4. Both write those of version 4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vit_jax.weights.layout import Layout, Packing, Rule
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
    layer_rules,
    norm_rules,
)

# CLIP and SigLIP have the class token as (d,), and positions as (n, d).
_TOKEN = Packing(lambda x: x.reshape(-1), lambda y: y[None, None])
_ROWS = Packing(lambda x: x[0], lambda y: y[None])


class _Spelling(NamedTuple):
    """How a file names the layers of a block.

    Attributes:
      block: begins the names of a block.
      attention: names of query, key, value and out.
      norms: names of the two norms.
      mlp: names of the MLP's arrays, and of our layers in each.
    """

    block: str
    attention: tuple[str, str, str, str]
    norms: tuple[str, str]
    mlp: Mapping[str, tuple[str, ...]]


_ATTENTION_4 = (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
)
_ATTENTION_5 = (
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
)
_VIT_NORMS = ("layernorm_before", "layernorm_after")
_VIT_MLP = {"intermediate.dense": ("Dense_0",), "output.dense": ("Dense_1",)}
_MLP = {"mlp.fc1": ("Dense_0",), "mlp.fc2": ("Dense_1",)}
_GATED_4 = {"mlp.weights_in": ("Gate", "Dense_0"), "mlp.weights_out": ("Dense_1",)}
_GATED_5 = {
    "mlp.gate_proj": ("Gate",),
    "mlp.up_proj": ("Dense_0",),
    "mlp.down_proj": ("Dense_1",),
}

# The first that fits a model is written.
_SPELLINGS = {
    "vit": (
        _Spelling("encoder.layer.{i}.", _ATTENTION_4, _VIT_NORMS, _VIT_MLP),
        _Spelling("layers.{i}.", _ATTENTION_5, _VIT_NORMS, _MLP),
    ),
    "dinov2": tuple(
        _Spelling("encoder.layer.{i}.", attention, ("norm1", "norm2"), mlp)
        for attention, mlps in ((_ATTENTION_4, (_MLP, _GATED_4)), (_ATTENTION_5, (_MLP, _GATED_5)))
        for mlp in mlps
    ),
    "clip": (
        _Spelling(
            "encoder.layers.{i}.",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
            ("layer_norm1", "layer_norm2"),
            _MLP,
        ),
    ),
}
# The tokens beside the class token.
_OTHER_TOKENS = {"vit": "distillation_token", "dinov2": "register_tokens"}


def layouts(
    style: str,
    prefixes: Iterable[tuple[str, str]],
    *,
    distilled: bool,
    ignored: str,
    zeros: str,
) -> tuple[Layout, ...]:
    """Returns the layouts that the files of a class may have.

    Args:
      style: "vit", "dinov2" or "clip", whose names the class has.
      prefixes: what may begin the names of the encoder, and those of its blocks.
      distilled: True if the distillation token is read as a second class token; else it is a
        register.
      ignored, zeros: see `Layout`. Names in `ignored` are without the prefix.
    """
    others = (DISTILLATION if distilled else REGISTERS, _OTHER_TOKENS.get(style, ""))
    found = []
    for prefix, blocks in prefixes:
        left_out = re.compile(f"({re.escape(prefix)})?({ignored})")
        embeddings = _clip_rules(prefix) if style == "clip" else _vit_rules(prefix, *others)
        for spelling in _SPELLINGS[style]:
            rules = [*embeddings, *_block_rules(blocks, spelling)]
            rules = [rule for rule in rules if not left_out.fullmatch(rule.theirs)]
            found.append(Layout("Hugging Face", rules, ignored=left_out.pattern, zeros=zeros))
    return tuple(found)


def _vit_rules(prefix: str, ours: str, theirs: str) -> list[Rule]:
    """Returns the rules of ViT and DINOv2, and of all classes with their names, without blocks.

    Args:
      prefix: begins the file's names.
      ours, theirs: names of the tokens beside the class token.
    """
    distilled = ours == DISTILLATION
    embeddings = f"{prefix}embeddings."
    return [
        Rule(("cls",), f"{embeddings}cls_token"),
        Rule((ours,), f"{embeddings}{theirs}"),
        Rule((TABLE,), f"{embeddings}position_embeddings"),
        *layer_rules("embedding", f"{embeddings}patch_embeddings.projection", CONV),
        *norm_rules("Transformer/encoder_norm", f"{prefix}layernorm"),
        *layer_rules("pre_logits", f"{prefix}pooler.dense", DENSE),
        *layer_rules("head", "cls_classifier" if distilled else "classifier", DENSE),
        *layer_rules("head_dist", "distillation_classifier", DENSE),
    ]


def _clip_rules(prefix: str) -> list[Rule]:
    """Returns the rules of the image towers of CLIP and SigLIP, without blocks."""
    pooling, attention = f"{prefix}head.", "MAPHead_0/MultiHeadDotProductAttention_0/"
    inputs = [f"{attention}{name}" for name in ("query", "key", "value")]
    rules = [
        Rule(("cls",), f"{prefix}embeddings.class_embedding", _TOKEN),
        Rule((TABLE,), f"{prefix}embeddings.position_embedding.weight", _ROWS),
        *layer_rules("embedding", f"{prefix}embeddings.patch_embedding", CONV),
        *norm_rules("Transformer/pre_norm", f"{prefix}pre_layrnorm"),  # so it is spelled
        *norm_rules("Transformer/encoder_norm", f"{prefix}post_layernorm"),
        Rule(("MAPHead_0/probe",), f"{pooling}probe"),
        Rule(tuple(f"{x}/kernel" for x in inputs), f"{pooling}attention.in_proj_weight", HEADS),
        Rule(tuple(f"{x}/bias" for x in inputs), f"{pooling}attention.in_proj_bias", FLAT),
        *layer_rules(f"{attention}out", f"{pooling}attention.out_proj", DENSE),
        *norm_rules("MAPHead_0/LayerNorm_0", f"{pooling}layernorm"),
        *layer_rules("projection", "visual_projection", DENSE),
        *layer_rules("head", "classifier", DENSE),
    ]
    for n in (0, 1):
        rules += layer_rules(f"MAPHead_0/MlpBlock_0/Dense_{n}", f"{pooling}mlp.fc{n + 1}", DENSE)
    return rules


def _block_rules(prefix: str, spelling: _Spelling) -> list[Rule]:
    """Returns the rules of the blocks of any class."""
    block, rules = prefix + spelling.block, []
    for name, theirs in zip(("query", "key", "value"), spelling.attention, strict=False):
        rules += layer_rules(f"{ATTENTION}{name}", block + theirs, HEADS, FLAT)
    rules += layer_rules(f"{ATTENTION}out", block + spelling.attention[-1], DENSE)
    for theirs, ours in spelling.mlp.items():
        rules += layer_rules(f"{BLOCK}MlpBlock_0/", block + theirs, DENSE, fuse=ours)
    for n, theirs in enumerate(spelling.norms):
        rules += norm_rules(f"{BLOCK}LayerNorm_{n}", block + theirs)
        rules.append(Rule((f"{BLOCK}LayerScale_{n}",), f"{block}layer_scale{n + 1}.lambda1"))
    return rules
