"""Images with several labels: a labels.csv beside them, or a tfds feature with a sequence."""

import io
from collections import Counter

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import write_jpegs

from vit_jax.config.defaults import default
from vit_jax.data import pipeline
from vit_jax.data.builders import prepare
from vit_jax.data.checks import check_folder, require_loss_for_labels
from vit_jax.data.dataset import is_multi_label
from vit_jax.data.fingerprint import find_differences, fingerprint
from vit_jax.data.folders import FolderDataset
from vit_jax.data.labels_file import find_labels
from vit_jax.data.sources import TfdsDataset


@pytest.fixture
def folder(tmp_path):
    """A folder of twelve images in two subfolders."""
    return write_jpegs(tmp_path / "images", {"a": 6, "b": 6})


def write(folder, text, encoding="utf-8"):
    (folder / "labels.csv").write_bytes(text.encode(encoding))
    return folder


def labels_of(folder, split="train"):
    """{path in the folder: names of its labels} of a data set."""
    dataset = FolderDataset(folder)
    root = dataset.folder
    return {
        str(path.relative_to(root)): tuple(dataset.class_names[x] for x in np.atleast_1d(label))
        for path, label in dataset.source(split).files
    }


def test_lines_give_the_labels_and_the_folders_of_images_none(folder):
    text = "file,label\na/0.jpg,sky;sea\na/1.jpg, sea \n\nb/0.jpg,\nb/1.jpg,sea;sky;sea;\n"
    for encoding in ("utf-8", "utf-8-sig"):
        for lines in (text, text.removeprefix("file,label\n"), text.replace("\n", "\r\n")):
            write(folder, lines, encoding)
            assert labels_of(folder) == {
                "a/0.jpg": ("sea", "sky"),
                "a/1.jpg": ("sea",),
                "b/0.jpg": (),
                "b/1.jpg": ("sea", "sky"),
            }
    dataset = FolderDataset(folder)
    assert dataset.class_names == ("sea", "sky")
    assert dataset.splits == {"train": 4} and dataset.multi_label
    assert dataset.count_images("train") == {"sea": 3, "sky": 2}
    assert dataset.describe_unused() == ["not used: 8 images that labels.csv doesn't name"]
    assert is_multi_label(dataset.source("train[50%:]"))
    assert len(dataset.source("train[:50%]")) + len(dataset.source("train[50%:]")) == 4


def test_numbers_are_in_the_order_of_numbers_and_names_in_one_form(folder):
    write(folder, "a/0.jpg,10;9\na/1.jpg,2\n")
    assert FolderDataset(folder).class_names == ("2", "9", "10")
    write(folder, 'a/0.jpg,"caf\u00e9, open;bar"\na/1.jpg,"cafe\u0301, open"\n')
    assert FolderDataset(folder).class_names == ("bar", "caf\u00e9, open")


def test_one_label_for_every_image_is_data_as_any_other(folder):
    write(folder, "".join(f"{x}/{i}.jpg,{'xy'[i % 2]}\n" for x in "ab" for i in range(6)))
    dataset = FolderDataset(folder)
    assert not dataset.multi_label
    assert Counter(label for _, label in dataset.source("train").files) == {0: 6, 1: 6}
    require_loss_for_labels(dataset.source("train"), "softmax", "data")
    told = "labels: one class an image, as labels.csv says"
    assert dataset.describe() == ["train: 12 images (x 6, y 6)", told]
    assert told in check_folder(str(folder))[1]
    write(folder, "a/0.jpg,x;y\n")
    assert "labels: one or several an image, or none, as labels.csv says" in (
        FolderDataset(folder).describe()
    )


def test_splits_are_the_first_folders_of_paths_or_have_files_of_their_own(tmp_path):
    root = write_jpegs(tmp_path / "images", {"train": 3, "Validation": 2})
    write(root, "train/0.jpg,x;y\ntrain/1.jpg,x\nValidation/1.jpg,y\n")
    expected = {"train/0.jpg": ("x", "y"), "train/1.jpg": ("x",)}
    assert labels_of(root) == expected
    assert labels_of(root, "validation") == {"Validation/1.jpg": ("y",)}
    (root / "labels.csv").unlink()
    write(root / "train", "0.jpg,x;y\n1.jpg,x\n")
    with pytest.raises(ValueError, match="but Validation/ beside it has none"):
        find_labels(root)
    write(root / "Validation", "file,label\n1.jpg,y\n")
    assert labels_of(root) == expected
    assert labels_of(root, "validation") == {"Validation/1.jpg": ("y",)}
    write(root, "train/0.jpg,x\n")
    with pytest.raises(ValueError, match="may both give labels"):
        find_labels(root)
    (root / "Validation" / "labels.csv").unlink()
    (root / "train" / "labels.csv").unlink()
    write(root, "train/0.jpg,x;y\nValidation/1.jpg,y\n")
    write_jpegs(root, {"more": 1})
    write(root, "train/0.jpg,x;y\nValidation/1.jpg,y\nmore/0.jpg,x\n")
    assert FolderDataset(root).splits == {"train": 3}  # not all are in folders of splits


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a/0.jpg,x\na/9.jpg,y\n", ("names 1 of 2 images that aren't in its folder: a/9.jpg",)),
        ("a/0.jpg,x\na/x.jpg,y\n", ("names 1 of 2 images that aren't in its folder: a/x.jpg",)),
        ("a/0.jpg,x\na/0.jpg,y\n", ("line 2", "a/0.jpg has another line before")),
        ("a/0.jpg,x\n./a/0.jpg,y\n", ("line 2", "another line before")),
        ("a/0.jpg,x,y\n", ("line 1", "found 3 cells", "separated by ;")),
        ("file,label\na/0.jpg\n", ("line 2", "found 1 cells")),
        ("file,label\na/0.jpg;x\n", ("line 2", "found 1 cells")),
        ("file,label\nnotes.txt,x\n", ("line 2", "'notes.txt' is no image")),
        ("../images/a/0.jpg,x\n", ("line 1", "no path inside the folder")),
        ("/etc/a.jpg,x\n", ("line 1", "no path inside the folder")),
        ('a/0.jpg,"x\n', ("isn't a CSV file in UTF-8",)),
        ("a/0.jpg,caf\udce9\n", ("isn't a CSV file in UTF-8",)),
        ("file,label\n", ("names no images", "give it another name")),
        ("", ("names no images",)),
        ("id,breed\n000bec,boxer\n", ("line 2", "'000bec' is no image", "give it another name")),
    ],
)
def test_what_cannot_be_used_is_named_with_its_line(folder, text, words):
    (folder / "a" / "x.jpg").mkdir()
    (folder / "labels.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        FolderDataset(folder)
    assert all(word in str(error.value) for word in (str(folder / "labels.csv"), *words))
    assert "\n" not in str(error.value)


def test_a_folder_of_this_name_is_no_traceback(folder):
    (folder / "labels.csv").mkdir()
    with pytest.raises(ValueError, match=r"labels\.csv: can't be read: Is a directory\.$"):
        FolderDataset(folder)


def test_batches_have_a_row_for_each_image(folder):
    write(folder, "a/0.jpg,sky;sea\na/1.jpg,sea\nb/0.jpg,\nb/1.jpg,tree\nb/2.jpg,sea;tree\n")
    dataset, options = FolderDataset(folder), default().data
    options.image_size = 16
    source = dataset.source("train")
    expected = {id: np.isin([0, 1, 2], [*label]) for _, label, id in map(tuple, source)}
    batches = pipeline.train_batches(source, options, num_classes=3, batch_size=5, seed=0)
    batch = next(batches)
    assert batch["label"].dtype == bool and batch["label"].shape == (5, 3)
    ids = pipeline.batch_ids(source, options, 1, batch_size=5, seed=0)
    np.testing.assert_array_equal(batch["label"], [expected[id] for id in ids])
    found = [*pipeline.eval_batches(source, options, num_classes=3, batch_size=4)]
    rows = np.concatenate([x["label"][x["mask"]] for x in found])
    np.testing.assert_array_equal(rows, [*expected.values()])
    padding = [x["label"][~x["mask"]] for x in found]
    assert not np.concatenate(padding).any() and found[1]["label"].shape == (4, 3)
    with pytest.raises(ValueError, match=r"label 2, but there are 2 classes"):
        [*pipeline.eval_batches(source, options, num_classes=2, batch_size=4)]


def test_other_labels_are_other_data(folder):
    def of(text):
        dataset = FolderDataset(write(folder, text))
        part = ("train", dataset.source("train"))
        return fingerprint(dataset, labels=True, train=part, test=part)

    old = of("a/0.jpg,x;y\na/1.jpg,x\n")
    assert find_differences(old, of("a/1.jpg,x\na/0.jpg,y;x\n")) == []
    assert "the train split" in find_differences(old, of("a/0.jpg,x;y\na/1.jpg,y\n"))[0]


def test_data_check_counts_labels_and_finds_damage(folder):
    write(folder, "a/0.jpg,x;y\na/1.jpg,x\nb/0.jpg,x\n")
    (folder / "a" / "1.jpg").write_bytes(b"no image")
    (folder / "b" / "5.jpg").write_bytes(b"not named")
    problems, summary = check_folder(str(folder))
    assert len(problems) == 1 and "a/1.jpg" in problems[0]
    assert summary[:2] == ["class x: 3 in train", "class y: 1 in train"]


class Scenes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images of noise with none, one or two of three labels."""

    VERSION = tfds.core.Version("1.0.0")
    LABELS = ([], [2], [0, 2], [1, 0])

    def _info(self):
        names = tfds.features.ClassLabel(names=["sea", "sky", "tree"])
        features = {"image": tfds.features.Image(), "labels": tfds.features.Sequence(names)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        import PIL.Image

        for i, labels in enumerate(self.LABELS):
            file = io.BytesIO()
            PIL.Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(file, "PNG")
            yield i, {"image": io.BytesIO(file.getvalue()), "labels": labels}


def test_a_tfds_feature_with_a_sequence_of_labels(tmp_path, monkeypatch):
    monkeypatch.setitem(prepare._OWN, "scenes", Scenes)
    dataset = TfdsDataset("scenes", str(tmp_path))
    source = dataset.source("train")
    assert dataset.class_names == ("sea", "sky", "tree") and is_multi_label(source)
    options = default().data
    options.image_size = 8
    found = {}
    for batch in pipeline.eval_batches(source, options, num_classes=3, batch_size=3):
        for image, label, mask in zip(*(batch[x] for x in ("image", "label", "mask")), strict=True):
            if mask:
                found[round(image[..., 0].mean() / 60)] = [*np.flatnonzero(label)]
    assert found == {i: sorted(labels) for i, labels in enumerate(Scenes.LABELS)}
    with pytest.raises(ValueError, match=r"optim\.loss='softmax' takes one label an image"):
        require_loss_for_labels(source, "softmax", "scenes")
