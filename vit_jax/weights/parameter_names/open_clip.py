"""Names in state dicts of open_clip, which are also those of OpenAI's CLIP."""

from __future__ import annotations

from vit_jax.weights.layout import Layout, Packing, Rule
from vit_jax.weights.parameter_names.rules import (
    ATTENTION,
    BLOCK,
    CONV,
    DENSE,
    FLAT,
    HEADS,
    TABLE,
    layer_rules,
    norm_rules,
)
from vit_jax.weights.parameter_names.timm import ZEROS, timm_rules

TRUNK = "visual.trunk."  # begins the names of a tower that is one of timm's models

_ROW = Packing(lambda x: x[0, 0], lambda y: y[None, None])  # (1, 1, d) <-> (d,)
_ROWS = Packing(lambda x: x[0], lambda y: y[None])  # (1, n, d) <-> (n, d)
_OTHERS = r"(?!visual\.).*"  # the text tower, and the scale of similarities


def _rules(final_norm: str) -> list[Rule]:
    """Returns the rules of open_clip's own image towers.

    Args:
      final_norm: our name of the last normalisation.
    """
    block = "visual.transformer.resblocks.{i}."
    fuse = ("query", "key", "value")
    rules = [
        Rule(("cls",), "visual.class_embedding", _ROW),
        Rule((TABLE,), "visual.positional_embedding", _ROWS),
        Rule(("embedding/kernel",), "visual.conv1.weight", CONV),
        Rule(("projection/kernel",), "visual.proj"),
        *norm_rules("Transformer/pre_norm", "visual.ln_pre"),
        *norm_rules(final_norm, "visual.ln_post"),
        *layer_rules(f"{ATTENTION}out", f"{block}attn.out_proj", DENSE),
        *layer_rules(f"{BLOCK}MlpBlock_0/Dense_0", f"{block}mlp.c_fc", DENSE),
        *layer_rules(f"{BLOCK}MlpBlock_0/Dense_1", f"{block}mlp.c_proj", DENSE),
    ]
    for kind, packing in (("kernel", HEADS), ("bias", FLAT)):
        theirs = f"{block}attn.in_proj_{'weight' if kind == 'kernel' else 'bias'}"
        rules.append(Rule(tuple(f"{ATTENTION}{part}/{kind}" for part in fuse), theirs, packing))
    for n in (0, 1):
        rules += norm_rules(f"{BLOCK}LayerNorm_{n}", f"{block}ln_{n + 1}")
        rules.append(Rule((f"{BLOCK}LayerScale_{n}",), f"{block}ls_{n + 1}.gamma"))
    return rules


def _trunk_rules() -> list[Rule]:
    """Returns the rules of towers that are models of timm."""
    rules = [rule._replace(theirs=TRUNK + rule.theirs) for rule in timm_rules()]
    return [*rules, Rule(("projection/kernel",), "visual.head.proj.weight", DENSE)]


def _own(final_norm: str) -> Layout:
    return Layout("open_clip", _rules(final_norm), ignored=_OTHERS, zeros="embedding/bias")


OPEN_CLIP = _own("Transformer/encoder_norm")
OPEN_CLIP_NORM_AFTER = _own("fc_norm")
OPEN_CLIP_TIMM = Layout("open_clip", _trunk_rules(), ignored=_OTHERS, zeros=ZEROS, class_rows=None)
