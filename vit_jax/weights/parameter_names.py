"""The names and axes of each format's arrays, as rules of `layout`."""

from __future__ import annotations

from vit_jax.weights.layout import SAME, Layout, Packing, Rule

# How arrays are stored: the axes of ours <-> the axes of the file's.
_FLAT = Packing(lambda x: x.reshape(-1), lambda y: y)  # (heads, depth) <-> (out,)
_DENSE = Packing(lambda x: x.reshape(-1, x.shape[-1]).T, lambda y: y.T)  # (in…, out) <-> (out, in)
_HEADS = Packing(
    lambda x: x.reshape(len(x), -1).T, lambda y: y.T
)  # (in, heads, depth) <-> (out, in)
_CONV = Packing(
    lambda x: x.transpose(3, 2, 0, 1), lambda y: y.transpose(2, 3, 1, 0)
)  # HWIO <-> OIHW
# The head of a BiT ResNet is a 1x1 convolution in files.
_TIMM_CONV_HEAD = Packing(lambda x: x.T[..., None, None], lambda y: y[:, :, 0, 0].T)
_BIT_CONV_HEAD = Packing(lambda x: x[None, None], lambda y: y[0, 0])

# The beginnings of our names.
_BLOCK = "Transformer/encoderblock_{i}/"
_ATTENTION = _BLOCK + "MultiHeadDotProductAttention_0/"
_UNIT = "block{s}/unit{u}/"
_TABLE = "Transformer/posembed_input/pos_embedding"


def _norm(
    ours: str, theirs: str, names: tuple[str, str] = ("weight", "bias"), sep: str = "."
) -> list[Rule]:
    """Returns the rules of a normalisation; `names` are those of its scale and bias in the file."""
    return [
        Rule((f"{ours}/{a}",), f"{theirs}{sep}{b}")
        for a, b in zip(("scale", "bias"), names, strict=True)
    ]


def _layer(
    ours: str,
    theirs: str,
    kernel: Packing,
    bias: Packing = SAME,
    fuse: tuple[str, ...] = ("",),
) -> list[Rule]:
    """Returns the rules of a layer's kernel and bias, in files of PyTorch.

    Args:
      ours: our name of the layer.
      theirs: the file's name of the layer.
      kernel: how the kernel is stored.
      bias: how the bias is stored.
      fuse: endings of `ours`; the file has the layers of these names in one.
    """
    kernels, biases = ([f"{ours}{part}/{x}" for part in fuse] for x in ("kernel", "bias"))
    return [
        Rule(tuple(kernels), f"{theirs}.weight", kernel),
        Rule(tuple(biases), f"{theirs}.bias", bias),
    ]


def _same(*names: str) -> list[Rule]:
    """Returns the rules of arrays that the file has under our names, with our axes."""
    return [Rule((name,), name) for name in names]


def _published() -> list[Rule]:
    """Returns the rules of the published `.npz` of ViTs and hybrids.

    They come from Flax before Linen, which numbered submodules of all kinds in one sequence.
    """
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
            layer = f"Dense_{n}/{x}"
            rules.append(Rule((f"{_BLOCK}MlpBlock_0/{layer}",), f"{_BLOCK}MlpBlock_3/{layer}"))
    rules += _same(*(f"Transformer/encoder_norm/{x}" for x in ("scale", "bias")))
    rules += _same("conv_root/kernel", "gn_root/scale", "gn_root/bias")
    for part in ("1", "2", "3", "_proj"):
        conv, norm = f"{_UNIT}conv{part}", f"{_UNIT}gn{part}"
        rules += _same(f"{conv}/kernel", f"{norm}/scale", f"{norm}/bias")
    return rules


def _big_vision() -> list[Rule]:
    """Returns the rules of big_vision's `.npz`: our names, but for the table of positions."""
    ours = [name for rule in _published() for name in rule.ours if name != _TABLE]
    return [*_same(*ours), Rule((_TABLE,), "pos_embedding")]


def _bit() -> list[Rule]:
    """Returns the rules of the published `.npz` of BiT ResNets."""
    unit, conv = "resnet/block{s}/unit{u:02d}/", "standardized_conv2d/kernel"
    names = ("gamma", "beta")
    rules = [
        Rule(("conv_root/kernel",), f"resnet/root_block/{conv}"),
        Rule((f"{_UNIT}conv_proj/kernel",), f"{unit}a/proj/{conv}"),
        Rule(("head/kernel",), "resnet/head/conv2d/kernel", _BIT_CONV_HEAD),
        Rule(("head/bias",), "resnet/head/conv2d/bias"),
        *_norm("gn_pre_head", "resnet/group_norm", names, "/"),
    ]
    for n, letter in enumerate("abc", 1):
        rules.append(Rule((f"{_UNIT}conv{n}/kernel",), f"{unit}{letter}/{conv}"))
        rules += _norm(f"{_UNIT}gn{n}", f"{unit}{letter}/group_norm", names, "/")
    return rules


def _torch_stages(prefix: str, projected_norm: bool) -> list[Rule]:
    """Returns the rules of a ResNet's stages in timm.

    Args:
      prefix: begins the file's names.
      projected_norm: True if the projection of a residual is normalised.
    """
    unit = prefix + "stages.{s-1}.blocks.{u-1}."
    rules = [Rule((f"{_UNIT}conv_proj/kernel",), f"{unit}downsample.conv.weight", _CONV)]
    if projected_norm:
        rules += _norm(f"{_UNIT}gn_proj", f"{unit}downsample.norm")
    for n in (1, 2, 3):
        rules.append(Rule((f"{_UNIT}conv{n}/kernel",), f"{unit}conv{n}.weight", _CONV))
        rules += _norm(f"{_UNIT}gn{n}", f"{unit}norm{n}")
    return rules


def _timm(stem: str, stages: bool) -> list[Rule]:
    """Returns the rules of timm's `vit_*` and `vit_*_r*`.

    Args:
      stem: begins the file's names of the root convolution and its norm.
      stages: True if the stem has stages of residual units.
    """
    block = "blocks.{i}."
    fuse = ("query", "key", "value")
    rules = [
        Rule(("cls",), "cls_token"),
        Rule((_TABLE,), "pos_embed"),
        *_layer("embedding", "patch_embed.proj", _CONV),
        *_layer(_ATTENTION, f"{block}attn.qkv", _HEADS, _FLAT, fuse),
        *_layer(f"{_ATTENTION}out", f"{block}attn.proj", _DENSE),
        *_norm("Transformer/encoder_norm", "norm"),
        *_layer("pre_logits", "pre_logits.fc", _DENSE),
        *_layer("head", "head", _DENSE),
        Rule(("conv_root/kernel",), f"{stem}conv.weight", _CONV),
        *_norm("gn_root", f"{stem}norm"),
    ]
    for n in (0, 1):
        rules += _norm(f"{_BLOCK}LayerNorm_{n}", f"{block}norm{n + 1}")
        rules += _layer(f"{_BLOCK}MlpBlock_0/Dense_{n}", f"{block}mlp.fc{n + 1}", _DENSE)
    return rules + (_torch_stages("patch_embed.backbone.", True) if stages else [])


def _timm_bit() -> list[Rule]:
    """Returns the rules of timm's `resnetv2_*_bit`."""
    return [
        Rule(("conv_root/kernel",), "stem.conv.weight", _CONV),
        *_norm("gn_pre_head", "norm"),
        *_layer("head", "head.fc", _TIMM_CONV_HEAD),
        *_torch_stages("", False),
    ]


def _hugging_face(prefix: str, new: bool) -> list[Rule]:
    """Returns the rules of transformers' ViT.

    Args:
      prefix: "" for `ViTModel`, "vit." for `ViTForImageClassification`.
      new: True for the names that later versions have in memory.
    """
    block = prefix + ("layers.{i}." if new else "encoder.layer.{i}.")
    parts = {
        "query": "attention.q_proj",
        "key": "attention.k_proj",
        "value": "attention.v_proj",
        "out": "attention.o_proj",
        "Dense_0": "mlp.fc1",
        "Dense_1": "mlp.fc2",
    }
    if not new:
        parts = {name: f"attention.attention.{name}" for name in ("query", "key", "value")}
        parts |= {
            "out": "attention.output.dense",
            "Dense_0": "intermediate.dense",
            "Dense_1": "output.dense",
        }
    rules = [
        Rule(("cls",), f"{prefix}embeddings.cls_token"),
        Rule((_TABLE,), f"{prefix}embeddings.position_embeddings"),
        *_layer("embedding", f"{prefix}embeddings.patch_embeddings.projection", _CONV),
        *_norm(f"{_BLOCK}LayerNorm_0", f"{block}layernorm_before"),
        *_norm(f"{_BLOCK}LayerNorm_1", f"{block}layernorm_after"),
        *_norm("Transformer/encoder_norm", f"{prefix}layernorm"),
        *(
            _layer("head", "classifier", _DENSE)
            if prefix
            else _layer("pre_logits", "pooler.dense", _DENSE)
        ),
        *_layer(f"{_ATTENTION}out", block + parts["out"], _DENSE),
    ]
    for name in ("query", "key", "value"):
        rules += _layer(f"{_ATTENTION}{name}", block + parts[name], _HEADS, _FLAT)
    for name in ("Dense_0", "Dense_1"):
        rules += _layer(f"{_BLOCK}MlpBlock_0/{name}", block + parts[name], _DENSE)
    return rules


# The layouts of each format. A file is written in the first one that has a place for everything.
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
