"""From arrays and labels to a classifier, in one call."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
from ml_collections import ConfigDict

from vit_jax import models
from vit_jax.checkpoints.checkpoint import read_checkpoint
from vit_jax.common.messages import closest
from vit_jax.config import recipes
from vit_jax.config.defaults import default
from vit_jax.config.keys import model_attributes, type_problem
from vit_jax.data.arrays import ArrayDataset
from vit_jax.inference.classifier import Classifier
from vit_jax.jobs.train import train
from vit_jax.jobs.validation import validate_keys
from vit_jax.models import attributes
from vit_jax.weights.api import load_for_new_head


class Settings(TypedDict, total=False):
    """The keywords of `fit` that stand for keys of the configuration, see `_KEYS`."""

    variant: str
    init_from: str | os.PathLike
    init_head: str
    image_size: int | tuple[int, int]
    epochs: float
    steps: int
    batch_size: int


_KEYS = {
    "variant": ("model.variant",),
    "init_from": ("init_from",),
    "init_head": ("init_head",),
    "image_size": ("data.image_size",),
    "epochs": ("epochs",),
    "steps": ("total_steps",),
    "batch_size": ("batch_size", "eval_batch_size"),
}


class Fitted(NamedTuple):
    """What `fit` returns.

    Attributes:
      classifier: predicts the classes of images.
      summary: what `train` returns.
    """

    classifier: Classifier
    summary: dict[str, Any]


def fit(
    images: Any,
    labels: Any,
    *,
    test: float | tuple[Any, Any] = 0.15,
    config: ConfigDict | None = None,
    workdir: str | os.PathLike | None = None,
    **settings: Unpack[Settings],
) -> Fitted:
    """Trains a model on images in memory, by the loop of `train`, and returns a classifier.

    Args:
      images: uint8 (n, h, w, 3), or grey (n, h, w); or n arrays, Pillow images or paths, of any
        sizes. `data.arrays.ArrayDataset` says what else they and the labels can be.
      labels: n whole numbers or texts. The classes are the distinct labels, sorted.
      test: what the accuracy is measured on: (images, labels), or the share of every class that is
        held out from training, at least one image of each.
      config: see `vit_jax.default_config`; with `job="train"` and `objective="classification"`.
        `data.name` and the splits are not read. None takes a recipe of `config.recipes`:
        `fine_tune` with `init_from`, else `train_from_scratch`.
      workdir: as for `train`: the same call with the same images goes on where it stopped. None
        writes to a temporary folder, which is deleted at the end, also if the call is interrupted.
        Several processes need one.
      **settings: these have priority over `config`.
        - variant: a name in `VARIANTS`. If it isn't given: that of `init_from`, or "Nano/8".
        - init_from: weights to start from, as `load` takes them.
        - init_head: "keep" starts with the head of `init_from`, "new" with a new one. If it isn't
          given: "keep" if both have the same names of classes, else "new".
        - image_size: pixels, one side or (height, width), which all images are resized to. If it
          isn't given: that of `init_from`; else 64 for Nano/8 and Conv+Nano/16, and 224 for other
          variants.
        - epochs, steps: the length, in passes over the images or in updates; one of them.
        - batch_size: images an update.

    Returns:
      (classifier, summary). The parameters are in memory. `vit_jax.save(classifier.checkpoint,
      path)` writes them. Without a workdir, the summary has no `checkpoint`.

    Raises:
      TypeError: there is no such setting.
      ValueError: an image, a label or a setting can't be used, a class has one image alone, of
        which none can be held out, or as `train`.
      FileNotFoundError, OSError, FloatingPointError, KeyboardInterrupt: as `train`.

    Example:
      >>> import numpy as np
      >>> bright = np.random.default_rng(0).integers(0, 2, 100)  # 0 or 1 for each of 100 images
      >>> images = np.full((100, 16, 16), 55 + 150 * bright[:, None, None], np.uint8)
      >>> labels = np.array(["dark", "bright"])[bright]
      >>> classifier, summary = vit_jax.fit(images, labels, image_size=16, batch_size=16, steps=30)
      >>> [[best, *_]] = classifier.predict(np.full((1, 16, 16), 210, np.uint8))
      >>> best.label
      'bright'
    """
    if workdir is None and jax.process_count() > 1:
        raise ValueError(
            f"workdir is None, and each of the {jax.process_count()} processes would write to a "
            f"temporary folder of its own: give a workdir that all of them share."
        )
    if test is None:
        raise ValueError(
            "test is None: give a share to hold out, such as 0.15, or (images, labels)."
        )
    own_recipe = config is None
    config = _with_settings(config, settings)
    dataset = ArrayDataset(images, labels, test)
    config.data.update(name=dataset.name, train="train", test="test")
    if own_recipe:  # of few images: no longer than one epoch
        epoch = dataset.splits["train"] // config.batch_size
        config.optim.warmup_steps = min(config.optim.warmup_steps, epoch)
    with contextlib.ExitStack() as stack:
        folder = workdir
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vit_jax-"))
        summary = train(config, folder, dataset)
        checkpoint = read_checkpoint(folder)
    if workdir is None:
        del summary["checkpoint"]
        checkpoint = checkpoint._replace(path="the model of vit_jax.fit")
    return Fitted(Classifier(checkpoint), summary)


def _with_settings(config: ConfigDict | None, settings: Settings) -> ConfigDict:
    """Returns a copy of a configuration, or of the recipe if it is None, with the settings."""
    if unknown := [name for name in settings if name not in _KEYS]:
        raise TypeError(
            f"vit_jax.fit has no setting {unknown[0]!r}{closest(unknown[0], _KEYS)}: it has "
            f"{', '.join(_KEYS)}. All else is set in config."
        )
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    if {"epochs", "steps"} <= given.keys():
        raise ValueError("epochs and steps are both given: take one of them.")
    if "init_from" in given:
        given["init_from"] = os.fspath(given["init_from"])
    values = {key: value for name, value in given.items() for key in _KEYS[name]}
    if problems := [problem for key, x in values.items() if (problem := type_problem(key, x))]:
        raise ValueError(" ".join(problems))
    if "variant" in given:
        given["variant"] = values["model.variant"] = models.canonical(given["variant"])
    config = _recipe(**given) if config is None else _copied(config)
    if "epochs" in given:
        config.total_steps = None  # it would be read in place of epochs
    with config.ignore_type():  # an image may have one side or two
        config.update_from_flattened_dict(values)
    if "image_size" in given:  # of all images, and a recipe may have another for evaluation
        config.data.eval_image_size = None
    return config


def _copied(config: ConfigDict) -> ConfigDict:
    """Returns a copy of a configuration, if it is one that trains a classifier."""
    validate_keys(config)
    for key, needed in (("job", "train"), ("objective", "classification")):
        if config[key] != needed:
            raise ValueError(
                f"config.{key}={config[key]!r}, and vit_jax.fit trains a classifier: it needs "
                f"{key}={needed!r}. vit_jax.train takes other objectives, and `python -m "
                f"vit_jax.main` other jobs, on a folder of images."
            )
    return config.copy_and_resolve_references()


def _recipe(variant: str | None = None, init_from: str | None = None, **_: Any) -> ConfigDict:
    """Returns the configuration for a model that starts from weights, or from nothing."""
    config = default()
    if init_from is None:
        config.model.variant = variant or "Nano/8"
        recipes.train_from_scratch(config)
        return config
    weights = load_for_new_head(init_from, variant=variant)
    sizes = attributes.of_kind(model_attributes(weights.config), "size")
    config.model.update(variant=weights.config.model.variant, **sizes)
    recipes.fine_tune(config)
    if weights.image_shape is not None:
        config.data.image_size = weights.image_shape
    return config
