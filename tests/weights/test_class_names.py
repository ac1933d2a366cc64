"""The names that ImageNet-1k's logits get, against what other packages have of them."""

import logging

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import TINY, random_checkpoint

from vit_jax.inference.classifier import Classifier
from vit_jax.weights.api import load, save
from vit_jax.weights.class_names import imagenet_classes, with_class_names

IMAGES = np.zeros((1, 32, 48, 3), np.uint8)


def weights(num_classes, path="weights.npz", names=()):
    found = random_checkpoint(num_classes=num_classes, **TINY)
    return found._replace(path=path, class_names=names)


def test_the_order_is_that_of_tfds():
    path = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
    assert [*imagenet_classes()] == path.read_text().split()
    assert [*imagenet_classes()] == sorted(imagenet_classes())


@pytest.mark.peers
def test_the_names_and_their_order_are_those_of_timm():
    pytest.importorskip("peers")
    info = pytest.importorskip("timm.data").ImageNetInfo()
    assert [*imagenet_classes()] == info.label_names()
    assert [*imagenet_classes().values()] == info.label_descriptions()


def test_logits_of_imagenet_show_its_names(caplog):
    """The names are in the order of the logits: the largest bias is the class that is shown."""
    checkpoint = weights(1000)
    bias = np.zeros(1000, np.float32)
    bias[[282, 0]] = 1000, 500
    head = {**checkpoint.params["head"], "bias": bias}
    classifier = Classifier(checkpoint._replace(params={**checkpoint.params, "head": head}))
    first, *_ = classifier.predict(IMAGES)[0]
    assert first.label == "tiger cat"
    assert classifier.class_names[0] == "tench, Tinca tinca"
    (warning,) = caplog.messages
    assert warning.startswith("weights.npz has 1,000 logits and no names of classes: it is assumed")


@pytest.mark.parametrize(
    "path",
    [
        "checkpoints/imagenet21k+imagenet2012/ViT-B_16.npz",
        "B_16-i21k-300ep-lr_0.001--imagenet2012-steps_20k-lr_0.01-res_224.npz",
        "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k/main/model.safetensors",
    ],
)
def test_files_that_say_it_need_no_warning(path, caplog):
    assert with_class_names(weights(1000, path)).class_names[1] == "goldfish, Carassius auratus"
    assert not caplog.messages


@pytest.mark.parametrize(("count", "names"), [(1000, tuple(map(str, range(1000)))), (999, ())])
def test_other_names_and_numbers_of_logits_stay(count, names):
    assert with_class_names(weights(count, names=names)).class_names == names


def test_classes_without_names_are_said_to_be_numbers(caplog):
    caplog.set_level(logging.INFO)
    classifier = Classifier(weights(21))
    assert not caplog.messages  # features need no head
    for _ in range(2):
        classifier.predict(IMAGES)
    (message,) = caplog.messages
    assert message == (
        "weights.npz has no names of its 21 classes: they are shown by number, counted from 0."
    )
    assert classifier.class_names[20] == "class 20"


def test_a_head_of_zeros_is_said_to_be_untrained(tmp_path, caplog):
    """As in the published files of ImageNet-21k."""
    checkpoint = weights(21)
    zeros = jax.tree.map(np.zeros_like, checkpoint.params["head"])
    save(checkpoint._replace(params={**checkpoint.params, "head": zeros}), tmp_path / "21k.npz")
    caplog.clear()
    classifier = Classifier(load(tmp_path / "21k.npz"))
    classifier.features(IMAGES)
    assert not caplog.messages
    for _ in range(2):
        (answer,) = classifier.predict(IMAGES)
        assert answer[0].probability == pytest.approx(1 / 21)
    (message,) = caplog.messages
    assert message.startswith(f"The head of {tmp_path / '21k.npz'} is untrained: ")
