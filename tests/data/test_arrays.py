"""Images in memory as a data set: what is taken, what is refused, and the order of the examples."""

import io

import numpy as np
import pytest
from PIL import Image

from vit_jax.data import sources
from vit_jax.data.arrays import ArrayDataset
from vit_jax.data.pipeline import decode_example


def contents(dataset, split="train"):
    """The images and the names of the classes of all examples, in the order of their ids."""
    source = dataset.source(split)
    found = [decode_example(source, i) for i in range(len(source))]
    found.sort(key=lambda pair: int(pair[1].id.partition("[")[2].rstrip("]")))
    return [image for image, _ in found], [dataset.class_names[x.label] for _, x in found]


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (6, 4, 5, 3)).astype(np.uint8)


LABELS = ["b", "a", "b", "a", "c", "a"]


@pytest.mark.parametrize(
    "given",
    [
        lambda x: x,
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.float32) / 255,
        list,
        lambda x: [Image.fromarray(image) for image in x],
        lambda x: np.array([*x, None], object)[:6],
        lambda x: [x[0].tolist(), *x[1:]],
    ],
    ids=["uint8", "int64", "to 255", "to 1", "list", "pillow", "objects", "nested"],
)
def test_images_of_every_kind_are_the_same(given, images):
    found, labels = contents(ArrayDataset(given(images), LABELS))
    assert np.array_equal(found, images) and found[0].dtype == np.uint8
    assert labels == LABELS


def test_labels_follow_the_rule_for_names_of_folders(images):
    labels = ["caf\u00e9", "cafe\u0301", "a\udce9", "tea", "tea", "tea"]
    assert ArrayDataset(images, labels).class_names == (r"a\xe9", "caf\u00e9", "tea")
    with pytest.raises(ValueError, match=r"Two labels are both written a\\xe9, though"):
        ArrayDataset(images, [r"a\xe9", *labels[1:]])


def test_encoded_images_and_files_are_read_when_they_are_needed(images, tmp_path):
    encoded = []
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"[{i}].png")
        Image.fromarray(image).save(buffer := io.BytesIO(), "PNG")
        encoded.append(buffer.getvalue())
    paths = [tmp_path / f"[{i}].png" for i in range(6)]
    strings = np.array([str(path) for path in paths])
    for given in (encoded, paths, strings):
        dataset = ArrayDataset(given, LABELS)
        found, labels = contents(dataset) if given is encoded else (None, LABELS)
        if given is not encoded:
            source = dataset.source("train")
            by_id = {x.id: image for image, x in (decode_example(source, i) for i in range(6))}
            found = [by_id[str(path)] for path in paths]
        assert np.array_equal(found, images) and labels == LABELS
    paths[0].unlink()
    with pytest.raises(sources.ExampleError, match=r"\[0\].png: can't be read: No such file"):
        source = ArrayDataset(paths, LABELS).source("train")
        [source[i] for i in range(6)]


def test_grey_images_have_three_equal_channels_and_are_not_copied(images):
    grey = images[..., 0]
    for given in (grey, grey[..., None]):
        found, _ = contents(ArrayDataset(given, LABELS))
        assert np.array_equal(found, np.repeat(grey[..., None], 3, -1))
        assert all(np.shares_memory(image, grey) for image in found)


def test_arrays_of_bytes_are_not_copied(images):
    found, _ = contents(ArrayDataset(images, LABELS))
    assert all(np.shares_memory(image, images) for image in found)


def test_sizes_may_differ(rng):
    images = [rng.integers(0, 256, (h, 3 + h, 3)).astype(np.uint8) for h in range(2, 8)]
    found, _ = contents(ArrayDataset(images, LABELS))
    assert all(np.array_equal(a, b) for a, b in zip(found, images, strict=True))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (np.array([1, 0, 10, 9, 2, 1]), ("0", "1", "2", "9", "10")),
        ([np.int64(3), 3, 4, 4, 3, 3], ("3", "4")),
        (np.array(["x", "y", "x", "x", "y", "y"]), ("x", "y")),
        (np.array(["x", "y", "x", "x", "y", "y"], object), ("x", "y")),
    ],
    ids=["ints", "list", "texts", "objects"],
)
def test_classes_are_the_distinct_labels_sorted(labels, names, images):
    dataset = ArrayDataset(images, labels)
    assert dataset.class_names == names
    assert contents(dataset)[1] == [str(x) for x in labels]


def test_the_test_images_are_a_split(images):
    dataset = ArrayDataset(images, LABELS, (images[:2], ["a", "c"]))
    assert dict(dataset.splits) == {"train": 6, "test": 2}
    found, labels = contents(dataset, "test")
    assert np.array_equal(found, images[:2]) and labels == ["a", "c"]
    assert dataset.class_names == ("a", "b", "c")
    # One scale for all floats: test images that are dark are not taken for images in 0…1.
    dark = np.full((2, 4, 5, 3), 1.0)
    dataset = ArrayDataset(images.astype(float), LABELS, (dark, ["a", "c"]))
    assert np.max(contents(dataset, "test")[0]) == 1


@pytest.mark.parametrize(
    ("counts", "share", "held_out"),
    [
        ((12, 2), 0.6, (7, 1)),  # the last 60 % of all would be those of one class
        ((12, 3), 0.15, (2, 1)),
        ((40, 20, 4), 0.25, (10, 5, 1)),
        ((2, 2), 0.99, (1, 1)),
    ],
)
def test_a_share_of_every_class_is_held_out(counts, share, held_out):
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None]  # each has its own value
    dataset = ArrayDataset(images, labels, share)
    found = {}
    for split in ("train", "test"):
        source = dataset.source(split)
        found[split] = {int(source[i].image[0, 0, 0]): source[i].label for i in range(len(source))}
        assert len(found[split]) == len(source) == dataset.splits[split]
    assert found["train"] | found["test"] == dict(enumerate(labels))
    assert not found["train"].keys() & found["test"].keys()
    assert tuple(np.bincount(list(found["test"].values()))) == held_out


def test_classes_with_one_image_are_named_and_not_divided():
    labels = ["a"] * 12 + ["b", "c"]
    images = np.zeros((14, 2, 2), np.uint8)
    with pytest.raises(ValueError, match=r"there is only one image, which can't .*: b, c\. Give"):
        ArrayDataset(images, labels, 0.15)
    assert len(ArrayDataset(images, labels, (images[:1], ["a"])).source("train")) == 14


def test_every_slice_has_all_classes_in_their_proportions():
    labels = np.repeat([0, 1, 2], [40, 24, 16])
    dataset = ArrayDataset(np.zeros((80, 2, 2), np.uint8), labels)
    for start, end in ((0, 20), (20, 40), (40, 60), (60, 80)):
        source = dataset.source(f"train[{start}:{end}]")
        counts = np.bincount([source[i].label for i in range(20)])
        assert np.abs(counts - [10, 6, 4]).max() <= 1


def test_the_name_is_of_the_contents(images):
    name = ArrayDataset(images, LABELS).name
    assert name == ArrayDataset(list(images), np.array(LABELS)).name
    other = images.copy()
    other[5, 3, 4, 2] ^= 1
    halves = (images[:3], LABELS[:3]), (images[3:], ["a", "b", "a"])
    others = [
        ArrayDataset(other, LABELS),
        ArrayDataset(images[::-1], LABELS),
        ArrayDataset(images, ["b", "b", "b", "a", "c", "a"]),
        ArrayDataset(images, ["b", "a", "b", "a", "d", "a"]),
        ArrayDataset(images.reshape(6, 5, 4, 3), LABELS),
        ArrayDataset(images, LABELS, (images[:1], ["a"])),
        ArrayDataset(images, LABELS, (images[:1], ["b"])),
        ArrayDataset(*halves[0], halves[1]),
        ArrayDataset([f"{i}.png" for i in range(6)], LABELS),
    ]
    assert len({name, *(x.name for x in others)}) == 1 + len(others)
    with pytest.raises(ValueError, match=f"data.name={name} stands for images that a program gave"):
        sources.open_dataset(name)


GOOD = np.zeros((2, 4, 4, 3), np.uint8)
NAN = np.array([[[0.5]], [[np.nan]]])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (GOOD, [0], "There are 2 images and 1 labels: each image needs one label"),
        (GOOD, None, "labels is None: each image needs a label"),
        (GOOD, ["a", None], r"labels\[1\] is None: labels must be all whole numbers"),
        (GOOD, ["a", float("nan")], r"labels\[1\] is nan"),
        (GOOD, ["a", 1], r"labels\[1\] is 1: .* or all texts"),
        (GOOD, [0, -1], r"labels\[1\] is -1"),
        (GOOD, np.array([0.0, 1.0]), r"labels\[0\] is 0.0"),
        (GOOD, [True, False], r"labels\[0\] is True"),
        (GOOD, np.eye(2, dtype=int), r"labels\[0\] is \[1, 0\].*labels.argmax\(1\)"),
        ([], [], "images is empty"),
        (None, [0], "images=None is no sequence: give an array or a list"),
        (5, [0], "images=5 is no sequence"),
        (np.array(5), [0], r"images=array\(5\) is no sequence"),
        ({"a": GOOD[0]}, [0], "images={'a': .*} is no sequence"),
        (np.array("photos"), [0], "images='photos' is a single one"),
        (GOOD, 5, "labels=5 is no sequence"),
        (GOOD, np.array(5), "labels=5 is no sequence"),
        (GOOD, "ab", "labels='ab' is no sequence"),
        (GOOD, {0, 1}, "labels={0, 1} is no sequence"),
        ("photos", [0], "images='photos' is a single one: give a sequence"),
        (Image.new("RGB", (4, 4)), [0], "is a single one"),
        (NAN, [0, 1], r"images\[1\] has values from nan to nan: integers must lie in 0…255, and"),
        (NAN * np.inf, [0, 1], r"images\[0\] has values from inf to inf"),
        (np.array([[[-0.5]], [[0.5]]]), [0, 1], r"images\[0\] has values from -0.5 to -0.5"),
        (np.array([[[0.5]], [[1.02]]]), [0, 1], r"images\[1\] has values from 1.02 to 1.02"),
        (np.array([[[0.5]], [[256.0]]]), [0, 1], r"images\[1\] has values from 256.0"),
        (np.array([[[0]], [[256]]]), [0, 1], r"images\[1\] has values from 256"),
        (np.array([[[0]], [[-1]]]), [0, 1], r"images\[1\] has values from -1"),
        (GOOD.transpose(0, 3, 1, 2), [0, 1], r"images\[0\] has the shape \(3, 4, 4\).* come last"),
        (np.zeros((2, 4, 4, 4), np.uint8), [0, 1], r"images\[0\] has the shape \(4, 4, 4\)"),
        (np.zeros((2, 16), np.uint8), [0, 1], r"images\[0\] has the shape \(16,\)"),
        (np.zeros((2, 0, 4, 3), np.uint8), [0, 1], r"images\[0\] has the shape \(0, 4, 3\)"),
        (np.zeros((2, 4, 4), bool), [0, 1], r"images\[0\] has the dtype bool: pixels must be"),
        ([GOOD[0], {}], [0, 1], r"images\[1\] has the shape \(\)"),
        ([GOOD[0], None], [0, 1], r"images\[1\] has the shape \(\)"),
    ],
)
def test_what_can_not_be_used_is_refused_by_its_number(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ArrayDataset(images, labels)


def test_what_is_wrong_with_the_test_images_is_said_of_them():
    for test, message in [
        ((GOOD, [0]), "There are 2 test images and 1 test labels"),
        ((NAN, [0, 1]), r"test images\[1\] has values from nan"),
        ((GOOD, [0, None]), r"test labels\[1\] is None"),
        ((GOOD, [0, 7]), "Of the test labels, 7 are none of the labels to train on"),
        ((GOOD, ["0", "1"]), "Of the test labels, '0', '1' are none of the labels"),
        (GOOD, r"test=array\(.*\) must be a share of .*, or \(images, labels\)"),
        ((GOOD,), r"test=\(array\(.*,\) must be a share"),
    ]:
        with pytest.raises(ValueError, match=message):
            ArrayDataset(GOOD, [0, 1], test)
