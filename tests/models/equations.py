"""The paper's equations in NumPy, and the small models that the tests compare with them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from scipy import special

from vit_jax import models

TINY = dict(width=12, depth=2, mlp_dim=20, num_heads=3, patch_size=4)


def tiny(num_classes=5, **overrides):
    return models.build("Ti/16", num_classes=num_classes, **{**TINY, **overrides})


def random_params(model, images, seed=0):
    """Every parameter random, those that start at zero or one too."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)


def shapes(variant, image=(224, 224), **kwargs):
    model = models.build(variant, **kwargs)
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *image, 3)))["params"]
    return {name: x.shape for name, x in flatten_dict(tree, sep="/").items()}


def numpy_attention(z, p, relative=None):
    """Appendix A on tokens (n, d); `relative` are the embeddings of the offsets -n + 1 … n - 1."""
    result = p["out"]["bias"]
    n = len(z)
    for h in range(p["query"]["kernel"].shape[1]):
        q, k, v = (z @ p[x]["kernel"][:, h] + p[x]["bias"][h] for x in ("query", "key", "value"))
        scores = q @ k.T
        if relative is not None:
            for i in range(n):
                for j in range(n):
                    scores[i, j] += q[i] @ relative[i - j + n - 1]
        scores = np.exp((scores - scores.max(-1, keepdims=True)) / np.sqrt(q.shape[-1]))
        result = result + scores / scores.sum(-1, keepdims=True) @ v @ p["out"]["kernel"][h]
    return result


def sincos_by_hand(rows, columns):
    """For each patch at (x, y): 3 frequencies, as 12 numbers are 4 times 3."""
    frequencies = (1.0, 1 / 100, 1 / 10_000)
    return [
        [f(w * place) for place in (x, y) for f in (math.sin, math.cos) for w in frequencies]
        for y in range(rows)
        for x in range(columns)
    ]


def paper_forward(
    params,
    images,
    *,
    patch_size,
    pool="token",
    pre_logits=False,
    positions="1d",
    positions_at="stem",
    axial=False,
    gelu="tanh",
    norm_epsilon=1e-6,
):
    """The paper's equations in float64, one image, one head, one token at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def layer_norm(x, p):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + norm_epsilon) * p["scale"] + p["bias"]

    def activation(x):
        if gelu == "exact":
            return x * 0.5 * (1 + special.erf(x / np.sqrt(2)))
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def mlp(z, p):
        hidden = activation(z @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
        return hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]

    def block(z, p):
        relative = p["RelativePositions_0"]["offset_embedding"] if positions == "relative" else None
        attention = p["MultiHeadDotProductAttention_0"]
        z = numpy_attention(layer_norm(z, p["LayerNorm_0"]), attention, relative) + z  # equation 2
        return mlp(layer_norm(z, p["LayerNorm_1"]), p["MlpBlock_0"]) + z  # 3

    def table(p, rows, columns):
        if positions == "1d":
            return p["pos_embedding"][0]
        if positions == "sincos":
            prefix = np.zeros((int(pool == "token"), TINY["width"]))
            return np.concatenate([prefix, np.array(sincos_by_hand(rows, columns))])
        prefix = p["token_embedding"] if pool == "token" else np.zeros((0, TINY["width"]))
        patches = [
            np.concatenate([p["x_embedding"][c], p["y_embedding"][r]])
            for r in range(rows)
            for c in range(columns)
        ]
        return np.concatenate([prefix, patches])

    def one(image):
        tokens = [params["cls"][0, 0]] if pool == "token" else []
        rows, columns = image.shape[0] // patch_size, image.shape[1] // patch_size
        for r in range(rows):
            for c in range(columns):
                y, x = r * patch_size, c * patch_size
                patch = image[y : y + patch_size, x : x + patch_size]
                projected = np.einsum("yxc,yxcd->d", patch, params["embedding"]["kernel"])
                tokens.append(projected + params["embedding"]["bias"])
        encoder, z = params["Transformer"], np.stack(tokens)
        for i in range(sum(name.startswith("encoderblock") for name in encoder)):
            p = encoder[f"encoderblock_{i}"]
            where = f"posembed_{i}" if positions_at == "layers" else "posembed_input"
            if positions in ("1d", "2d", "sincos") and (positions_at != "stem" or i == 0):
                z = z + table(encoder.get(where), rows, columns)  # equation 1, D.4
            if axial:
                z = z.reshape(rows, columns, -1)
                z = np.stack([block(z[r], p["row"]) for r in range(rows)])
                z = np.stack([block(z[:, c], p["column"]) for c in range(columns)], axis=1)
                z = z.reshape(rows * columns, -1)
            else:
                z = block(z, p)
        y = layer_norm(z, encoder["encoder_norm"])
        y = y[0] if pool == "token" else y.mean(0)  # 4
        if pre_logits:
            y = np.tanh(y @ params["pre_logits"]["kernel"] + params["pre_logits"]["bias"])
        if "head" in params:
            y = y @ params["head"]["kernel"] + params["head"]["bias"]
        return y

    return np.stack([one(image) for image in images.astype(np.float64)])


def numpy_resnet(params, images, *, layers, axial):
    """A BiT ResNet in float64 with nothing but slices and sums (arXiv 1912.11370, paper D.6)."""

    def conv(x, kernel, stride=1):
        kernel = np.asarray(kernel, np.float64)
        kernel = (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-10)
        size = kernel.shape[0]
        x = np.pad(x, [(0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)])
        rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
        return sum(
            x[:, i : i + rows * stride : stride, j : j + columns * stride : stride] @ kernel[i, j]
            for i in range(size)
            for j in range(size)
        )

    def norm(x, p):
        groups = x.reshape(*x.shape[:3], 32, -1)
        mean, var = (f(groups, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
        x = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
        return np.maximum(x * p["scale"] + p["bias"], 0)

    def windows(x, size, stride, reduce):
        rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
        parts = [
            x[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
            for i in range(size)
            for j in range(size)
        ]
        return reduce(parts, axis=0)

    def line(z, p):
        attention = p["MultiHeadDotProductAttention_0"]
        return numpy_attention(z, attention, p["RelativePositions_0"]["offset_embedding"])

    def unit(x, p, stride):
        z = norm(x, p["gn1"])
        shortcut = conv(z, p["conv_proj"]["kernel"], stride) if "conv_proj" in p else x
        y = norm(conv(z, p["conv1"]["kernel"]), p["gn2"])
        if axial:
            p_row, p_column = p["attention"]["row"], p["attention"]["column"]
            y = np.stack([[line(row, p_row) for row in image] for image in y])
            y = np.stack([[line(c, p_column) for c in image.swapaxes(0, 1)] for image in y])
            y = y.swapaxes(1, 2)
            y = windows(y, stride, stride, np.mean) if stride > 1 else y
        else:
            y = conv(y, p["conv2"]["kernel"], stride)
        return shortcut + conv(norm(y, p["gn3"]), p["conv3"]["kernel"])

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = conv(images.astype(np.float64), params["conv_root"]["kernel"], 2)
    x = windows(np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), 3, 2, np.max)
    for s, units in enumerate(layers):
        for u in range(units):
            x = unit(x, params[f"block{s + 1}"][f"unit{u + 1}"], 2 if s and not u else 1)
    x = norm(x, params["gn_pre_head"]).mean((1, 2))
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def forward_and_gradients(model, params, images):
    """Logits, and gradients of a function of all of them, as float64."""

    def loss(params):
        rngs = {"dropout": jax.random.key(3)}
        logits = model.apply({"params": params}, images, train=True, rngs=rngs)
        return jnp.square(logits - 1).sum(), logits

    grads, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    return [np.asarray(x, np.float64) for x in (logits, *jax.tree.leaves(grads))]


def assert_same(found, expected, tolerance):
    """Logits by their largest, gradients by the largest of all."""
    for parts in (slice(1), slice(1, None)):
        largest = max(np.abs(x).max() for x in expected[parts])
        for x, y in zip(found[parts], expected[parts], strict=True):
            assert np.abs(x - y).max() <= tolerance * largest
