import re
import runpy

import pytest
from conftest import REPOSITORY
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import VisionTransformer


@pytest.fixture
def config():
    config = config_lib.default()
    config.total_steps = 10
    return config


def problems(config, device_count=1):
    with pytest.raises(ValueError) as error:
        config_lib.validate(config, device_count=device_count)
    return str(error.value)


@pytest.mark.parametrize("name", [path.stem for path in (REPOSITORY / "configs").glob("*.py")])
@pytest.mark.parametrize("device_count", [1, 2, 4, 8, 16])
def test_the_configurations_are_valid_on_any_usual_number_of_devices(name, device_count):
    get_config = runpy.run_path(str(REPOSITORY / "configs" / f"{name}.py"))["get_config"]
    config_lib.validate(get_config(), device_count=device_count)


def test_the_default_with_a_length_is_valid(config):
    config_lib.validate(config, device_count=8)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("job", "trian", "job='trian' is unknown: 'train' or 'evaluate' or 'fewshot' or 'sweep' "
         "or 'compare' (did you mean 'train'?)"),
        ("dtype", "float16", "'float32' or 'bfloat16'"),
        ("parallel", "pmapp", "did you mean 'pmap'?"),
        ("model.variant", "B/17", "closest: B/16"),
        ("model.pool", "max", "model: pool='max' is unknown"),
        ("model.width", 100, "width=100 is not a multiple of num_heads=12"),
        ("model.positions", "3d", "model: positions='3d' is unknown: '1d' or '2d'"),
        ("model.layers", (3, 4), "Variant B/16 has no layers"),
        ("init_resize", "bicubic", "did you mean 'cubic'?"),
        ("model.dropout", 1.0, "model: dropout=1.0 must be a number in [0, 1)"),
        ("data.image_size", 225, "multiple of the patch"),
        ("data.image_size", (224, 100), "224x100 pixels can't be cut into patches of 16x16"),
        ("data.image_size", (1, 2, 3), "data.image_size=(1, 2, 3)"),
        ("data.image_size", "big", "data.image_size=big"),
        ("data.train", "train[:85]%", "data.train: 'train[:85]%' is not a split"),
        ("data.test", "test[", "data.test: 'test[' is not a split"),
        ("data.crop", "center", "data.crop='center' is unknown"),
        ("data.crop_area", 0.0, "data.crop_area=0.0 must be in (0, 1]"),
        ("batch_size", 0, "batch_size=0 must be above 0"),
        ("total_steps", -5, "total_steps=-5 must be above 0"),
        ("epochs", -1.0, "epochs=-1.0 must be above 0"),
        ("accumulate_steps", 0, "accumulate_steps=0 must be above 0"),
        ("optim.name", "adamw", "did you mean 'adam'?"),
        ("optim.decay", "step", "'cosine' or 'linear' or 'constant'"),
        ("optim.warmup_steps", -1, "optim.warmup_steps=-1 must be 0 or more"),
        ("eval_every", -1, "eval_every=-1 must be 0 or more"),
        ("objective", "masked", "did you mean 'masked_patches'?"),
        ("masked.target", "mean_color", "did you mean 'mean_colour'?"),
        ("masked.fraction", 0.0, "masked.fraction=0.0 must be in (0, 1]"),
        ("model.stochastic_depth", 1.5, "stochastic_depth=1.5 must be a number in [0, 1)"),
        ("model.positions_at", "layer", "model: positions_at='layer' is unknown"),
        ("data.eval_crop", "center", "data.eval_crop='center' is unknown"),
        ("data.mixup", -0.1, "data.mixup=-0.1 must be 0 or more"),
        ("data.randaugment", -1, "data.randaugment=-1 must be 0 or more"),
        ("data.randaugment_magnitude", 31.0, "randaugment_magnitude=31.0 must be in [0, 30]"),
        ("optim.polyak", 1.0, "optim.polyak=1.0 must be in [0, 1)"),
        ("fewshot.shots", (0, 5), "fewshot.shots=(0, 5) must be numbers above 0"),
        ("fewshot.shots", (), "fewshot.shots=() must be numbers above 0, such as (1, 5, 10, 25)"),
        ("fewshot.train", "train[", "fewshot.train: 'train[' is not a split"),
        ("sweep.lr", (0.1, -1.0), "sweep.lr=(0.1, -1.0) must be numbers above 0"),
        ("sweep.held_out", 1.0, "sweep.held_out=1.0 must be in (0, 1)"),
        ("checkpoint.keep", 0, "checkpoint.keep=0 must be above 0"),
    ],
)
def test_each_problem_is_explained(config, key, value, message):
    config.update_from_flattened_dict({key: value})
    assert message in problems(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.variant": "R50x1"}, "needs a ViT or a hybrid, not R50x1"),
        ({"model.pre_logits": True}, "has no use for model.pre_logits"),
        ({"model.variant": "R50+B/16", "data.image_size": 220}, "that the 16x16 pixels of a patch"),
        ({"model.variant": "H/14", "masked.target": "downsized"}, "4 divides, not 14x14"),
    ],
)
def test_what_masked_patches_can_not_be_predicted_with(config, changes, message):
    config.objective = "masked_patches"
    config_lib.validate(config, device_count=1)
    config.update_from_flattened_dict(changes)
    assert message in problems(config)


def test_all_problems_are_listed_at_once(config):
    config.model.variant = "B/17"
    config.optim.lr = -1.0
    config.data.train = "train["
    text = problems(config)
    assert text.count("\n- ") == 3
    for key in ("model", "optim.lr", "data.train"):
        assert f"\n- {key}" in text


def test_a_run_needs_a_length(config):
    config.total_steps = None
    assert "neither total_steps nor epochs is set" in problems(config)
    config.epochs = 1.5
    config_lib.validate(config, device_count=1)


def test_batches_must_split_over_devices_and_micro_batches(config):
    config.batch_size, config.accumulate_steps, config.eval_batch_size = 96, 3, 36
    config_lib.validate(config, device_count=4)
    text = problems(config, device_count=8)
    assert "batch_size=96" not in text
    assert "eval_batch_size=36 can't be split evenly over the 8 devices: take a multiple of 8, " \
           "such as 32" in text
    config.accumulate_steps = 5
    assert "over the 4 devices x accumulate_steps=5: take a multiple of 20, such as 80" in problems(
        config, device_count=4
    )


def test_an_unknown_key_gets_the_nearest_one(config):
    with config.unlocked():
        config.optim.lerning_rate = 0.1
        config.batchsize = 3
    text = problems(config)
    assert "there is no key optim.lerning_rate" in text
    assert "there is no key batchsize; did you mean batch_size?" in text


def keys(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_key_is_read_somewhere():
    """No setting without effect: outside of default(), the code reads each key by its name."""
    files = [path for path in (REPOSITORY / "vit_jax").rglob("*.py") if path.name != "config.py"]
    code = "\n".join(path.read_text() for path in files)
    for key in keys(config_lib.default()):
        section, _, name = key.rpartition(".")
        if section == "model" and name != "variant":  # handed to the module as they are
            fields = VisionTransformer.__dataclass_fields__ | ResNet.__dataclass_fields__
            assert name in fields
        else:
            reader = {"": "config", "data": "(data|options)"}.get(section, section)
            assert re.search(rf"\b{reader}\.{name}\b", code), f"nobody reads {key}"
