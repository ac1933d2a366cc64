"""Parts of ViTs that came after the paper, against timm's modules with the same parameters."""

import numpy as np
import peers
import pytest
from flax.traverse_util import unflatten_dict
from peers import torch

from vit_jax import models
from vit_jax.models.patches import ConvStem

timm = pytest.importorskip("timm")
from timm import layers  # noqa: E402
from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

pytestmark = pytest.mark.peers

HEADS, WIDTH = 4, 64
THEIRS = dict(img_size=32, patch_size=8, embed_dim=WIDTH, depth=1, num_heads=HEADS, num_classes=5)
OURS = dict(patch_size=8, width=WIDTH, depth=1, num_heads=HEADS, mlp_dim=4 * WIDTH, gelu="exact")


def parameters(state):
    """A state dict of timm as our tree, written down name by name."""
    state = {name: x.numpy() for name, x in state.items()}
    tree = {}

    def norm(theirs, ours):
        for name, part in (("weight", "scale"), ("bias", "bias")):
            if f"{theirs}.{name}" in state:
                tree[f"{ours}/{part}"] = state.pop(f"{theirs}.{name}")

    def layer(theirs, *ours, heads=None):
        """Of several layers of ours, theirs has the outputs one after the other."""
        kernel, bias = state.pop(f"{theirs}.weight").T, state.pop(f"{theirs}.bias")
        if heads == "in":
            kernel = kernel.reshape(HEADS, -1, kernel.shape[-1])
        size = kernel.shape[-1] // len(ours)
        for i, name in enumerate(ours):
            part, b = kernel[..., i * size : (i + 1) * size], bias[i * size : (i + 1) * size]
            if heads == "out":
                part, b = part.reshape(len(part), HEADS, -1), b.reshape(HEADS, -1)
            tree[f"{name}/kernel"], tree[f"{name}/bias"] = part, b

    tree["embedding/kernel"] = state.pop("patch_embed.proj.weight").transpose(2, 3, 1, 0)
    # With pre_norm, timm leaves this bias out.
    tree["embedding/bias"] = state.pop("patch_embed.proj.bias", np.zeros(WIDTH, np.float32))
    tokens = [state.pop(name) for name in ("cls_token", "dist_token") if name in state]
    table = state.pop("pos_embed")
    if tokens:
        tree["cls"] = np.concatenate(tokens, axis=1)
        missing = len(tokens) + 16 - table.shape[1]  # rows: none, or that of the class token
        table = np.pad(table, ((0, 0), (missing, 0), (0, 0)))
    tree["Transformer/posembed_input/pos_embedding"] = table
    if "reg_token" in state:
        tree["Transformer/registers"] = state.pop("reg_token")
    norm("patch_embed.norm", "patch_norm")
    norm("norm_pre", "Transformer/pre_norm")
    norm("norm", "Transformer/encoder_norm")
    norm("fc_norm", "fc_norm")
    for i in range(THEIRS["depth"]):
        theirs, ours = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        attention, mlp = f"{ours}/MultiHeadDotProductAttention_0", f"{ours}/MlpBlock_0"
        for n in (0, 1):
            norm(f"{theirs}.norm{n + 1}", f"{ours}/LayerNorm_{n}")
        names = [f"{attention}/{name}" for name in ("query", "key", "value")]
        layer(f"{theirs}.attn.qkv", *names, heads="out")
        layer(f"{theirs}.attn.proj", f"{attention}/out", heads="in")
        if f"{theirs}.mlp.fc1_g.weight" in state:
            layer(f"{theirs}.mlp.fc1_g", f"{mlp}/Gate")
            layer(f"{theirs}.mlp.fc1_x", f"{mlp}/Dense_0")
        elif len(state[f"{theirs}.mlp.fc1.bias"]) == 2 * state[f"{theirs}.mlp.fc2.weight"].shape[1]:
            layer(f"{theirs}.mlp.fc1", f"{mlp}/Gate", f"{mlp}/Dense_0")
        else:
            layer(f"{theirs}.mlp.fc1", f"{mlp}/Dense_0")
        layer(f"{theirs}.mlp.fc2", f"{mlp}/Dense_1")
    if "attn_pool.latent" in state:
        attention = "MAPHead_0/MultiHeadDotProductAttention_0"
        tree["MAPHead_0/probe"] = state.pop("attn_pool.latent")
        layer("attn_pool.q", f"{attention}/query", heads="out")
        layer("attn_pool.kv", f"{attention}/key", f"{attention}/value", heads="out")
        layer("attn_pool.proj", f"{attention}/out", heads="in")
        norm("attn_pool.norm", "MAPHead_0/LayerNorm_0")
        for n in (0, 1):
            layer(f"attn_pool.mlp.fc{n + 1}", f"MAPHead_0/MlpBlock_0/Dense_{n}")
    layer("head", "head")
    if "head_dist.weight" in state:
        layer("head_dist", "other")
        kernel, bias = tree.pop("other/kernel"), tree.pop("other/bias")
        tree["head/kernel"] = np.concatenate([tree["head/kernel"], kernel]) / 2
        tree["head/bias"] = (tree["head/bias"] + bias) / 2
    assert not state
    return unflatten_dict(tree, sep="/")


def swiglu(*sizes, act_layer, **options):
    """A gated MLP in a model whose attention pooling has another activation."""
    return layers.SwiGLU(*sizes, act_layer=torch.nn.SiLU, **options)


# What timm's model is built with, and what ours is.
PARTS = {
    "registers": (
        dict(reg_tokens=4, no_embed_class=True, global_pool="token"),
        dict(registers=4),
    ),
    "norm of the patches": (
        dict(embed_norm_layer=timm.layers.LayerNorm),
        dict(patch_norm=True),
    ),
    "pre_norm": (dict(pre_norm=True), dict(pre_norm=True)),
    "norm after the class token": (dict(fc_norm=True), dict(final_norm="after_pool")),
    "norm after the mean": (
        dict(global_pool="avg", class_token=False),
        dict(pool="gap", final_norm="after_pool"),
    ),
    "no final norm": (dict(final_norm=False), dict(final_norm="none")),
    "mean beside a class token": (
        dict(global_pool="avg", fc_norm=False),
        dict(pool="gap", class_tokens=1),
    ),
    "attention pooling": (dict(global_pool="map", class_token=False), dict(pool="map")),
    "gate packed": (
        dict(mlp_layer=layers.SwiGLUPacked, act_layer=torch.nn.SiLU),
        dict(mlp="swiglu", mlp_dim=2 * WIDTH),
    ),
    "gate": (dict(mlp_layer=layers.SwiGLU, act_layer=torch.nn.SiLU), dict(mlp="swiglu")),
    "RMSNorm": (dict(norm_layer=layers.RmsNorm), dict(norm="rms")),
    "quick GELU": (dict(act_layer=layers.QuickGELU), dict(gelu="quick")),
    "all at once": (
        dict(
            reg_tokens=3,
            no_embed_class=True,
            global_pool="map",
            pre_norm=True,
            norm_layer=layers.RmsNorm,
            fc_norm=True,
            mlp_layer=swiglu,
            act_layer=layers.QuickGELU,
        ),
        dict(
            registers=3,
            class_tokens=1,
            pool="map",
            pre_norm=True,
            norm="rms",
            final_norm="after_pool",
            mlp="swiglu",
            gelu="quick",
        ),
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_logits_are_those_of_timm(part):
    theirs, ours = PARTS[part]
    module = VisionTransformer(**THEIRS, **theirs)
    check(module, models.build("B/16", num_classes=5, **{**OURS, **ours}))


def test_two_class_tokens_are_those_of_a_distilled_model():
    model = models.build("B/16", num_classes=5, **OURS, class_tokens=2)
    check(VisionTransformerDistilled(**THEIRS), model)


def check(module, model):
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            # The probe would read all patches alike, and biases would hide among numbers of 0.02.
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            parameter += (0.1 if parameter.ndim < 4 else 0.05) * noise
    images = peers.random_images((32, 32))
    params = parameters(module.eval().state_dict())
    found = peers.our_logits(model, params, images)
    peers.assert_close(found, peers.torch_logits(module, images))


def test_a_small_stem_is_torchs_convolutions():
    """One of 4x4 pixels, then two of 3x3 and maxima, of 5x8 and 3x4 features."""
    functional = torch.nn.functional
    images = peers.random_images((20, 32))
    stem = ConvStem((5, 7, 6))
    params = peers.random_params(stem, (20, 32))
    x = torch.tensor(images).permute(0, 3, 1, 2)
    for i, (_, layer) in enumerate(sorted(params.items())):
        kernel, bias = (
            torch.tensor(layer["kernel"]).permute(3, 2, 0, 1),
            torch.tensor(layer["bias"]),
        )
        if i == 0:
            x = functional.conv2d(x, kernel, bias, stride=4)
        else:
            x = functional.conv2d(x, kernel, bias, padding=1)
            x = functional.max_pool2d(x, 2, ceil_mode=True)
        x = functional.gelu(x, approximate="tanh")
    found = stem.apply({"params": params}, images)
    assert found.shape == (2, 2, 2, 6)
    peers.assert_close(found, x.permute(0, 2, 3, 1).numpy())
