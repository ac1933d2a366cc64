"""The error that bfloat16 adds to logits and gradients: ours, the public formulation's and timm's.

The model is Ti/16 with random parameters whose sizes are like those of trained ones. Each row is
the relative L2 distance to the same model in float32, for each seed.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import machine
from vit_jax.models.layers import IMPLEMENTATIONS
from vit_jax.models.variants import build
from vit_jax.weights.api import save_params

CLASSES = 1000
ROUNDED = "residual_dtype=bfloat16"  # in the implementation for this machine


def implementations() -> tuple[str, ...]:
    """Returns the implementations that this machine's devices compute."""
    return tuple(x for x in IMPLEMENTATIONS if x != "cudnn" or jax.default_backend() == "gpu")


def public_logits(params: dict, images: jax.Array, *, depth: int, patch: int, dtype: Any):
    """Returns logits (b, c), float32, as google-research/vision_transformer computes them.

    The patch embedding, positions, residual stream, last LayerNorm and head are float32. The
    branches of the blocks are computed in a dtype: norms, attention with its softmax, and MLPs.

    Args:
      params: parameters of `VisionTransformer` with a class token and learned 1-D positions.
      images: (b, h, w, 3) in [-1, 1].
      depth: number of blocks.
      patch: side of a patch in pixels.
      dtype: of the blocks.
    """

    def cast(x):
        return jnp.asarray(x, dtype)

    def norm(x, p, dtype):
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
        return (y * p["scale"] + p["bias"]).astype(dtype)

    def project(x, p, axes="bnd,dhe->bnhe"):
        return jnp.einsum(axes, x, cast(p["kernel"])) + cast(p["bias"])

    kernel = params["embedding"]["kernel"]
    z = jax.lax.conv_general_dilated(
        images, kernel, (patch, patch), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    z = (z + params["embedding"]["bias"]).reshape(len(images), -1, kernel.shape[-1])
    cls = jnp.broadcast_to(params["cls"], (len(images), 1, z.shape[-1]))
    encoder = params["Transformer"]
    z = jnp.concatenate([cls, z], 1) + encoder["posembed_input"]["pos_embedding"]
    for i in range(depth):
        block = encoder[f"encoderblock_{i}"]
        attention, mlp = block["MultiHeadDotProductAttention_0"], block["MlpBlock_0"]
        y = norm(z, block["LayerNorm_0"], dtype)
        q, k, v = (project(y, attention[name]) for name in ("query", "key", "value"))
        scores = jnp.einsum("bqhe,bkhe->bhqk", q / jnp.sqrt(q.shape[-1]).astype(dtype), k)
        y = jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(scores).astype(dtype), v)
        z = z + project(y, attention["out"], "bnhe,hed->bnd")
        y = norm(z, block["LayerNorm_1"], dtype)
        y = nn.gelu(project(y, mlp["Dense_0"], "bnd,de->bne"))
        z = z + project(y, mlp["Dense_1"], "bnd,de->bne")
    z = norm(z, encoder["encoder_norm"], jnp.float32)[:, 0]
    return z @ params["head"]["kernel"] + params["head"]["bias"]


def trained_like(params: dict, seed: int) -> dict:
    """Returns random parameters of the shapes of others, with sizes as training leaves them.

    Kernels have a standard deviation of 1.5 / sqrt(inputs), scales are about 1, and the rest
    has 0.1, positions 0.3.
    """
    rng = np.random.default_rng(seed)

    def draw(path, x):
        names = [p.key for p in path]
        noise = rng.standard_normal(x.shape)
        if names[-1] == "scale":
            noise = 1 + 0.2 * noise
        elif names[-1] == "kernel":
            outputs = x.shape[1:] if names[-2] in ("query", "key", "value") else x.shape[-1:]
            noise *= 1.5 / np.sqrt(x.size / np.prod(outputs))
        else:
            noise *= 0.3 if names[-1] in ("cls", "pos_embedding") else 0.1
        return jnp.asarray(noise, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, params)


def relative_error(found: Any, exact: Any) -> float:
    """Returns the L2 norm of the difference of two trees, divided by that of the second."""
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True))
    error = sum(float(np.square(np.asarray(a, np.float64) - b).sum()) for a, b in pairs)
    return (error / sum(float(np.square(np.asarray(b, np.float64)).sum()) for _, b in pairs)) ** 0.5


Errors = dict[str, list[tuple[float, float]]]  # of logits and gradients for each seed, by row


def inputs(seed: int, images: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random pixels (b, h, w, 3) in [-1, 1], float32, and labels (b,), int64."""
    rng = np.random.default_rng(1000 + seed)
    pixels = rng.uniform(-1, 1, (images, image_size, image_size, 3)).astype(np.float32)
    return pixels, rng.integers(0, CLASSES, images)


def our_errors(
    variant: str, image_size: int, seeds: int, implementations: Sequence[str], images: int = 16
) -> Errors:
    """Returns the errors of our implementations, of `ROUNDED`, and of the public formulation.

    Args:
      variant: name of a model with a class token and learned 1-D positions.
      image_size: in pixels.
      seeds: number of draws of parameters, images and labels.
      implementations: of `vit_jax.models.layers`.
      images: number of images.
    """

    def program(logits, precision=None):
        def loss(params, pixels, labels):
            with jax.default_matmul_precision(precision):
                y = logits(params, pixels)
            picked = jnp.take_along_axis(jax.nn.log_softmax(y), labels[:, None], 1)
            return -picked.mean(), y

        computed = jax.jit(jax.value_and_grad(loss, has_aux=True))
        return lambda *arguments: (lambda out: (out[0][1], out[1]))(computed(*arguments))

    def ours(precision=None, **attributes):
        model = build(variant, num_classes=CLASSES, **attributes)
        return program(lambda p, pixels: model.apply({"params": p}, pixels, train=True), precision)

    model = build(variant, num_classes=CLASSES)
    exact = ours("highest", implementation="plain")
    rows = {name: ours(implementation=name, dtype="bfloat16") for name in implementations}
    rows[ROUNDED] = ours(dtype="bfloat16", residual_dtype="bfloat16")
    public = functools.partial(public_logits, depth=model.depth, patch=model.patch_size)
    rows["public formulation"] = program(functools.partial(public, dtype=jnp.bfloat16))
    found: Errors = {name: [] for name in rows}
    for seed in range(seeds):
        pixels, labels = inputs(seed, images, image_size)
        shapes = jax.eval_shape(model.init, jax.random.key(0), pixels)["params"]
        arguments = trained_like(shapes, seed), pixels, labels
        truth = exact(*arguments)
        for name, compute in rows.items():
            pairs = zip(compute(*arguments), truth, strict=True)
            found[name].append(tuple(relative_error(a, b) for a, b in pairs))
    return found


def timm_errors(variant: str, image_size: int, seeds: int, images: int = 16) -> Errors:
    """Returns the errors of timm's model under PyTorch's autocast, on the same inputs.

    They are relative to timm's model in float32. Arguments are those of `our_errors`.
    """
    machine.import_torchvision()
    import timm
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False
    ours = build(variant, num_classes=CLASSES)
    model = timm.models.VisionTransformer(
        img_size=image_size,
        patch_size=ours.patch_size,
        num_classes=CLASSES,
        embed_dim=ours.width,
        depth=ours.depth,
        num_heads=ours.num_heads,
        mlp_ratio=ours.mlp_dim / ours.width,
        act_layer=functools.partial(torch.nn.GELU, approximate="tanh"),
    ).to(device)
    found = []
    for seed in range(seeds):
        pixels, labels = inputs(seed, images, image_size)
        shapes = jax.eval_shape(ours.init, jax.random.key(0), pixels)["params"]
        with tempfile.TemporaryDirectory() as folder:
            file = f"{folder}/timm.safetensors"
            params = trained_like(shapes, seed)
            save_params(params, file, variant=variant, format="timm", gelu="exact")
            timm.models.load_checkpoint(model, file)
        pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device)
        labels = torch.from_numpy(labels).to(device)

        def compute(autocast, pixels=pixels, labels=labels):
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                y = model(pixels).float()
            loss = torch.nn.functional.cross_entropy(y, labels)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            return y.detach().cpu().numpy(), [g.cpu().numpy() for g in gradients]

        pairs = zip(compute(True), compute(False), strict=True)
        found.append(tuple(relative_error(a, b) for a, b in pairs))
    return {"timm, autocast": found}


def main(argv: list[str] | None = None) -> None:
    """Prints the table; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a tiny model, in seconds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", help="a file for the results")
    args = parser.parse_args(argv)
    variant, sizes = ("Nano/8", (64,)) if args.smoke else ("Ti/16", (224, 384))
    rows = []
    for size in sizes:
        found = our_errors(variant, size, args.seeds, implementations())
        found |= timm_errors(variant, size, args.seeds)
        for name, by_seed in found.items():
            logits, gradients = zip(*by_seed, strict=True)
            rows.append(
                {
                    "model": variant,
                    "pixels": size,
                    "formulation": name,
                    "logits, %": " / ".join(f"{100 * e:.2f}" for e in logits),
                    "gradients, %": " / ".join(f"{100 * e:.2f}" for e in gradients),
                }
            )
    about = machine.description()
    machine.report("Error of bfloat16 against float32, by seed", rows, about, args.json)


if __name__ == "__main__":
    main()
