"""Logits against timm, the PyTorch library, with the same random weights."""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vit_jax import models

torch = pytest.importorskip("torch")


def import_torchvision():
    """timm imports it. Beside a CPU build of PyTorch, the build for CUDA lacks its compiled
    operators and asks for them by name; of these models none uses them, so empty ones will do."""
    while True:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            (operator,) = re.findall(r"operator (torchvision::\w+) does not exist", str(error))
            torch.library.define(operator, "(Tensor x) -> Tensor")


import_torchvision()
timm = pytest.importorskip("timm")


def timm_state(params):
    """Our parameters under timm's names: matrices transposed; query, key and value in one."""
    flat = {k: torch.tensor(np.array(v)) for k, v in flatten_dict(params, sep="/").items()}
    state = {
        "cls_token": flat["cls"],
        "pos_embed": flat["Transformer/posembed_input/pos_embedding"],
        "patch_embed.proj.weight": flat["embedding/kernel"].permute(3, 2, 0, 1),
        "patch_embed.proj.bias": flat["embedding/bias"],
        "norm.weight": flat["Transformer/encoder_norm/scale"],
        "norm.bias": flat["Transformer/encoder_norm/bias"],
        "head.weight": flat["head/kernel"].T,
        "head.bias": flat["head/bias"],
    }
    width = flat["cls"].shape[-1]
    for i in range(sum(name.startswith("encoderblock") for name in params["Transformer"])):
        ours, theirs = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        attention = ours + "MultiHeadDotProductAttention_0/"
        for n in (0, 1):
            state[f"{theirs}norm{n + 1}.weight"] = flat[f"{ours}LayerNorm_{n}/scale"]
            state[f"{theirs}norm{n + 1}.bias"] = flat[f"{ours}LayerNorm_{n}/bias"]
            state[f"{theirs}mlp.fc{n + 1}.weight"] = flat[f"{ours}MlpBlock_0/Dense_{n}/kernel"].T
            state[f"{theirs}mlp.fc{n + 1}.bias"] = flat[f"{ours}MlpBlock_0/Dense_{n}/bias"]
        qkv = [(flat[f"{attention}{n}/kernel"], flat[f"{attention}{n}/bias"])
               for n in ("query", "key", "value")]
        state[theirs + "attn.qkv.weight"] = torch.cat([k.reshape(width, width).T for k, _ in qkv])
        state[theirs + "attn.qkv.bias"] = torch.cat([b.flatten() for _, b in qkv])
        state[theirs + "attn.proj.weight"] = flat[attention + "out/kernel"].reshape(width, width).T
        state[theirs + "attn.proj.bias"] = flat[attention + "out/bias"]
    return state


@pytest.mark.parametrize(
    ("variant", "name"), [("Ti/16", "vit_tiny_patch16_224"), ("B/32", "vit_base_patch32_224")]
)
def test_logits_equal_timms(rng, variant, name):
    model = models.build(variant, num_classes=1000)
    images = rng.uniform(-1, 1, (2, 224, 224, 3)).astype(np.float32)
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    # The first values plus noise: nothing is zero, and activations have a trained model's size.
    params = jax.tree.map(
        lambda x: x + rng.normal(0, 0.02, x.shape).astype(np.float32), params
    )
    found = jax.jit(model.apply)({"params": params}, jnp.asarray(images))

    reference = timm.create_model(name, num_classes=1000, act_layer="gelu_tanh").eval()
    reference.load_state_dict(timm_state(params), strict=True)
    assert {m.eps for m in reference.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}
    with torch.no_grad():
        expected = reference(torch.tensor(images).permute(0, 3, 1, 2)).numpy()

    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
