"""What `validate` says about configurations that can't be run."""

import math
import runpy

import pytest
from conftest import REPOSITORY
from ml_collections import ConfigDict

from vit_jax.config.defaults import default
from vit_jax.config.keys import run_config
from vit_jax.jobs import validation


@pytest.fixture
def config():
    config = default()
    config.total_steps = 10
    return config


def problems(config, device_count=1):
    with pytest.raises(ValueError) as error:
        validation.validate(config, device_count=device_count)
    return str(error.value)


@pytest.mark.parametrize("name", [path.stem for path in (REPOSITORY / "configs").glob("*.py")])
@pytest.mark.parametrize("device_count", [1, 2, 4, 8, 16])
def test_the_configurations_are_valid_on_usual_numbers_of_devices(name, device_count):
    get_config = runpy.run_path(str(REPOSITORY / "configs" / f"{name}.py"))["get_config"]
    validation.validate(get_config(), device_count=device_count)


def test_the_default_with_a_length_is_valid(config):
    validation.validate(config, device_count=8)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "job",
            "trian",
            "job='trian' is unknown: 'train' or 'evaluate' or 'fewshot' or 'sweep' or 'compare'",
        ),
        ("job", "trian", " (did you mean 'train'?)"),
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
        ("data.image_size", "big", "='big' must be pixels: one side or (height, width)"),
        ("data.image_size", (0, 16), "data.image_size=(0, 16) must be pixels"),
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
        ("data.eval_resize", "bicubic", "data.eval_resize='bicubic' is unknown"),
        ("data.mixup", -0.1, "data.mixup=-0.1 must be 0 or more"),
        ("data.colour_jitter", -0.3, "data.colour_jitter=-0.3 must be 0 or more"),
        ("data.sampling", "even", "data.sampling='even' is unknown: 'uniform' or 'balanced'"),
        ("data.class_weights", "", "must be 'none', 'balanced' or the path of a CSV file"),
        ("data.erase", 1.1, "data.erase=1.1 must be in [0, 1]"),
        ("data.cutmix", -1.0, "data.cutmix=-1.0 must be 0 or more"),
        ("data.cutmix_probability", 1.5, "data.cutmix_probability=1.5 must be in [0, 1]"),
        ("data.randaugment", -1, "data.randaugment=-1 must be 0 or more"),
        ("data.randaugment_magnitude", 31.0, "randaugment_magnitude=31.0 must be in [0, 30]"),
        ("optim.polyak", 1.0, "optim.polyak=1.0 must be in [0, 1)"),
        (
            "optim.freeze",
            "enc",
            "optim.freeze='enc' must be 'none', 'encoder' or a number of blocks",
        ),
        ("optim.freeze", -1, "optim.freeze=-1 must be 'none', 'encoder' or a number of blocks"),
        ("optim.freeze", True, "optim.freeze=True must be 'none'"),
        ("optim.freeze", 13, "optim.freeze=13 is more than the 12 blocks of the model"),
        ("optim.layer_decay", 0.0, "optim.layer_decay=0.0 must be in (0, 1]"),
        ("optim.head_lr", 0.0, "optim.head_lr=0.0 must be above 0"),
        ("fewshot.shots", (0, 5), "fewshot.shots=(0, 5) must be numbers above 0"),
        ("fewshot.shots", (), "fewshot.shots=() must be numbers above 0, such as (1, 5, 10, 25)"),
        ("fewshot.train", "train[", "fewshot.train: 'train[' is not a split"),
        ("sweep.lr", (0.1, -1.0), "sweep.lr=(0.1, -1.0) must be numbers above 0"),
        ("sweep.held_out", 1.0, "sweep.held_out=1.0 must be in (0, 1)"),
        ("checkpoint.keep", 0, "checkpoint.keep=0 must be above 0"),
        ("data.on_error", "ignore", "data.on_error='ignore' is unknown: 'stop' or 'skip'"),
        ("on_nonfinite", "stopp", "(did you mean 'stop'?)"),
        ("max_skipped_updates", 0, "max_skipped_updates=0 must be above 0"),
        ("data.name", " ", "data.name=' ' must be a folder of images or the name of a data set"),
        ("optim.lr", math.nan, "optim.lr=nan must be a finite number"),
        ("epochs", math.inf, "epochs=inf must be a finite number or None"),
        ("total_steps", 2**31, "total_steps=2147483648 must be a whole number (of 32 bits)"),
        ("init_average", True, "init_average=True needs init_from"),
        ("model.implementation", "cudnn", "not in float32 with a depth of 64"),
    ],
)
def test_each_problem_is_explained(config, key, value, message):
    config.update_from_flattened_dict({key: value})
    assert message in problems(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.eval_image_size": 256}, "eval_image_size=256 needs a model without learned"),
        (
            {"model.positions": "sincos", "data.eval_image_size": 250},
            "data.eval_image_size=250 with B/16: An image of 250x250 pixels can't be cut",
        ),
        (
            {"objective": "masked_patches", "data.eval_image_size": 224},
            "data.eval_image_size is for objective='classification'",
        ),
        ({"model.variant": "R50x1", "optim.freeze": 3}, "R50x1 is a ResNet: take 'none'"),
        ({"model.variant": "R50x1", "optim.layer_decay": 0.7}, "optim.layer_decay=0.7 counts"),
        ({"model.scan": True, "optim.freeze": 3}, "freeze=3 would save nothing with model.scan"),
        ({"objective": "masked_patches", "optim.freeze": 3}, "freeze=3 is for fine-tuning"),
        ({"objective": "masked_patches", "model.lora_rank": 4}, "lora_rank=4 is for fine-tuning"),
        ({"model.variant": "R50x1", "model.lora_rank": 4}, "Variant R50x1 has no lora_rank"),
        ({"model.lora_rank": 769}, "lora_rank=769 is more than the rank of the kernels, 768"),
        ({"optim.freeze": 12, "model.lora_rank": 4}, "would change nothing with optim.freeze=12"),
        ({"model.lora_rank": 4, "optim.freeze": "encoder"}, "with optim.freeze='encoder', which"),
    ],
)
def test_what_is_trained_must_suit_the_model(config, changes, message):
    config.update_from_flattened_dict(changes)
    assert message in problems(config)
    key = list(changes)[-1]
    section, name = key.split(".")
    config.update_from_flattened_dict({key: default()[section][name]})
    validation.validate(config, device_count=1)


@pytest.mark.parametrize("freeze", [0, 12, "encoder"])
def test_a_vit_can_be_frozen_up_to_its_last_block(config, freeze):
    config.optim.freeze = freeze
    validation.validate(config, device_count=1)
    config.model.scan = freeze == "encoder"
    validation.validate(config, device_count=1)


def test_lora_goes_with_what_leaves_it_a_block(config):
    config.model.update(lora_rank=4, lora_alpha=8.0)
    config.optim.update(freeze=11, layer_decay=0.7, head_lr=0.1)
    validation.validate(config, device_count=1)
    config.model.scan, config.optim.freeze = True, "none"
    validation.validate(config, device_count=1)
    config.model.variant = "Axial-B/32"
    validation.validate(config, device_count=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.sampling": "balanced"}, "'balanced' draws by labels, and objective="),
        ({"model.variant": "R50x1"}, "needs a ViT or a hybrid, not R50x1"),
        ({"model.pre_logits": True}, "has no use for model.pre_logits"),
        ({"model.projection": 7}, "has no use for model.projection"),
        ({"model.pool": "map"}, "has no use for model.pool='map'"),
        ({"model.final_norm": "after_pool"}, "has no use for model.final_norm='after_pool'"),
        (
            {"model.variant": "R50+B/16", "data.image_size": 220},
            "multiples of a patch's 16x16 pixels",
        ),
        ({"model.variant": "H/14", "masked.target": "downsized"}, "multiples of 4, not 14x14"),
    ],
)
def test_models_and_images_that_masked_patches_refuses(config, changes, message):
    config.objective = "masked_patches"
    validation.validate(config, device_count=1)
    config.update_from_flattened_dict(changes)
    assert message in problems(config)


def test_classes_are_balanced_once(config):
    config.data.sampling = "balanced"
    validation.validate(config, device_count=1)
    config.data.class_weights = "balanced"
    assert "both 'balanced', which makes up twice" in problems(config)


def test_all_problems_are_listed_at_once(config):
    config.model.variant = "B/17"
    config.optim.lr = -1.0
    config.data.train = "train["
    text = problems(config)
    assert text.count("\n- ") == 3
    for key in ("model", "optim.lr", "data.train"):
        assert f"\n- {key}" in text


def test_a_problem_is_listed_once(config):
    """A key of another type, or out of range, is not listed again for a conflict."""
    config.accumulate_steps = 3
    with config.ignore_type():
        config.batch_size, config.total_steps, config.model.width = "many", "few", True
    config.model.num_heads = 7
    config.parallel, config.fsdp = "shraded", 2
    assert problems(config).split("\n- ")[1:] == [
        "batch_size='many' must be a whole number (of 32 bits).",
        "model.width=True must be a whole number (of 32 bits) or None.",
        "parallel='shraded' is unknown: 'pmap' or 'sharded' (did you mean 'sharded'?).",
        "total_steps='few' must be a whole number (of 32 bits) or None.",
    ]


def test_missing_keys_are_listed(config):
    with config.unlocked():
        del config.optim.lr, config.data, config.model
        config.model = 3
    assert problems(config).split("\n- ")[1:] == [
        "data is missing: start from vit_jax.config.default().",
        "model=3 must be a section, a ConfigDict.",
        "optim.lr is missing: start from vit_jax.config.default().",
    ]


@pytest.mark.parametrize("config", [None, {}, 3], ids=repr)
def test_anything_but_a_configuration_is_refused(config):
    assert "is a ConfigDict, as vit_jax.config.default() returns it, not" in problems(config)


def test_whole_numbers_and_lists_stand_for_numbers_and_tuples(config):
    with config.ignore_type():
        config.optim.lr, config.epochs, config.sweep.lr = 1, 3, [1, 0.5]
        config.fewshot.shots, config.data.image_size = [1, 5], [32, 48]
        config.model.implementation, config.dtype = "cudnn", "bfloat16"
    validation.validate(config, device_count=1)


@pytest.mark.parametrize("job", ["sweep", "compare"])
def test_studies_go_by_accuracy(config, job):
    config.job, config.objective, config.masked.target = job, "masked_patches", "pixels"
    config.compare.runs = ConfigDict({"a": {"optim": {"lr": 0.1}}})
    assert f"job='{job}' goes by accuracy, and masked.target='pixels' has none" in problems(config)
    config.masked.target = "downsized"
    validation.validate(config, device_count=1)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"optim": {"lrr": 1}}, "compare.runs.a: there is no key optim.lrr; did you mean opt"),
        ({"optim": {"lr": "x"}}, "compare.runs.a: optim.lr='x' must be a finite number."),
        ({"batch_size": 3}, "compare.runs.a: batch_size=3 can't be split evenly over the 2 dev"),
        ({"model": {"variant": "B/17"}}, "compare.runs.a: model: There is no model variant 'B/17'"),
        ({"model": 5}, "compare.runs.a: model=5 must be a section"),
        ({"data": {"image_size": (33, 48)}}, "compare.runs.a: data.image_size=(33, 48) with B/16"),
        ({"seed": 1}, "compare.runs.a: job='compare' sets seed itself: leave it out."),
        (5, "compare.runs.a=5 must be a ConfigDict of other values."),
    ],
)
def test_a_problem_of_a_run_to_compare_has_its_name(config, run, message):
    config.job = "compare"
    config.compare.runs = ConfigDict({"a": run, "b": {"model": {"depth": 2}}})
    text = problems(config, device_count=2)
    assert message in text and text.count("\n- ") == 1


def test_a_problem_that_all_runs_share_is_listed_once(config):
    config.job, config.batch_size = "compare", 3
    config.compare.runs = ConfigDict({"a": {"optim": {"lr": 0.1}}, "b": {}})
    assert problems(config, device_count=2).count("\n- ") == 1


def test_a_run_to_compare_can_have_images_of_two_sides(config):
    config.job = "compare"
    config.compare.runs = ConfigDict({"a": {"data": {"image_size": (32, 48)}}})
    validation.validate(config, device_count=1)
    assert run_config(config, "a").data.image_size == (32, 48)


def test_a_run_needs_a_length(config):
    config.total_steps = None
    assert "neither total_steps nor epochs is set" in problems(config)
    config.epochs = 1.5
    validation.validate(config, device_count=1)


def test_batches_must_split_over_devices_and_micro_batches(config):
    config.batch_size, config.accumulate_steps, config.eval_batch_size = 96, 3, 36
    validation.validate(config, device_count=4)
    text = problems(config, device_count=8)
    assert "batch_size=96" not in text
    assert (
        "eval_batch_size=36 can't be split evenly over the 8 devices: take a multiple of 8, "
        "such as 32" in text
    )
    config.accumulate_steps = 5
    assert "over the 4 devices x accumulate_steps=5: take a multiple of 20, such as 80" in problems(
        config, device_count=4
    )


def test_an_unknown_key_gets_the_nearest_one(config):
    with config.unlocked():
        config.optim.lerning_rate = 0.1
        config.batchsize = 3
    text = problems(config)
    assert "there is no key optim.lerning_rate." in text
    assert "there is no key batchsize; did you mean batch_size?" in text


def test_a_state_is_sharded_over_equal_groups_of_devices(config):
    config.fsdp = 2
    assert "fsdp=2 is for parallel='sharded': with parallel='pmap'" in problems(config, 8)
    config.parallel = "sharded"
    validation.validate(config, device_count=8)
    config.fsdp = 3
    assert "fsdp=3 must divide the number of devices, 8." in problems(config, 8)
