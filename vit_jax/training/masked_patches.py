"""The objective of masked patch prediction (paper B.1.2): pre-training without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.models.masked import Corruption, MaskedPatchPredictor
from vit_jax.models.patches import to_float, to_patches
from vit_jax.models.vit import VisionTransformer
from vit_jax.training.objective import Objective, mean, softmax_cross_entropy

_COLOURS = 8**3  # 3 bits a channel
_SIDE = 4  # of the downsized patch


class Target(NamedTuple):
    """What is predicted of a patch of (ph, pw) pixels.

    Attributes:
      outputs: (ph, pw) -> how many numbers are predicted for a patch.
      compute: patches uint8 (b, n, ph, pw, 3) -> targets (b, n, …).
      compare: predictions (b, n, outputs), targets -> loss (b, n), and the share of right answers
        (b, n), None for a regression.
    """

    outputs: Callable[[tuple[int, int]], int]
    compute: Callable[[jax.Array], jax.Array]
    compare: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]


def mean_colour(patches: jax.Array) -> jax.Array:
    """Returns the 3-bit mean colour of patches: uint8 (…, ph, pw, 3) -> int32 (…), 0 to 511.

    The mean of each channel is cut to its three highest bits. Red counts 64, green 8, blue 1.
    """
    height, width = patches.shape[-3:-1]
    bits = patches.astype(jnp.int32).sum((-3, -2)) // (height * width * 32)
    return bits @ jnp.array([64, 8, 1])


def downsized_colours(patches: jax.Array) -> jax.Array:
    """Returns the 3-bit mean colours of a 4x4 grid over patches, row by row: (…, 16) int32."""
    *batch, height, width, channels = patches.shape
    blocks = patches.reshape(*batch, _SIDE, height // _SIDE, _SIDE, width // _SIDE, channels)
    return mean_colour(jnp.moveaxis(blocks, -4, -3)).reshape(*batch, _SIDE**2)


def _compare_colours(predictions: jax.Array, colours: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns cross-entropy and accuracy (b, n), means over the colours of a patch."""
    logits = predictions.reshape(*colours.shape, _COLOURS)
    loss, right = softmax_cross_entropy(logits, colours), logits.argmax(-1) == colours
    parts = tuple(range(2, colours.ndim))
    return loss.mean(parts), right.mean(parts)


TARGETS = {  # by the value of config.masked.target
    "mean_colour": Target(lambda patch: _COLOURS, mean_colour, _compare_colours),
    "downsized": Target(lambda patch: _SIDE**2 * _COLOURS, downsized_colours, _compare_colours),
    "pixels": Target(
        outputs=lambda patch: 3 * patch[0] * patch[1],
        compute=lambda patches: to_float(patches).reshape(*patches.shape[:2], -1),
        compare=lambda predictions, pixels: (jnp.square(predictions - pixels).mean(-1), None),
    ),
}


def draw_corruption(key: jax.Array, patches: int, fraction: float) -> Corruption:
    """Draws how the patches of one image are corrupted; arrays (n,) (paper B.1.2).

    `fraction` of the patches are selected, rounded to a whole number, and at least one. A selected
    patch is masked with probability 0.8, gets the embedding of another patch of the image with
    0.1, and stays as it is with 0.1.
    """
    order_key, kind_key, source_key = jax.random.split(key, 3)
    rank = jnp.argsort(jax.random.permutation(order_key, patches))
    selected = rank < max(1, round(fraction * patches))
    kind = jax.random.uniform(kind_key, (patches,))
    own = jnp.arange(patches)
    offset = jax.random.randint(source_key, (patches,), 1, max(2, patches))
    other = selected & (kind >= 0.8) & (kind < 0.9)
    return Corruption(
        selected=selected,
        masked=selected & (kind < 0.8),
        source=jnp.where(other, (own + offset) % patches, own),
    )


def masked_patches(
    model: VisionTransformer, *, target: str = "mean_colour", fraction: float = 0.5
) -> Objective:
    """Returns the objective of predicting corrupted patches; batches hold `image` and `mask`.

    The metrics are `loss` and `accuracy`, means over the selected patches; there is no accuracy of
    pixels. In a test an image is corrupted in the same way each time, wherever it stands in a
    batch. The sums are `count` (of the selected patches), `loss` and `accuracy`.

    Args:
      model: without a head. Its patches cover the image exactly.
      target: a key of `TARGETS`. "mean_colour": the 3-bit mean colour, one of 512 classes.
        "downsized": the 3-bit colours of the patch downsized to 4x4. "pixels": all pixels in
        [-1, 1], by the mean squared error. All are computed from the cropped image.
      fraction: the share of the patches that are selected.
    """
    outputs, compute_targets, compare = TARGETS[target]
    predictor = MaskedPatchPredictor(model, outputs(model.stride), dtype=model.dtype)

    def predict(params, images, keys, **options):
        """Returns the loss and the share of right answers (b, n), and the selected patches."""
        patches = to_patches(images, model.stride)
        corrupted = jax.vmap(lambda key: draw_corruption(key, patches.shape[1], fraction))(keys)
        predictions: Any = predictor.apply(
            {"params": params}, to_float(images), corrupted, **options
        )
        return *compare(predictions, compute_targets(patches)), corrupted.selected

    def loss(params, batch, key, shared_key):
        del shared_key  # every image is corrupted in its own way
        images = batch["image"]
        keys = jax.random.split(jax.random.fold_in(key, 0), len(images))
        losses, right, selected = predict(params, images, keys, train=True, rngs={"dropout": key})
        total = losses.mean(where=selected)
        metrics = {} if right is None else {"accuracy": right.mean(where=selected)}
        return total, {"loss": total, **metrics}

    def evaluate(params, batch):
        images = batch["image"]
        # The sum of its pixels is the seed of an image: its corruption depends on nothing else.
        seeds = images.astype(jnp.uint32).sum((1, 2, 3))
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), seeds)
        losses, right, selected = predict(params, images, keys)
        counted = selected & batch["mask"][:, None]
        sums = {"count": counted.sum(), "loss": losses.sum(where=counted)}
        return sums if right is None else {**sums, "accuracy": right.sum(where=counted)}

    metrics = ("loss",) if target == "pixels" else ("loss", "accuracy")
    return Objective(predictor, loss, evaluate, metrics, dict.fromkeys(metrics, mean))
