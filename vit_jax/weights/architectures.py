"""What the names of timm's architectures say of a model, and what its config.json adds.

A name is one of timm's modules `vision_transformer`, `deit`, `vision_transformer_hybrid` or, for
BiT alone, `resnetv2`. An example is "vit_base_patch16_clip_quickgelu_224.metaclip_400m". What
follows the first dot, the tag, says where the weights come from. All other names are unknown here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.weights.checked_json import two_sides
from vit_jax.weights.recognise import side_or_sides

# (Width, number of attention heads, of blocks), by the size in a name. Most have 64 features in a
# head.
_SIZES = {
    "tiny": (192, 3, 12),
    "xsmall": (256, 4, 10),
    "wee": (256, 4, 14),
    "dwee": (256, 4, 14),
    "pwee": (256, 4, 16),
    "dpwee": (256, 4, 16),
    "little": (320, 5, 14),
    "dlittle": (320, 5, 14),
    "small": (384, 6, 12),
    "medium": (512, 8, 12),
    "mediumd": (512, 8, 20),
    "betwixt": (640, 10, 12),
    "base": (768, 12, 12),
    "so150m2": (832, 13, 21),
    "so150m": (896, 14, 18),
    "intern300m": (1024, 16, 24),
    "large": (1024, 16, 24),
    "so400m": (1152, 16, 27),
    "huge": (1280, 16, 32),
    "giant": (1408, 16, 40),
    "giantopt": (1536, 16, 40),
    "gigantic": (1664, 16, 48),
}
_AIMV2 = {
    "large": (1024, 8, 24),
    "huge": (1536, 12, 24),
    "1b": (2048, 16, 24),
    "3b": (3072, 24, 24),
}
_TESTS = {"": (64, 2, 6), "2": (64, 2, 8), "3": (96, 3, 9), "4": (96, 3, 9)}

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
      `num_heads`, `gelu`, `norm_epsilon` and `pool` of a ViT; `kernel_epsilon` of a model with
      standardised kernels. And that with which the arrays must agree: `width` and `depth`, and
      `patch_size`, `registers`, `pre_norm` and `final_norm` where the name tells. None if it is
      unknown.

    Example:
      >>> found = attributes_of("vit_base_patch16_gap_224")
      >>> found["num_heads"], found["pool"], found["depth"]
      (16, 'gap', 12)
    """
    if (found := _find(name)) is None:
        return None
    kind, parts = found
    if kind == "bit":
        return {"kernel_epsilon": 1e-8}
    words = parts.get("rest", "").split("_")
    few_digits = kind == "aimv2" or kind == "beit3" or "clip" in words
    width, num_heads, depth = _sizes(kind, parts["size"], words)
    attributes = {
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "gelu": _gelu(_without_tag(name), words),
        "norm_epsilon": 1e-5 if few_digits else 1e-6,
        "pool": _pool(kind, parts["size"], words),
    }
    for key, pattern in (("patch_size", r"_patch(\d+)"), ("registers", r"_reg(\d)")):
        if number := re.search(pattern, _without_tag(name)):
            attributes[key] = int(number[1])
    if "clip" in words:
        attributes["pre_norm"] = True
    if "radio" in words or parts["size"] == "intern300m":
        attributes["final_norm"] = "none"
    return attributes | ({"kernel_epsilon": 1e-8} if kind == "hybrid" else {})


def _sizes(kind: str, size: str, words: list[str]) -> tuple[int, int, int]:
    """Returns the width, and the numbers of heads and of blocks."""
    if kind in ("aimv2", "test"):
        return {"aimv2": _AIMV2, "test": _TESTS}[kind][size]
    if size == "giant" and not {"dinov2", "tipsv2", "radio"}.isdisjoint(words):
        return 1536, 24, 40
    if size == "base" and "plus" in words:
        return 896, 14, 12
    if size == "base" and "gap" in words and "siglip" not in words and "reg4" not in words:
        return 768, 16, 12
    if "36x1" in words:
        return 384, 6, 36
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
    *("img_size", "in_chans", "num_classes", "mlp_ratio"),
    *("qkv_bias", "proj_bias", "init_values", "class_token", "no_embed_class"),
    *("fc_norm", "dynamic_img_size", "strict_img_size"),
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate"),
    *("attn_drop_rate", "drop_path_rate", "weight_init", "fix_init"),
)
_OFF = (None, False, "")  # values that switch an argument off
_SIZE_ARGUMENTS = {
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "num_heads",
    "reg_tokens": "registers",
}


def from_model_args(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `model_args` in timm's config.json says of attributes as `attributes_of` does.

    Args:
      model_args: arguments of timm's model that are not those of its architecture.

    Raises:
      ValueError: an argument changes what is computed, and we have nothing for its value.
    """
    attributes: dict[str, Any] = {}
    for key, value in model_args.items():
        if key in _SIZE_ARGUMENTS and type(value) is int:
            attributes[_SIZE_ARGUMENTS[key]] = value
        elif key == "pos_embed" and value in ("learn", "none", ""):
            attributes["positions"] = "1d" if value == "learn" else "none"
        elif key == "pre_norm" and type(value) is bool:
            attributes[key] = value
        elif key == "final_norm" and type(value) is bool:
            attributes |= {} if value else {"final_norm": "none"}
        elif key == "patch_size" and value is not None:
            attributes["patch_size"] = side_or_sides(two_sides(key, value))
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
