"""One step of training and of evaluation: pure functions that know no devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from vit_jax import preprocess
from vit_jax.objectives import softmax_cross_entropy

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """Everything a step changes. `step` counts the updates done: int32 ()."""

    step: jax.Array
    params: Any
    opt_state: optax.OptState


def identity(x: Any) -> Any:
    """The mean over devices, where there is one."""
    return x


def initial_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int],
    key: jax.Array,
) -> TrainState:
    """Returns the state before the first step, for images of (h, w) pixels."""
    params = model.init(key, jnp.zeros((1, *image_shape, 3)))["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def make_update(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    accumulate_steps: int = 1,
    label_smoothing: float = 0.0,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns `update(state, batch, key, *, mean=identity) -> (state, metrics)`.

    `batch` holds `image` uint8 (b, h, w, 3) and `label` int32 (b,). `key` is the run's: the step's
    number is folded in, and every micro-batch gets its own. `mean` averages gradients and metrics
    over the devices that each hold a part of the batch. The metrics are float32 scalars: `loss`,
    `accuracy`, `learning_rate`, and `grad_norm` before clipping.
    """

    def loss_and_accuracy(params, batch, key):
        images = preprocess.to_float(batch["image"])
        logits = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
        loss = softmax_cross_entropy(logits, batch["label"], label_smoothing).mean()
        return loss, (logits.argmax(-1) == batch["label"]).mean()

    def micro_step(params, total, batch, key):
        gradient = jax.value_and_grad(loss_and_accuracy, has_aux=True)
        (loss, accuracy), grads = gradient(params, batch, key)
        return jax.tree.map(jnp.add, total, (loss, accuracy, grads))

    def update(state, batch, key, *, mean=identity):
        key = jax.random.fold_in(key, state.step)
        zero = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
        if accumulate_steps == 1:  # a loop of one step would halve the speed on a CPU
            total = micro_step(state.params, zero, batch, key)
        else:
            parts = jax.tree.map(lambda x: x.reshape(accumulate_steps, -1, *x.shape[1:]), batch)
            total, _ = jax.lax.scan(
                lambda total, part: (micro_step(state.params, total, *part), None),
                zero,
                (parts, jax.random.split(key, accumulate_steps)),
            )
        loss, accuracy, grads = mean(jax.tree.map(lambda x: x / accumulate_steps, total))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "learning_rate": jnp.asarray(learning_rate(state.step), jnp.float32),
            "grad_norm": optax.tree.norm(grads),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return update


def make_evaluate(model: nn.Module, *, confusion: bool = False) -> Callable[..., Metrics]:
    """Returns `evaluate(params, batch) -> sums over the examples whose mask is True`.

    The sums are `count`, `loss` (nats), `correct`, `top5` (label among the five largest logits,
    where there are more than five classes) and, if asked for, `confusion`: int32 (c, c), true class
    by predicted class. Sums of several batches or devices are added up before any mean is taken.
    """

    def evaluate(params, batch):
        logits = model.apply({"params": params}, preprocess.to_float(batch["image"]), train=False)
        label, mask = batch["label"], batch["mask"]
        predicted = logits.argmax(-1)
        num_classes = logits.shape[-1]
        sums = {
            "count": mask.sum(),
            "loss": jnp.where(mask, softmax_cross_entropy(logits, label), 0.0).sum(),
            "correct": (mask & (predicted == label)).sum(),
        }
        if num_classes > 5:
            top5 = jax.lax.top_k(logits, 5)[1]
            sums["top5"] = (mask & (top5 == label[:, None]).any(-1)).sum()
        if confusion:
            table = jnp.zeros((num_classes, num_classes), jnp.int32)
            sums["confusion"] = table.at[label, predicted].add(mask.astype(jnp.int32))
        return sums

    return evaluate


def means(sums: dict[str, Any]) -> dict[str, float]:
    """Returns `loss`, `accuracy` and, where counted, `top5_accuracy` of sums of `evaluate`."""
    count = float(sums["count"])
    result = {"loss": float(sums["loss"]) / count, "accuracy": float(sums["correct"]) / count}
    if "top5" in sums:
        result["top5_accuracy"] = float(sums["top5"]) / count
    return result
