"""The names and shapes of our parameters in other code bases' files, both ways, as tables.

A `Layout` is a list of rules. Each rule gives the template of one array in a file, the templates
of our parameters it is made of (several, joined along axis 0, for timm's fused query, key and
value), and how shapes change between the two. Numbers stand in braces: `{i}` is the same on both
sides, `{s-1}` counts from 0 what we count from 1, `{u:02d}` has two digits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Kind(NamedTuple):
    """How an array of ours lies in a file.

    Attributes:
      pack: our array -> the file's.
      unpack: the file's array -> ours, but for a reshape.
    """

    pack: Callable[[np.ndarray], np.ndarray]
    unpack: Callable[[np.ndarray], np.ndarray]


SAME = Kind(lambda x: x, lambda y: y)
FLAT = Kind(lambda x: x.reshape(-1), lambda y: y)  # (heads, depth) <-> (out,)
DENSE = Kind(lambda x: x.reshape(-1, x.shape[-1]).T, lambda y: y.T)  # (in…, out) <-> (out, in)
HEADS = Kind(lambda x: x.reshape(len(x), -1).T, lambda y: y.T)  # (in, heads, depth) <-> (out, in)
CONV = Kind(lambda x: x.transpose(3, 2, 0, 1), lambda y: y.transpose(2, 3, 1, 0))  # HWIO <-> OIHW
# The heads of BiT ResNets, which are 1x1 convolutions in files: (in, out) <-> …
TIMM_CONV_HEAD = Kind(lambda x: x.T[..., None, None], lambda y: y[:, :, 0, 0].T)
BIT_CONV_HEAD = Kind(lambda x: x[None, None], lambda y: y[0, 0])


class Rule(NamedTuple):
    """One kind of array: templates of our names, the template of the file's, and the change."""

    ours: tuple[str, ...]
    theirs: str
    kind: Kind = SAME


class Slot(NamedTuple):
    """One array of a file: our parameters in it, in this order along axis 0."""

    ours: tuple[str, ...]
    kind: Kind

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Returns the shape in the file, given those of our parameters."""
        parts = [self._packed(shapes[name]) for name in self.ours]
        return (sum(p[0] for p in parts), *parts[0][1:]) if len(parts) > 1 else parts[0]

    def join(self, arrays: Iterable[np.ndarray]) -> np.ndarray:
        """Returns the file's array, C-contiguous, of our parameters."""
        packed = [self.kind.pack(x) for x in arrays]
        return np.ascontiguousarray(packed[0] if len(packed) == 1 else np.concatenate(packed))

    def part(self, array: np.ndarray, name: str, shapes: dict[str, Shape]) -> np.ndarray:
        """Returns our parameter `name` of the file's array."""
        if len(self.ours) > 1:
            lengths = [self._packed(shapes[other])[0] for other in self.ours]
            at = self.ours.index(name)
            array = array[sum(lengths[:at]) : sum(lengths[: at + 1])]
        return self.kind.unpack(array).reshape(shapes[name])

    def _packed(self, shape: Shape) -> Shape:
        return self.kind.pack(_of_shape(shape)).shape


class NoPlaceError(ValueError):
    """A format can't hold some parameters; `names` are those."""

    def __init__(self, title: str, names: list[str]):
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        super().__init__(f"The {title} format has no place for {', '.join(names[:5])}{more}.")
        self.names = names


class Layout:
    """The rules of one spelling of one format.

    Args:
      title: what the format is called in messages.
      rules: its rules, none for a file that has our own names.
    """

    def __init__(self, title: str, rules: Iterable[Rule] = ()):
        self.title, self._rules = title, tuple(rules)

    def slots(self, names: Iterable[str]) -> dict[str, Slot]:
        """Returns the arrays, by name, of a file that holds our parameters.

        Raises:
          NoPlaceError: the format has no place for some of them.
        """
        if not self._rules:
            return {name: Slot((name,), SAME) for name in names}
        slots, homeless = {}, []
        for name in names:
            for rule in self._rules:
                numbers = [n for t in rule.ours if (n := _numbers(t, name)) is not None]
                if numbers:
                    ours = tuple(_fill(template, numbers[0]) for template in rule.ours)
                    slots[_fill(rule.theirs, numbers[0])] = Slot(ours, rule.kind)
                    break
            else:
                homeless.append(name)
        if homeless:
            raise NoPlaceError(self.title, homeless)
        return slots

    def ours(self, theirs: str, shape: Shape) -> dict[str, Shape]:
        """Returns our names in the file's array `theirs`, with its shape in our order of axes.

        Empty where the format knows no such array. The shapes are not yet ours: heads are not
        split, and each of several parameters in one array gets the shape of the whole.
        """
        if not self._rules:
            return {theirs: shape} if _OURS.match(theirs) and not _PRE_LINEN.search(theirs) else {}
        for rule in self._rules:
            if (numbers := _numbers(rule.theirs, theirs)) is not None:
                return {_fill(t, numbers): _unpacked(rule.kind, shape) for t in rule.ours}
        return {}


def _of_shape(shape: Shape) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape)  # takes no memory, nor do its views


def _unpacked(kind: Kind, shape: Shape) -> Shape:
    try:
        return kind.unpack(_of_shape(shape)).shape
    except (IndexError, ValueError):  # not the axes there should be: reported with all others
        return shape


_FIELD = re.compile(r"\{(\w)(-1)?(?::(02)d)?\}")


def _fill(template: str, numbers: dict[str, int]) -> str:
    def field(match):
        return format(numbers[match[1]] - bool(match[2]), f"{match[3] or ''}d")

    return _FIELD.sub(field, template)


def _numbers(template: str, name: str) -> dict[str, int] | None:
    """Returns the numbers for which `template` is `name`, None where it can't be."""
    if template not in _PATTERNS:
        fields = list(_FIELD.finditer(template))
        ends = [0, *(m.end() for m in fields)]
        starts = [*(m.start() for m in fields), len(template)]
        texts = [re.escape(template[a:b]) for a, b in zip(ends, starts, strict=True)]
        groups = [*(f"(?P<{m[1]}>[0-9]{{1,4}})" for m in fields), ""]
        pattern = "".join(text + group for text, group in zip(texts, groups, strict=True))
        _PATTERNS[template] = re.compile(pattern), {m[1]: bool(m[2]) for m in fields}
    pattern, offsets = _PATTERNS[template]
    if (match := pattern.fullmatch(name)) is None:
        return None
    return {key: int(value) + offsets[key] for key, value in match.groupdict().items()}


_PATTERNS: dict[str, tuple[re.Pattern, dict[str, bool]]] = {}

# ------------------------------------------------------------------- tables: our names, theirs

_BLOCK = "Transformer/encoderblock_{i}/"
_ATTENTION = _BLOCK + "MultiHeadDotProductAttention_0/"
_UNIT = "block{s}/unit{u}/"
_TABLE = "Transformer/posembed_input/pos_embedding"


def _norm(ours: str, theirs: str, names: tuple[str, str] = ("weight", "bias"), sep: str = "."):
    return [Rule((f"{ours}/{a}",), f"{theirs}{sep}{b}")
            for a, b in zip(("scale", "bias"), names, strict=True)]


def _layer(ours: str, theirs: str, kind: Kind, bias: Kind = SAME, fuse: tuple[str, ...] = ("",)):
    kernels, biases = ([f"{ours}{part}/{x}" for part in fuse] for x in ("kernel", "bias"))
    return [Rule(tuple(kernels), f"{theirs}.weight", kind),
            Rule(tuple(biases), f"{theirs}.bias", bias)]


def _same(*names: str) -> list[Rule]:
    return [Rule((name,), name) for name in names]


def _published() -> list[Rule]:
    """The published `.npz` of ViTs and hybrids: submodules numbered across kinds (pre-Linen)."""
    attention = _BLOCK + "MultiHeadDotProductAttention_1/"
    rules = _same("cls", _TABLE)
    for name in ("embedding", "pre_logits", "head"):
        rules += _same(f"{name}/kernel", f"{name}/bias")
    for name in ("query", "key", "value", "out"):
        for x in ("kernel", "bias"):
            rules.append(Rule((f"{_ATTENTION}{name}/{x}",), f"{attention}{name}/{x}"))
    for ours, theirs in (("LayerNorm_0", "LayerNorm_0"), ("LayerNorm_1", "LayerNorm_2")):
        rules += _norm(_BLOCK + ours, _BLOCK + theirs, ("scale", "bias"), "/")
    for n in (0, 1):
        for x in ("kernel", "bias"):
            ours, theirs = (f"{_BLOCK}MlpBlock_{k}/Dense_{n}/{x}" for k in (0, 3))
            rules.append(Rule((ours,), theirs))
    rules += _same(*(f"Transformer/encoder_norm/{x}" for x in ("scale", "bias")))
    rules += _same("conv_root/kernel", "gn_root/scale", "gn_root/bias")
    for n in ("1", "2", "3", "_proj"):
        rules += _same(f"{_UNIT}conv{n}/kernel", f"{_UNIT}gn{n}/scale", f"{_UNIT}gn{n}/bias")
    return rules


def _big_vision() -> list[Rule]:
    """big_vision's `.npz`: Linen's numbering as ours, but the position table at the top."""
    ours = [name for rule in _published() for name in rule.ours if name != _TABLE]
    return [*_same(*ours), Rule((_TABLE,), "pos_embedding")]


def _bit() -> list[Rule]:
    """The published `.npz` of BiT ResNets."""
    unit, conv = "resnet/block{s}/unit{u:02d}/", "standardized_conv2d/kernel"
    names = ("gamma", "beta")
    rules = [
        Rule(("conv_root/kernel",), f"resnet/root_block/{conv}"),
        Rule((f"{_UNIT}conv_proj/kernel",), f"{unit}a/proj/{conv}"),
        Rule(("head/kernel",), "resnet/head/conv2d/kernel", BIT_CONV_HEAD),
        Rule(("head/bias",), "resnet/head/conv2d/bias"),
        *_norm("gn_pre_head", "resnet/group_norm", names, "/"),
    ]
    for n, letter in enumerate("abc", 1):
        rules.append(Rule((f"{_UNIT}conv{n}/kernel",), f"{unit}{letter}/{conv}"))
        rules += _norm(f"{_UNIT}gn{n}", f"{unit}{letter}/group_norm", names, "/")
    return rules


def _torch_stages(prefix: str, projected_norm: bool) -> list[Rule]:
    unit = prefix + "stages.{s-1}.blocks.{u-1}."
    rules = [Rule((f"{_UNIT}conv_proj/kernel",), f"{unit}downsample.conv.weight", CONV)]
    if projected_norm:
        rules += _norm(f"{_UNIT}gn_proj", f"{unit}downsample.norm")
    for n in (1, 2, 3):
        rules.append(Rule((f"{_UNIT}conv{n}/kernel",), f"{unit}conv{n}.weight", CONV))
        rules += _norm(f"{_UNIT}gn{n}", f"{unit}norm{n}")
    return rules


def _timm(stem: str, stages: bool) -> list[Rule]:
    """timm's `vit_*` and `vit_*_r*`; `stem` is the module of the root convolution."""
    block = "blocks.{i}."
    fuse = ("query", "key", "value")
    rules = [
        Rule(("cls",), "cls_token"),
        Rule((_TABLE,), "pos_embed"),
        *_layer("embedding", "patch_embed.proj", CONV),
        *_layer(_ATTENTION, f"{block}attn.qkv", HEADS, FLAT, fuse),
        *_layer(f"{_ATTENTION}out", f"{block}attn.proj", DENSE),
        *_norm("Transformer/encoder_norm", "norm"),
        *_layer("pre_logits", "pre_logits.fc", DENSE),
        *_layer("head", "head", DENSE),
        Rule(("conv_root/kernel",), f"{stem}conv.weight", CONV),
        *_norm("gn_root", f"{stem}norm"),
    ]
    for n in (0, 1):
        rules += _norm(f"{_BLOCK}LayerNorm_{n}", f"{block}norm{n + 1}")
        rules += _layer(f"{_BLOCK}MlpBlock_0/Dense_{n}", f"{block}mlp.fc{n + 1}", DENSE)
    return rules + (_torch_stages("patch_embed.backbone.", True) if stages else [])


def _timm_bit() -> list[Rule]:
    """timm's `resnetv2_*_bit`."""
    return [
        Rule(("conv_root/kernel",), "stem.conv.weight", CONV),
        *_norm("gn_pre_head", "norm"),
        *_layer("head", "head.fc", TIMM_CONV_HEAD),
        *_torch_stages("", False),
    ]


def _hugging_face(prefix: str, new: bool) -> list[Rule]:
    """`ViTModel` (no prefix) and `ViTForImageClassification` ("vit."), in either spelling."""
    block = prefix + ("layers.{i}." if new else "encoder.layer.{i}.")
    parts = {"query": "attention.q_proj", "key": "attention.k_proj", "value": "attention.v_proj",
             "out": "attention.o_proj", "Dense_0": "mlp.fc1", "Dense_1": "mlp.fc2"}  # fmt: skip
    if not new:
        parts = {name: f"attention.attention.{name}" for name in ("query", "key", "value")}
        parts |= {"out": "attention.output.dense", "Dense_0": "intermediate.dense",
                  "Dense_1": "output.dense"}  # fmt: skip
    rules = [
        Rule(("cls",), f"{prefix}embeddings.cls_token"),
        Rule((_TABLE,), f"{prefix}embeddings.position_embeddings"),
        *_layer("embedding", f"{prefix}embeddings.patch_embeddings.projection", CONV),
        *_norm(f"{_BLOCK}LayerNorm_0", f"{block}layernorm_before"),
        *_norm(f"{_BLOCK}LayerNorm_1", f"{block}layernorm_after"),
        *_norm("Transformer/encoder_norm", f"{prefix}layernorm"),
        *(_layer("head", "classifier", DENSE) if prefix else
          _layer("pre_logits", "pooler.dense", DENSE)),
        *_layer(f"{_ATTENTION}out", block + parts["out"], DENSE),
    ]  # fmt: skip
    for name in ("query", "key", "value"):
        rules += _layer(f"{_ATTENTION}{name}", block + parts[name], HEADS, FLAT)
    for name in ("Dense_0", "Dense_1"):
        rules += _layer(f"{_BLOCK}MlpBlock_0/{name}", block + parts[name], DENSE)
    return rules


_OURS = re.compile(
    r"(cls|(embedding|pre_logits|head)/|Transformer/|(conv|gn)_root/|gn_pre_head/|block\d+/unit\d+/)"
)
_PRE_LINEN = re.compile(r"MultiHeadDotProductAttention_1|LayerNorm_2|MlpBlock_3")

# The spellings of each format; files are written in the first that has a place for everything.
OURS = Layout("our own")
NPZ = (
    Layout("published JAX", _published()),
    Layout("published BiT", _bit()),
    OURS,
    Layout("big_vision", _big_vision()),
)
TIMM = (
    Layout("timm", _timm("patch_embed.backbone.", stages=False)),  # R+Ti/16: a root, no stages
    Layout("timm", _timm("patch_embed.backbone.stem.", stages=True)),
    Layout("timm", _timm_bit()),
)
HUGGING_FACE = tuple(
    Layout("Hugging Face", _hugging_face(prefix, new))
    for new in (False, True)
    for prefix in ("", "vit.")
)


def slots(layouts: Iterable[Layout], names: Iterable[str]) -> dict[str, Slot]:
    """Returns the arrays of a file in the first of the layouts that can hold our parameters.

    Raises:
      NoPlaceError: none can; those are named that the best of them, the last of several, can't.
    """
    names, errors = list(names), []
    for layout in layouts:
        try:
            return layout.slots(names)
        except NoPlaceError as error:
            errors.append(error)
    raise min(reversed(errors), key=lambda error: len(error.names))


def recognise(layouts: Iterable[Layout], names: Iterable[str]) -> Layout:
    """Returns the layout that knows most of a file's arrays, the first of several such."""
    names = list(names)
    return max(layouts, key=lambda layout: sum(bool(layout.ours(name, ())) for name in names))
