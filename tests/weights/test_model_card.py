"""The model card: what is known of weights, and nothing of the machine that they are on."""

import pytest
import yaml
from tiny_weights import VIT, random_params

from vit_jax.checkpoints.checkpoint import Checkpoint
from vit_jax.config.defaults import default
from vit_jax.weights import recognise
from vit_jax.weights.model_card import Results, find_results, model_card

METRICS = "step,test_loss,test_accuracy,polyak_test_accuracy,test_top5_accuracy\n"
ROWS = "10,1.5,0.25,0.3,0.5\n15,,,,\n20,1.2,0.625,0.75,0.875\n"
DATA = {
    "train": {"split": "train[:85%]", "images": 3120, "ids": "x"},
    "test": {"split": "train[85%:]", "images": 550, "ids": "y"},
}


def checkpoint(path="x", step=0, data=None, num_classes=3, **keys):
    config = default()
    found = recognise.config_for("B/16", (32, 32), **VIT)
    config.model, config.data.image_size = found.model, 32
    config.update_from_flattened_dict(keys)
    params = random_params("B/16", num_classes=num_classes, **VIT)
    names = ("daisy", "rose", "tulip")[:num_classes]
    return Checkpoint(str(path), params, config, names, step, data=data)


@pytest.fixture
def run(tmp_path):
    """A checkpoint of a run on a folder of photos, at step 20."""
    (tmp_path / "metrics.csv").write_text(METRICS + ROWS)
    photos = tmp_path / "secret" / "photos"
    photos.mkdir(parents=True)
    keys = {"data.name": str(photos), "optim.lr": 0.25, "init_from": str(tmp_path / "secret.npz")}
    return checkpoint(tmp_path / "checkpoints" / "20", step=20, data=DATA, **keys)


def header(card):
    return yaml.safe_load(card.split("---")[1])


def card_of(checkpoint, format="hf", source="runs/x", results=None):
    return model_card(checkpoint, "org/x", format=format, source=source, results=results)


def test_results_are_those_of_the_checkpoints_own_step(run):
    shares = {"accuracy": 0.625, "top5_accuracy": 0.875}
    assert find_results(run) == Results("photos", "train[85%:]", 550, shares)
    assert find_results(run, average=True).shares == {"accuracy": 0.75}
    assert find_results(run._replace(step=15)) is None  # which was not measured
    assert find_results(run._replace(step=30)) is None
    assert find_results(run._replace(path="model.safetensors")) is None
    older = find_results(run._replace(data=None))  # of a version that did not keep its data
    assert (older.split, older.images) == ("", 0)


def test_a_run_has_accuracy_data_and_configuration(run):
    card = card_of(run, results=find_results(run))
    assert "on photos, split `train[85%:]` (550 images): accuracy 62.50 %, top-5" in card
    assert "- train: `train[:85%]`, 3,120 images" in card and "daisy, rose, tulip" in card
    assert "Trained for 20 steps" in card and "\nconfig.optim.lr = 0.25\n" in card
    assert "config.seed" not in card  # which is the default
    found = header(card)
    (result,) = found["model-index"][0]["results"]
    assert result["dataset"] == {"name": "photos", "type": "photos", "split": "train[85%:]"}
    assert {m["type"]: m["value"] for m in result["metrics"]} == dict(
        accuracy=0.625, top5_accuracy=0.875
    )
    assert found["pipeline_tag"] == "image-classification"
    assert "license" not in found and "datasets" not in found and "base_model" not in found


def test_no_path_of_the_machine_is_told(run, tmp_path):
    card = card_of(run, source=str(tmp_path), results=find_results(run))
    assert str(tmp_path) not in card and "secret" not in card


def test_data_sets_and_starts_that_are_public_are_told():
    keys = {"data.name": "tf_flowers", "init_from": "hf://org/base"}
    card = card_of(checkpoint(step=5, **keys))
    assert header(card)["datasets"] == ["tf_flowers"]
    assert "The run started from hf://org/base." in card
    assert "## Accuracy" not in card and "model-index" not in header(card)


@pytest.mark.parametrize(
    ("source", "licence", "base"),
    [
        ("timm/vit_base_patch16_224.mae", {"license": "cc-by-nc-4.0"}, True),
        ("sam/ViT-B_16", {"license": "apache-2.0"}, False),
        (
            "timm/vit_base_patch16_radio_v3.c_radio",
            {"license": "other", "license_name": "nvidia-open-model-license"},
            True,
        ),
        ("openai/clip-vit-base-patch16", {}, True),
        ("hf://org/unknown@v2", {}, "org/unknown"),
        ("model.safetensors", {}, False),
    ],
)
def test_licence_and_origin_of_published_weights(source, licence, base):
    found = checkpoint(num_classes=0)._replace(changes=("LayerScale is folded.",))
    card = card_of(found, "timm", source)
    top = header(card)
    assert {k: v for k, v in top.items() if k.startswith("license")} == licence
    assert top.get("base_model") == (source if base is True else base or None)
    assert ("Converted from" in card) == (source != "model.safetensors")
    assert "- LayerScale is folded." in card
    assert "Trained" not in card.split("## Source")[0]  # by whom and how is not known
    assert top["pipeline_tag"] == "image-feature-extraction"


@pytest.mark.parametrize("format", ["hf", "timm"])
def test_the_lines_load_the_model_from_the_hub(format):
    card = card_of(checkpoint(), format)
    blocks = [x.split("```")[0] for x in card.split("```python\n")[1:]]
    for block in blocks:
        compile(block, "card", "exec")
    assert ("'hf-hub:org/x', pretrained=True" if format == "timm" else "('org/x')") in blocks[1]
    assert "vit_jax.load('hf://org/x')" in blocks[2]


def test_many_classes_are_cut_short():
    names = tuple(f"class {i}" for i in range(1000))
    card = card_of(checkpoint()._replace(class_names=names))
    assert "1000 classes" in card and "and 900 more" in card and "class 999" not in card


def test_numbers_of_a_table_that_is_cut_off_are_not_invented(run, tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS + "20,1.2")
    assert find_results(run) is None
