"""Heads that don't tell the classes of an image: refused, but their weights can be fine-tuned."""

import json

import numpy as np
import pytest
import safetensors.numpy
from conftest import IMAGE, random_checkpoint, write_jpegs

import vit_jax
from vit_jax import convert, predict
from vit_jax.inference.classifier import Classifier
from vit_jax.weights.api import load, load_params, save

SMALL = dict(width=24, depth=1, mlp_dim=32, num_heads=2, patch_size=8)
OTHER_PROBLEMS = ("regression", "ordinal", ["regression"])


@pytest.fixture
def folder(tmp_path):
    """A folder of Hugging Face with a head of three classes."""
    save(random_checkpoint("Nano/8", **SMALL), tmp_path / "hf", format="hf")
    return tmp_path / "hf"


def change(folder, **changes):
    """Changes the folder's config.json; None leaves a key out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: x for key, x in config.items() if x is not None}))


def refused(source, *words):
    with pytest.raises(ValueError) as error:
        load(source)
    message = str(error.value)
    assert all(word in message for word in (str(source), *words)), message
    assert "\n" not in message


@pytest.mark.parametrize("problem", OTHER_PROBLEMS, ids=str)
def test_other_problems_are_refused(folder, problem):
    change(folder, problem_type=problem)
    refused(folder, "config.json", f"problem_type={problem!r}", "num_classes=0")


@pytest.mark.parametrize("problem", ["single_label_classification", None])
def test_one_class_an_image_is_taken(folder, problem):
    change(folder, problem_type=problem)
    assert load(folder).num_classes == 3
    assert load(folder).loss == "softmax"


def test_several_classes_an_image_are_taken_with_their_sigmoid(folder):
    change(folder, problem_type="multi_label_classification")
    assert (load(folder).num_classes, load(folder).loss) == (3, "sigmoid")


def test_commands_refuse_and_fine_tuning_goes_on(folder, tmp_path, capsys):
    change(folder, problem_type="regression")
    photos = write_jpegs(tmp_path / "photos", {"a": 12, "b": 12})
    for command, arguments in (
        (predict, [folder, photos / "a" / "0.jpg"]),
        (convert, [folder, tmp_path / "x.npz"]),
    ):
        with pytest.raises(SystemExit, match="problem_type='regression'"):
            command.main([str(argument) for argument in arguments])
    convert.main([str(folder), str(tmp_path / "backbone.npz"), "--num_classes=0"])
    backbone = load(tmp_path / "backbone.npz")
    assert not backbone.num_classes
    expected = load_params(folder, num_classes=0)["embedding"]["kernel"]
    np.testing.assert_array_equal(backbone.params["embedding"]["kernel"], expected)

    features = Classifier(load(folder, num_classes=0)).features([np.zeros((32, 48, 3), np.uint8)])
    assert features.pooled.shape == (1, 24)

    config = vit_jax.default_config()
    config.model.update(variant="Nano/8", **SMALL)
    config.data.update(name=str(photos), image_size=IMAGE)
    config.update(init_from=str(folder), total_steps=1, batch_size=8, eval_batch_size=8)
    vit_jax.train(config, tmp_path / "run")
    assert load(tmp_path / "run").class_names == ("a", "b")


def test_a_head_with_one_output_is_no_choice(tmp_path):
    """Its softmax is 1 for every image; we may write one, which our record then says."""
    checkpoint = random_checkpoint("Nano/8", num_classes=1)
    for name in ("x.npz", "x.safetensors", "hf"):
        save(checkpoint, tmp_path / name, format="hf" if name == "hf" else None)
        assert load(tmp_path / name).num_classes == 1
    arrays = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    safetensors.numpy.save_file(arrays, tmp_path / "theirs.safetensors")
    with np.load(tmp_path / "x.npz") as file:
        np.savez(tmp_path / "theirs.npz", **file)
    change(tmp_path / "hf", problem_type=None)  # as transformers writes it, for regression
    for name in ("theirs.safetensors", "theirs.npz", "hf"):
        options = {} if name == "hf" else {"image_size": (32, 48)}
        refused(tmp_path / name, "it has a single output", "num_classes=0")
        assert not load(tmp_path / name, num_classes=0, **options).num_classes


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "a", "1": "b", "3": "c"},
        {"1": "a", "2": "b", "3": "c"},
        {"-1": "a", "0": "b", "1": "c"},
        {"0": "a", "1": "b", "01": "c"},
        {"0": "a", "1": "b", "two": "c"},
        {"0": "a", "1": "b", "2.0": "c"},
    ],
    ids=str,
)
def test_names_of_classes_with_gaps_are_refused(folder, labels):
    change(folder, id2label=labels)
    refused(folder, "config.json", "id2label has 3 names, but none for")


def test_names_of_classes_in_another_order_are_sorted_by_their_numbers(folder):
    change(folder, id2label={"2": "c", "0": "a", "1": "b"})
    assert load(folder).class_names == ("a", "b", "c")


def test_too_few_names_of_classes_are_refused(folder):
    change(folder, id2label={"0": "a", "1": "b"})
    refused(folder, "it names 2 classes, but has 3 logits")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(architectures=["ViTForMaskedImageModeling"]), "ViTForMaskedImageModeling"),
        (dict(architectures=["ViTMSNForImageClassification"]), "ViTMSNForImageClassification"),
        (dict(architectures=["DeiTForImageClassificationWithTeacher"]), "WithTeacher"),
        (dict(architectures="ViTModel"), "architectures must be a list"),
        (dict(model_type="deit"), "with model_type='deit' are DeiTForImageClassification,"),
        (dict(model_type="vit-hybrid"), "model_type is 'vit-hybrid'"),
        (dict(model_type="swin"), "model_type is 'swin'"),
        (dict(id2label=["a", "b", "c"]), "id2label must be a dict"),
    ],
    ids=str,
)
def test_other_models_are_refused_by_name(folder, changes, words):
    change(folder, **changes)
    refused(folder, "config.json", words)
    with pytest.raises(ValueError, match="config"):  # nor are they taken for fine-tuning
        load(folder, num_classes=0)
