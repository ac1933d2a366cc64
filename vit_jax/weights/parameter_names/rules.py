"""What the rules of all formats share: how arrays are stored, and parts of names."""

from __future__ import annotations

from vit_jax.weights.layout import SAME, Packing, Rule

# How arrays are stored: the axes of ours <-> the axes of the file's.
FLAT = Packing(lambda x: x.reshape(-1), lambda y: y)  # (heads, depth) <-> (out,)
DENSE = Packing(lambda x: x.reshape(-1, x.shape[-1]).T, lambda y: y.T)  # (in…, out) <-> (out, in)
HEADS = Packing(
    lambda x: x.reshape(len(x), -1).T, lambda y: y.T
)  # (in, heads, depth) <-> (out, in)
CONV = Packing(
    lambda x: x.transpose(3, 2, 0, 1), lambda y: y.transpose(2, 3, 1, 0)
)  # HWIO <-> OIHW
# The head of a BiT ResNet is a 1x1 convolution in files.
TIMM_CONV_HEAD = Packing(lambda x: x.T[..., None, None], lambda y: y[:, :, 0, 0].T)
BIT_CONV_HEAD = Packing(lambda x: x[None, None], lambda y: y[0, 0])

# The beginnings of our names.
BLOCK = "Transformer/encoderblock_{i}/"
ATTENTION = BLOCK + "MultiHeadDotProductAttention_0/"
UNIT = "block{s}/unit{u}/"
TABLE = "Transformer/posembed_input/pos_embedding"
REGISTERS = "Transformer/registers"
DISTILLATION = "distillation_token"  # see `folding`


def norm_rules(
    ours: str, theirs: str, names: tuple[str, str] = ("weight", "bias"), sep: str = "."
) -> list[Rule]:
    """Returns the rules of a normalisation; `names` are those of its scale and bias in the file."""
    return [
        Rule((f"{ours}/{a}",), f"{theirs}{sep}{b}")
        for a, b in zip(("scale", "bias"), names, strict=True)
    ]


def layer_rules(
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


def same_rules(*names: str) -> list[Rule]:
    """Returns the rules of arrays that the file has under our names, with our axes."""
    return [Rule((name,), name) for name in names]
