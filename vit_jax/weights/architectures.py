"""What the names of timm's architectures say of a model, and what its config.json adds.

A name is one of timm's modules `vision_transformer`, `deit`, `vision_transformer_hybrid` or, for
BiT alone, `resnetv2`. An example is "vit_base_patch16_clip_quickgelu_224.metaclip_400m". What
follows the first dot, the tag, says where the weights come from. All other names are unknown here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# (Width, number of attention heads), by the size in a name. Most have 64 features in a head.
_SIZES = {
    "tiny": (192, 3),
    "xsmall": (256, 4),
    "wee": (256, 4),
    "dwee": (256, 4),
    "pwee": (256, 4),
    "dpwee": (256, 4),
    "little": (320, 5),
    "dlittle": (320, 5),
    "small": (384, 6),
    "medium": (512, 8),
    "mediumd": (512, 8),
    "betwixt": (640, 10),
    "base": (768, 12),
    "so150m2": (832, 13),
    "so150m": (896, 14),
    "intern300m": (1024, 16),
    "large": (1024, 16),
    "so400m": (1152, 16),
    "huge": (1280, 16),
    "giant": (1408, 16),
    "giantopt": (1536, 16),
    "gigantic": (1664, 16),
}
_AIMV2 = {"large": (1024, 8), "huge": (1536, 12), "1b": (2048, 16), "3b": (3072, 24)}
_TESTS = {"": (64, 2), "2": (64, 2), "3": (96, 3), "4": (96, 3)}

# Names, with a group "size" where the heads depend on it. In `vit_*`, "rest" has what comes after
# the patch size: other words belong to other architectures.
_SIZE = "|".join(_SIZES)
_WORDS = (
    r"\d{3}|plus|clip|quickgelu|siglip|gap|map|reg\d|dinov2|tipsv2|miil|rpn|xp|18x2|36x1|radio"
    r"|v[34]|in21k|dino|sam|laion2b"
)
_NAMES = {
    "vit": rf"vit_(?P<size>{_SIZE})_patch\d+(?P<rest>(_({_WORDS}))+)",
    "deit": r"deit3?_(?P<size>tiny|small|medium|base|large|huge)(_distilled)?_patch\d+_\d{3}"
    r"(_in21ft1k)?",
    "flexivit": r"flexivit_(?P<size>small|base|large)",
    "eva": r"eva_(?P<size>large)_patch14_\d{3}",
    "beit3": r"beit3_(?P<size>base|large|giant)_patch\d+_\d{3}",
    "aimv2": r"aimv2_(?P<size>large|huge|1b|3b)_patch14_\d{3}",
    "test": r"test_vit(?P<size>[234]?)",
    "hybrid": r"vit_(?P<size>tiny|small|base|large)_(r\d*_s\d+(_p\d+)?|resnet50)_\d{3}(_in21k)?",
    "other hybrid": r"vit_(?P<size>small|base)_(resnet\d+d(_s16)?|mci)_224",
    "bit": r"resnetv2_\d+x\d_bit(m|m_in21k|_distilled|_teacher|_teacher_384)?",
}

# What models have that ours don't compute. The first pattern is of names, the second of arrays.
_REFUSED = (
    (
        r"beit3_.*",
        r"blocks\.\d+\.(attn|mlp)\.norm\.(weight|bias)",
        "normalisation inside its attention and its MLP (as in BEiT-3)",
    ),
    (
        r"vit_\w+_18x2_.*",
        r"blocks\.\d+\.(attns|ffns)\.\d+\..*",
        "blocks of two attentions side by side, and of two MLPs side by side",
    ),
    (r"vit_d(little|p?wee)_.*", r"blocks\.\d+\.(attn\.)?lambda_[qk]\d", "differential attention"),
    (
        r"vit_(d?pwee_.*|\w+_xp_.*)",
        r"blocks\.\d+\.(in_norm|in_proj|mlp_out_proj|attn_out_proj)\..*",
        "attention and MLP side by side in a block",
    ),
    (
        r"vit_\w+_rpn_.*",
        "",  # the arrays have the names of a plain ViT
        "residual post-normalisation: each LayerNorm comes after the attention or the MLP",
    ),
    (
        "",
        r"blocks\.\d+\.attn\.[qk]_norm\..*",
        "normalised queries and keys",
    ),
    (
        "",
        r"(blocks\.\d+\.attn\.|)(rel_pos|relative_position).*",
        "positions that are added in its attention",
    ),
    (  # arrays of the Perception Encoder have the names of a plain ViT, too
        r"(eva02|vit_pe)_.*|\w*(_rope|naflexvit)_.*",
        "",
        "rotary positions",
    ),
    (r"test_vit3", "", "attention pooling that reads its registers, too"),
    (r"vit_\w+_resnet\d+d_.*", r"patch_embed\.backbone\.conv1\..*", "a ResNet-D as its stem"),
    (r"vit_\w+_mci_.*", r"patch_embed\.backbone\.\d\.conv\..*", "convolutions as its stem"),
)


def _find(name: str) -> tuple[str, dict[str, str]] | None:
    """Returns the kind of a name, a key of `_NAMES`, and its parts. None if it is unknown."""
    name = _without_tag(name)
    for kind, pattern in _NAMES.items():
        if match := re.fullmatch(pattern, name):
            return kind, match.groupdict("")
    return None


def _without_tag(name: str) -> str:
    return name.removeprefix("timm/").partition(".")[0]


def attributes_of(name: str) -> dict[str, Any] | None:
    """Returns what the name of an architecture says that no array shows.

    Args:
      name: timm's name, with or without "timm/" before it and a tag behind it.

    Returns:
      `num_heads`, `gelu`, `norm_epsilon` and `pool` of a ViT, and `width`, with which the arrays
      must agree; `kernel_epsilon` of a model with standardised kernels. None if the name is
      unknown.

    Example:
      >>> attributes_of("vit_base_patch16_gap_224")
      {'width': 768, 'num_heads': 16, 'gelu': 'exact', 'norm_epsilon': 1e-06, 'pool': 'gap'}
    """
    if (found := _find(name)) is None:
        return None
    kind, parts = found
    if kind == "bit":
        return {"kernel_epsilon": 1e-8}
    words = parts.get("rest", "").split("_")
    few_digits = kind == "aimv2" or kind == "beit3" or "clip" in words
    width, num_heads = _width_and_heads(kind, parts["size"], words)
    attributes = {
        "width": width,
        "num_heads": num_heads,
        "gelu": _gelu(_without_tag(name), words),
        "norm_epsilon": 1e-5 if few_digits else 1e-6,
        "pool": _pool(kind, parts["size"], words),
    }
    return attributes | ({"kernel_epsilon": 1e-8} if kind == "hybrid" else {})


def _width_and_heads(kind: str, size: str, words: list[str]) -> tuple[int, int]:
    if kind in ("aimv2", "test"):
        return {"aimv2": _AIMV2, "test": _TESTS}[kind][size]
    if size == "giant" and not {"dinov2", "tipsv2", "radio"}.isdisjoint(words):
        return 1536, 24
    if size == "base" and "plus" in words:
        return 896, 14
    if size == "base" and "gap" in words and "siglip" not in words and "reg4" not in words:
        return 768, 16
    return _SIZES[size]


def _gelu(name: str, words: list[str]) -> str:
    if "quickgelu" in words:
        return "quick"
    second = re.search(r"patch32|giantopt|so400m_patch16|large_patch16_\w*512", name)
    return "tanh" if "siglip" in words and second else "exact"


def _pool(kind: str, size: str, words: list[str]) -> str:
    if kind in ("aimv2", "eva", "beit3") or "rpn" in words or "gap" in words:
        return "gap"
    if kind == "test" and size:
        return "map" if size == "3" else "gap"
    return "map" if "map" in words or "siglip" in words else "token"


def refusal_of(name: str) -> str:
    """Returns a sentence that names what an architecture has that our models don't compute.

    Args:
      name: as for `attributes_of`.

    Returns:
      "" if nothing is known of it.
    """
    name = _without_tag(name)
    reasons = [what for pattern, _, what in _REFUSED if pattern and re.fullmatch(pattern, name)]
    return _refusal(f"{name} has", reasons)


def refusal_of_arrays(names: Iterable[str]) -> str:
    """Returns a sentence that names what a file's arrays belong to that our models don't compute.

    Args:
      names: the names of the arrays, as timm has them.

    Returns:
      "" if there is nothing.
    """
    names = list(names)
    found = [what for _, arrays, what in _REFUSED if any(re.fullmatch(arrays, n) for n in names)]
    return _refusal("it has", found)


def _refusal(start: str, reasons: list[str]) -> str:
    return f"{start} {', and '.join(reasons)}, which our models don't compute." if reasons else ""


POOLS = {"token": "token", "avg": "gap", "map": "map"}  # timm's global_pool as our `pool`
_GELUS = {"gelu": "exact", "gelu_tanh": "tanh", "quick_gelu": "quick"}
# Arguments of timm's models that the arrays show, or that matter in training alone.
_SHOWN = (
    *("img_size", "patch_size", "in_chans", "num_classes", "depth", "mlp_ratio"),
    *("qkv_bias", "proj_bias", "init_values", "class_token", "pos_embed", "no_embed_class"),
    *("reg_tokens", "pre_norm", "final_norm", "fc_norm", "dynamic_img_size", "dynamic_img_pad"),
    *("strict_img_size", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate"),
    *("attn_drop_rate", "drop_path_rate", "weight_init", "fix_init"),
)
_OFF = (None, False, "")  # values that switch an argument off


def from_model_args(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `model_args` in timm's config.json says of attributes as `attributes_of` does.

    Args:
      model_args: arguments of timm's model that are not those of its architecture.

    Raises:
      ValueError: an argument changes what is computed, and we have nothing for its value.
    """
    attributes: dict[str, Any] = {}
    for key, value in model_args.items():
        if key in ("embed_dim", "num_heads") and type(value) is int:
            attributes["width" if key == "embed_dim" else key] = value
        elif key == "global_pool" and value in list(POOLS):
            attributes["pool"] = POOLS[value]
        elif key == "act_layer" and value in list(_GELUS):
            attributes["gelu"] = _GELUS[value]
        elif key == "norm_layer" and value in ("layernorm", "rmsnorm"):
            attributes["norm_epsilon"] = 1e-6  # timm's for a normalisation that has a name only
        elif key not in _SHOWN and (value not in _OFF or key == "global_pool"):
            raise ValueError(
                f"model_args has {key}={value!r}, which our models don't compute. These fit: "
                f"num_heads; global_pool {', '.join(POOLS)}; act_layer {', '.join(_GELUS)}; "
                f"norm_layer layernorm, rmsnorm; and all that the arrays show."
            )
    return attributes


# Mean and standard deviation of images, for red, green and blue, of pixels in [0, 1].
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
