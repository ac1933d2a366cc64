import io
import runpy

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import REPOSITORY
from PIL import Image
from tensorflow_datasets.datasets.clevr import clevr_dataset_builder as clevr
from tensorflow_datasets.datasets.dsprites import dsprites_dataset_builder as dsprites
from tensorflow_datasets.datasets.kitti import kitti_dataset_builder as kitti
from tensorflow_datasets.datasets.smallnorb import smallnorb_dataset_builder as smallnorb

from vit_jax.data import pipeline, sources, splits, transforms
from vit_jax.data.builders import prepare
from vit_jax.data.builders.vtab import TASKS
from vit_jax.jobs import validation

get_config = runpy.run_path(str(REPOSITORY / "configs" / "vtab.py"))["get_config"]

# Examples by split, of task_adaptation's tests and tfds's catalogue, and the percentage of train
# after which task_adaptation takes validation examples where the set has no split for them.
SIZES = {
    "caltech101": ({"train": 3060, "test": 6084}, 90),
    "cifar100": ({"train": 50_000, "test": 10_000}, 90),
    "dtd": ({"train": 1880, "validation": 1880, "test": 1880}, None),
    "oxford_flowers102": ({"train": 1020, "validation": 1020, "test": 6149}, None),
    "oxford_iiit_pet": ({"train": 3680, "test": 3669}, 80),
    "sun397": ({"train": 76_128, "validation": 10_875, "test": 21_750}, None),
    "svhn_cropped": ({"train": 73_257, "test": 26_032, "extra": 531_131}, 90),
    "patch_camelyon": ({"train": 262_144, "validation": 32_768, "test": 32_768}, None),
    "eurosat": ({"train": 27_000}, 60),
    "resisc45": ({"train": 31_500}, 60),
    "diabetic_retinopathy_detection": (
        {"sample": 10, "train": 35_126, "validation": 10_906, "test": 42_670},
        None,
    ),
    "clevr": ({"train": 70_000, "validation": 15_000, "test": 15_000}, 90),
    "dmlab": ({"train": 65_550, "validation": 22_628, "test": 22_735}, None),
    "dsprites": ({"train": 737_280}, 80),
    "kitti": ({"train": 6347, "validation": 423, "test": 711}, None),
    "smallnorb": ({"train": 24_300, "test": 24_300}, None),
}
TEST_SIZES = {
    "eurosat": 5400,
    "resisc45": 6300,
    "dsprites": 73_728,
    "smallnorb": 12_150,
    "clevr": 15_000,
}


def examples(task, split):
    """The numbers of the examples in a split of a task's data set, as (name, number)."""
    sizes = SIZES[task.dataset.partition("/")[0]][0]
    infos = [tfds.core.SplitInfo(name=k, shard_lengths=[n], num_bytes=0) for k, n in sizes.items()]
    parts = splits.parse_split(split).to_absolute(tfds.core.splits.SplitDict(infos))
    return [(p.splitname, i) for p in parts for i in range(sizes[p.splitname])[p.from_ : p.to]]


def test_there_are_seven_natural_four_specialized_and_eight_structured_tasks():
    groups = [task.group for task in TASKS.values()]
    assert [groups.count(g) for g in ("natural", "specialized", "structured")] == [7, 4, 8]
    assert groups == sorted(groups) and len(set(TASKS.values())) == 19


@pytest.mark.parametrize("name", TASKS)
def test_the_splits_have_800_and_200_examples_and_share_none_with_the_test_split(name):
    task = TASKS[name]
    dataset = task.dataset.partition("/")[0]
    train, val, both, test = (
        examples(task, s) for s in (task.train800, task.val200, task.train800val200, task.test)
    )
    assert (len(train), len(val), len(both)) == (800, 200, 1000)
    assert both == train + val and len(set(both)) == 1000
    assert len(test) == (TEST_SIZES.get(dataset) or SIZES[dataset][0]["test"])
    assert not set(both) & set(test)


@pytest.mark.parametrize("name", TASKS)
def test_validation_examples_are_those_of_the_public_code(name):
    task = TASKS[name]
    sizes, percent = SIZES[task.dataset.partition("/")[0]]
    first = examples(task, task.val200)[0]
    if percent:
        assert first == ("train", sizes["train"] * percent // 100)
    else:
        assert first == ("validation" if "validation" in sizes else "test", 0)


@pytest.mark.parametrize("name", TASKS)
def test_the_features_are_those_of_tfds(name, tmp_path):
    task = TASKS[name]
    info = tfds.builder(task.dataset, data_dir=tmp_path, try_gcs=False).info
    image, label = info.supervised_keys or ("image", "label")
    assert isinstance(info.features[image], tfds.features.Image)
    if isinstance(task.label, str):
        assert info.features[task.label].num_classes == task.num_classes
        assert task.label in (label, "label_azimuth", "label_elevation")
    else:
        assert len(task.label.names) == task.num_classes


@pytest.mark.parametrize("name", TASKS)
def test_the_configurations_are_valid_and_have_the_papers_one_setting(name):
    config = get_config(f"B/16,{name}")
    validation.validate(config, device_count=8)
    assert (config.data.name, config.data.image_size) == (f"vtab/{name}", 384)
    assert (config.total_steps, config.batch_size) == (2500, 512)
    optim = config.optim
    assert (optim.name, optim.lr, optim.momentum, optim.decay) == ("sgd", 0.01, 0.9, "cosine")
    assert (optim.clip_norm, optim.weight_decay, optim.warmup_steps) == (1.0, 0.0, 0)


def test_augmentation_is_that_of_bit():
    configs = {name: get_config(f"L/16,{name}").data for name in TASKS}
    assert {options.crop for options in configs.values()} == {"resize"}
    whole = {name for name, options in configs.items() if options.crop_fraction == 1}
    assert whole == {"clevr_count", "clevr_dist", "dmlab", "kitti_dist", "dspr_loc"}
    assert {options.crop_fraction for options in configs.values()} == {1, 384 / 448}
    unflipped = {name for name, options in configs.items() if not options.flip}
    assert unflipped == {"dspr_loc", "dspr_ori", "snorb_azim"}


def clevr_objects(*depths):
    coordinates = [np.array((100, 120, z), np.float32) for z in depths]
    return {"objects": {"size": [0] * len(depths), "pixel_coords": coordinates}}


@pytest.mark.parametrize("count, label", [(3, 0), (7, 4), (10, 7)])
def test_clevr_count(count, label):
    names, label_of = TASKS["clevr_count"].label
    assert label_of(clevr_objects(*[9.0] * count)) == label
    assert names[label] == f"{count} objects"


@pytest.mark.parametrize(
    "depths, label, name",
    [
        ((12, 7.9, 11), 0, "to 8"),
        ((8, 9), 0, "to 8"),
        ((8.01,), 1, "to 8.5"),
        ((8.5,), 1, "to 8.5"),
        ((8.6, 8.9), 2, "to 9"),
        ((9.2, 14), 3, "to 9.5"),
        ((9.75, 9.8), 4, "to 10"),
        ((10,), 4, "to 10"),
        ((10.1, 13), 5, "above 10"),
    ],
)
def test_clevr_dist_is_the_depth_of_the_nearest_object(depths, label, name):
    names, label_of = TASKS["clevr_dist"].label
    assert label_of(clevr_objects(*depths)) == label and names[label] == name


def test_clevrs_test_split_without_annotations_gives_no_label():
    assert all(TASKS[n].label.of(clevr_objects()) < 0 for n in ("clevr_count", "clevr_dist"))


@pytest.mark.parametrize(
    "objects, label, name",
    [
        ([(0, 1)], 0, "to 8 m"),
        ([(0, 8)], 0, "to 8 m"),
        ([(0, 10)], 1, "to 20 m"),
        ([(2, 20.0), (0, 60)], 1, "to 20 m"),
        ([(1, 30)], 2, "above 20 m"),
        ([(3, 4), (7, 1), (1, 30)], 2, "above 20 m"),
        ([(4, 30)], 3, "no vehicle"),
        ([], 3, "no vehicle"),
        ([(0, 30), (1, 1)], 0, "to 8 m"),
    ],
)
def test_kitti_dist_is_the_depth_of_the_nearest_car_van_or_truck(objects, label, name):
    record = {
        "objects": {
            "type": [np.int64(kind) for kind, _ in objects],
            "location": [np.array((-3, 1.5, z), np.float32) for _, z in objects],
        }
    }
    names, label_of = TASKS["kitti_dist"].label
    assert label_of(record) == label and names[label] == name


def test_dsprites_positions_and_angles_are_joined_to_sixteen():
    position, angle = TASKS["dspr_loc"].label.of, TASKS["dspr_ori"].label.of
    positions = [position({"label_x_position": np.int64(i)}) for i in range(32)]
    assert positions == [i for i in range(16) for _ in range(2)]
    angles = [angle({"label_orientation": np.int64(i)}) for i in range(40)]
    assert angles == [int(i // 2.5) for i in range(40)]
    assert angles[:8] == [0, 0, 0, 1, 1, 2, 2, 2] and np.bincount(angles).max() == 3


def test_an_unknown_task_is_refused_with_a_list_of_all():
    for attempt in (sources.open_dataset, lambda name: get_config(f"B/16,{name[5:]}")):
        with pytest.raises(ValueError, match="no task 'cars'") as error:
            attempt("vtab/cars")
        assert all(name in str(error.value) for name in TASKS) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["jft_300m", "JFT-300M", "jft"])
def test_jft_300m_is_not_public(name):
    with pytest.raises(ValueError, match="JFT-300M is not public") as error:
        sources.open_dataset(name)
    assert f"data.name={name}" in str(error.value) and "folder of images" in str(error.value)


FEW = {"train": 4, "validation": 2, "test": 2}


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return io.BytesIO(file.getvalue())


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


class Fake:
    """Makes tfds's builder of a data set, with all its features, prepare a few examples."""

    def _split_generators(self, dl_manager):
        return {split: self._few(count) for split, count in FEW.items()}

    def _few(self, count):
        for i in range(count):
            yield i, self.example(i)


class Clevr(Fake, clevr.Builder, skip_registration=True):
    pkg_dir_path = clevr.Builder.code_path.parent

    def example(self, i):
        thing = {
            "color": "red",
            "material": "metal",
            "shape": "cube",
            "size": "small",
            "rotation": 1.0,
            "3d_coords": (0, 0, 0),
        }
        things = [{**thing, "pixel_coords": (10, 20, 9.9 + z - i)} for z in range(3 + i)]
        return {
            "image": png(noise(i, 16, 24, 3)),
            "file_name": f"{i}.png",
            "objects": things,
            "question_answer": [{"question": "Why?", "answer": "no"}],
        }


class Kitti(Fake, kitti.Builder, skip_registration=True):
    pkg_dir_path = kitti.Builder.code_path.parent

    def example(self, i):
        thing = {
            "truncated": 0.0,
            "occluded": 0,
            "alpha": 0.0,
            "dimensions": (1, 2, 3),
            "bbox": tfds.features.BBox(0.1, 0.1, 0.5, 0.5),
            "rotation_y": 0.0,
        }
        kinds = ("Car", "Van", "Cyclist")
        things = [{**thing, "type": kinds[i], "location": (0, 1, 6.0 + 20 * i)}] if i < 3 else []
        return {"image": png(noise(i, 16, 24, 3)), "image/file_name": f"{i}", "objects": things}


class Dsprites(Fake, dsprites.Builder, skip_registration=True):
    pkg_dir_path = dsprites.Builder.code_path.parent

    def example(self, i):
        labels = {name: 0 for name in self.info.features if name != "image"}
        labels |= {"label_x_position": 10 * i, "label_orientation": 10 * i}
        return {"image": png(noise(i, 64, 64) // 128), **labels}


class Smallnorb(Fake, smallnorb.Builder, skip_registration=True):
    pkg_dir_path = smallnorb.Builder.code_path.parent

    def example(self, i):
        images = {"image": png(noise(i, 96, 96)), "image2": png(noise(9, 96, 96))}
        labels = {"label_category": "cars", "instance": 1, "label_lighting": 1}
        return {**images, **labels, "label_azimuth": 4 * i, "label_elevation": 2 * i}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """tfds's folder with the first examples of four data sets, as they come without TensorFlow."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    with pytest.MonkeyPatch.context() as patch:
        for builder in (Clevr, Kitti, Dsprites, Smallnorb):
            patch.setitem(prepare._OWN, builder.name, builder)
            prepare.prepare(builder.name, folder)
    return folder


@pytest.mark.parametrize(
    "name, labels, shape",
    [
        ("clevr_count", [0, 1, 2, 3], (16, 24, 3)),
        ("clevr_dist", [4, 2, 0, 0], (16, 24, 3)),
        ("kitti_dist", [0, 2, 3, 3], (16, 24, 3)),
        ("dspr_loc", [0, 5, 10, 15], (64, 64, 3)),
        ("dspr_ori", [0, 4, 8, 12], (64, 64, 3)),
        ("snorb_azim", [0, 4, 8, 12], (96, 96, 3)),
        ("snorb_elev", [0, 2, 4, 6], (96, 96, 3)),
    ],
)
def test_a_task_is_opened_with_its_labels(root, name, labels, shape):
    task = TASKS[name]
    dataset = sources.open_dataset(f"vtab/{name}", root)
    assert len(dataset.class_names) == task.num_classes
    assert dataset.splits == FEW
    source = dataset.source("train")
    found = [source[i] for i in range(4)]
    assert sorted(example.label for example in found) == sorted(labels)
    assert {transforms.decode(example.image).shape for example in found} == {shape}
    assert f"{task.dataset}/" in found[0].id and found[0].id.endswith("train #0")


def test_an_image_goes_with_its_label(root):
    source = sources.open_dataset("vtab/clevr_count", root).source("train")
    for i in range(4):
        image, label, _ = source[i]  # the one with 3 + i objects was drawn with seed i
        np.testing.assert_array_equal(transforms.decode(image), noise(label, 16, 24, 3))


def test_the_ones_of_dsprites_are_white(root):
    source = sources.open_dataset("vtab/dspr_loc", root).source("train")
    for i in range(4):
        image, label, _ = source[i]
        expected = noise(label // 5, 64, 64) // 128 * 255
        np.testing.assert_array_equal(transforms.decode(image), np.stack([expected] * 3, -1))


def test_a_task_makes_batches(root):
    options = get_config("B/16,kitti_dist").data
    options.image_size = 32
    source = sources.open_dataset("vtab/kitti_dist", root).source("train[:2]+validation")
    batch = next(pipeline.train_batches(source, options, num_classes=4, batch_size=4, seed=0))
    assert batch["image"].shape == (4, 32, 32, 3) and batch["image"].std() > 1
    assert set(batch["label"].tolist()) <= {0, 2, 3}
