"""Files of Meta's repositories, whose ViTs have timm's names but for a few.

They are DINO, iBOT, DINOv2, MAE, MoCo v3, I-JEPA, DeiT and DeiT-III; the models may lie in training
states, beside decoders and the heads of self-supervised objectives.
"""

from __future__ import annotations

import logging
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.common.messages import first_few
from vit_jax.common.names import printable
from vit_jax.weights import architectures, timm
from vit_jax.weights.layout import Shape
from vit_jax.weights.safetensors import Tensors
from vit_jax.weights.tensor_file import TensorFile

logger = logging.getLogger(__name__)

_PATCHES = "patch_embed.proj.weight"  # ends the name of an array that each of the models has
# Of several models, that which is evaluated: the first whose prefix has one of these words.
_EVALUATED = ("teacher", "base_encoder", "target_encoder")
# Names of what is no part of the encoder.
_OTHERS = r"mask_token|masked_embed|decoder_.*|head\.(mlp|last_layer)\b.*"
_HEAD_OF_MOCO = r"|head\.\d+\..*"
_CLASSIFIER = re.compile(r"((?:.*\.)?)(head|fc|classifier)(\.\d+)?\.weight")
# Differences from timm's names: LayerScale in DeiT-III; DINOv2's registers, gated MLPs, and blocks
# that were trained in groups.
_NAMES = (
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"^register_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^blocks\.\d+\.(?=\d+\.)", "blocks."),
)
# Names of published files as names of timm's architectures. A letter stands for a size.
_FILES = (
    (r"dino_(?:deit|vit)(small|base)(8|16)_.*", "vit_{0}_patch{1}_224.dino"),
    (r"dinov2_vit([sblg])14(_reg4)?_.*", "vit_{0}_patch14{1}_dinov2"),
    (r"mae_\w+_vit_(base|large)\b.*", "vit_{0}_patch16_224.mae"),
    (r"mae_\w+_vit_(huge)\b.*", "vit_{0}_patch14_224.mae"),
    (r"(deit_(?:tiny|small|base)(?:_distilled)?_patch16_\d{3})-.*", "{0}"),
    (r"deit_3_(huge)_(\d{3})_.*", "deit3_{0}_patch14_{1}"),
    (r"deit_3_(\w+)_(\d{3})_.*", "deit3_{0}_patch16_{1}"),
)
# What tells whose a file is: its name and the names in it, each with a space behind it.
_FAMILIES = (
    ("MoCo v3", r"^(linear-)?vit-[sb]-\d+ep\b| (module\.)?base_encoder\."),
    ("MAE", r" decoder_blocks\."),
    ("DINOv2", r" (\S*backbone\.)?register_tokens | \S*\.mlp\.w12\."),
    ("DINOv2", r"^(?=.* (\S*backbone\.)?mask_token )(?=.*\.ls1\.gamma )"),
    ("DeiT-III", r"\.gamma_1 "),
    ("iBOT", r" masked_embed "),
    ("I-JEPA", r" (\S*\.)?predictor_embed\.| target_encoder[ .]"),
    ("DINO", r"^(?=.* (module\.)?backbone\.)(?=.* (module\.)?head\.last_layer\.)"),
)
_SIZES = {"s": "small", "b": "base", "l": "large", "g": "giant"}


def read_meta(path: pathlib.Path, tensors: Tensors, architecture: str = "") -> TensorFile:
    """Opens a state dict with timm's names, or those of Meta's repositories.

    Where the names belong to one of these repositories, images are taken to be scaled by ImageNet's
    mean and standard deviation, as all of them do, and cut as in their evaluations.

    Args:
      path: the file.
      tensors: the same, opened.
      architecture: timm's name of the model. "" if it is not known; the file's own name may tell.

    Raises:
      ValueError: the file has several models, of which none is the one to take; or as `read_timm`.
    """
    published = _architecture_of(path.name)
    renamed, family = _with_timm_names(path, tensors)
    file = timm.read_timm(path, renamed, architecture or published)
    if (family or published) and not file.view:
        file = file._replace(view=_view(family or published))
    if not family or file.mean is not None:
        return file
    mean, std = architectures.IMAGENET
    said = f"The file's names are those of {family}: ImageNet's mean and deviation are taken."
    model = {**file.model, **_known_of(family, renamed.shapes)}
    return file._replace(mean=mean, std=std, model=model, changes=(*file.changes, said))


def _view(family: str) -> dict[str, Any]:
    """Returns the keys of `config.data` for how images are cut in the evaluation of a repository.

    Args:
      family: the repository, or timm's name of one of its models.
    """
    return {
        "eval_crop": "central",
        "crop_fraction": 1.0 if family.lower().startswith(("deit-iii", "deit3")) else 0.875,
        "eval_resize": "bilinear_antialias" if family == "MoCo v3" else "bicubic_antialias",
    }


def _architecture_of(name: str) -> str:
    """Returns timm's name of the architecture that is in a published file. "" if it is unknown."""
    for pattern, template in _FILES:
        if match := re.fullmatch(pattern, name):
            return template.format(*(_SIZES.get(x, x or "") for x in match.groups()))
    return ""


def _with_timm_names(path: pathlib.Path, tensors: Tensors) -> tuple[Tensors, str]:
    """Returns the arrays of one encoder by timm's names, and which repository the others are of."""
    prefix = _prefix_of(path, tensors.shapes)
    family = _family(path, (*tensors.keys, *tensors.shapes))
    left_out = re.compile(_OTHERS + (_HEAD_OF_MOCO if family == "MoCo v3" else ""))
    names = {}
    for name in tensors.shapes:
        new = name.removeprefix(prefix)
        for old, timms in _NAMES:
            new = re.sub(old, timms, new)
        if name.startswith(prefix) and not left_out.fullmatch(new):
            names[new] = name
    kept = set(names.values())
    changes = tensors.changes
    if others := [name for name in tensors.shapes if name not in kept]:
        only = f"Only {prefix} is taken, not" if prefix else "Left out:"
        changes = (*changes, f"{only} {first_few(others)}.")
    for name in others:
        outside = _CLASSIFIER.fullmatch(name)
        if outside and outside[1] != prefix and prefix.startswith(outside[1]):
            logger.warning(
                "%s: only %s is taken, not the head %s.", printable(path), prefix, printable(name)
            )
    shapes = {new: tensors.shapes[name] for new, name in names.items()}
    renamed = tensors._replace(
        shapes=shapes, read=lambda name: tensors.read(names[name]), changes=changes
    )
    return renamed, family


def _prefix_of(path: pathlib.Path, names: Iterable[str]) -> str:
    """Returns what begins the names of the encoder to take, "" if nothing does.

    Raises:
      ValueError: the file has several encoders, of which none is the one to take.
    """
    prefixes = [name.removesuffix(_PATCHES) for name in names if name.endswith(_PATCHES)]
    if len(prefixes) < 2 or "" in prefixes:
        return "" if "" in prefixes else "".join(prefixes)
    for word in _EVALUATED:
        if found := [prefix for prefix in prefixes if word in prefix]:
            return found[0]
    raise ValueError(
        f"{path} has several models, whose names begin with {first_few(prefixes)}: save the one to "
        f"load in a file of its own."
    )


def _family(path: pathlib.Path, names: Iterable[str]) -> str:
    """Returns the name of the repository that a file is of. "" if it can't be told."""
    joined = " ".join([path.name, *names, ""])
    for family, pattern in _FAMILIES:
        if re.search(pattern, joined):
            return family
    return ""


def _known_of(family: str, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Returns the number of attention heads and the pooling in a repository's models."""
    width = (shapes.get(_PATCHES) or (0,))[0]
    known = {
        ("MoCo v3", 384): 12,
        ("MAE", 1280): 16,
        ("DeiT-III", 1280): 16,
        ("I-JEPA", 1280): 16,
        ("I-JEPA", 1408): 16,
    }
    heads = known.get((family, width)) or width // 64
    found: dict[str, Any] = {"num_heads": heads} if heads else {}
    if "cls_token" in shapes and "fc_norm.weight" not in shapes:
        found["pool"] = "token"
    return found
