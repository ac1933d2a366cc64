import io
import pathlib

import numpy as np
import pytest
from conftest import write_jpegs
from PIL import Image

from vit_jax.common import host
from vit_jax.config.defaults import default
from vit_jax.data import pipeline, read_ahead, sources, splits, transforms


@pytest.fixture
def options():
    options = default().data
    options.image_size = 16
    return options


def labels(source):
    return np.array([source[i].label for i in range(len(source))])


def ids(source):
    return [source[i].id for i in range(len(source))]


def test_folder_without_splits_is_one_train_split(image_folder):
    dataset = sources.open_dataset(str(image_folder))
    assert dataset.class_names == ("blue", "green", "red")
    assert dataset.splits == {"train": 80}
    example = dataset.source("train")[3]
    path = pathlib.Path(example.id)
    assert example.image == path.read_bytes()
    assert dataset.class_names[example.label] == path.parent.name


def test_folder_with_splits(tmp_path):
    write_jpegs(tmp_path / "train", {"a": 6, "b": 4})
    write_jpegs(tmp_path / "test", {"a": 2, "b": 3})
    dataset = sources.open_dataset(str(tmp_path))
    assert dataset.splits == {"train": 10, "test": 5}
    assert np.bincount(labels(dataset.source("test"))).tolist() == [2, 3]
    assert len(dataset.source("train+test[:40%]")) == 12
    assert splits.default_splits(dataset.splits) == ("train", "test")


def test_folder_reads_the_image_suffixes_in_any_case_and_nothing_else(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("1.jpg", "2.JPEG", "3.Png", "4.webp", "notes.txt", "5.heic", "6.GIF", "7.Tif"):
        (tmp_path / "a" / name).write_bytes(b"x")
    assert len(sources.open_dataset(str(tmp_path)).source("train")) == 6


@pytest.mark.parametrize("percent", [15, 50, 85])
def test_slices_are_a_stratified_partition(image_folder, percent):
    dataset = sources.open_dataset(str(image_folder))
    first, second = (dataset.source(f"train[{s}]") for s in (f":{percent}%", f"{percent}%:"))
    assert sorted(ids(first) + ids(second)) == sorted(ids(dataset.source("train")))
    expected = np.array([40, 16, 24]) * percent / 100
    assert np.abs(np.bincount(labels(first)) - expected).max() <= 1


def test_slices_are_the_same_every_time_and_not_in_file_order(image_folder):
    first, again = (sources.open_dataset(str(image_folder)).source("train") for _ in range(2))
    assert ids(first) == ids(again) != sorted(ids(first))


def test_training_visits_every_example_once_an_epoch_in_changing_order(options):
    source = NumberedSource(24)
    batches = pipeline.train_batches(source, options, num_classes=24, batch_size=8, seed=1)
    epochs = [np.concatenate([next(batches)["label"] for _ in range(3)]) for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_iterator_goes_to_any_step(options, processes):
    """What a run of one process began can be continued by two."""
    source = NumberedSource(20)
    one = pipeline.train_batches(source, options, num_classes=20, batch_size=8, seed=5)
    for _ in range(4):  # an epoch and a half
        next(one)
    parts = [
        pipeline.train_batches(
            source,
            options,
            num_classes=20,
            batch_size=8 // processes,
            seed=5,
            shard=pipeline.Shard(p, processes),
        )
        for p in range(processes)
    ]
    for part in parts:
        next(part)
        pipeline.seek(part, 4)
    for _ in range(3):
        whole = next(one)
        for p, part in enumerate(parts):
            found = next(part)
            for name in ("image", "label"):
                np.testing.assert_array_equal(found[name], whole[name][p::processes])


class NumberedSource:
    """n tiny noise images whose label is their number."""

    def __init__(self, n):
        self.images = []
        for i in range(n):
            buffer = io.BytesIO()
            noise = np.random.default_rng(i).integers(0, 256, (24, 24, 3)).astype(np.uint8)
            Image.fromarray(noise).save(buffer, format="PNG")
            self.images.append(buffer.getvalue())

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return sources.Example(self.images[index], int(index), f"#{index}")


@pytest.mark.parametrize("crop", ["inception", "resize"])
def test_two_processes_interleave_to_the_batch_of_one(options, crop):
    options.crop = crop
    source = NumberedSource(20)
    one = pipeline.train_batches(source, options, num_classes=20, batch_size=8, seed=5)
    halves = [
        pipeline.train_batches(
            source, options, num_classes=20, batch_size=4, seed=5, shard=pipeline.Shard(p, 2)
        )
        for p in range(2)
    ]
    for _ in range(6):
        whole, parts = next(one), [next(half) for half in halves]
        for name in ("image", "label"):
            np.testing.assert_array_equal(whole[name][0::2], parts[0][name])
            np.testing.assert_array_equal(whole[name][1::2], parts[1][name])


def test_training_images_differ_between_epochs_and_repeat_with_the_seed(options):
    source = NumberedSource(4)
    runs = [
        pipeline.train_batches(source, options, num_classes=4, batch_size=4, seed=s)
        for s in (0, 0, 1)
    ]
    (first, later), (same, _), (other, _) = ([next(r), next(r)] for r in runs)
    np.testing.assert_array_equal(first["image"], same["image"])
    by_label = [b["image"][np.argsort(b["label"])] for b in (first, later, other)]
    assert (by_label[0] != by_label[1]).any() and (by_label[0] != by_label[2]).any()


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 16, 17])
def test_evaluation_sees_every_example_exactly_once(options, count, processes):
    source = NumberedSource(count)
    seen, lengths = [], []
    for process in range(processes):
        batches = list(
            pipeline.eval_batches(
                source,
                options,
                num_classes=count,
                batch_size=4,
                shard=pipeline.Shard(process, processes),
            )
        )
        lengths.append(len(batches))
        for batch in batches:
            assert batch["image"].shape == (4, 16, 16, 3) and batch["image"].dtype == np.uint8
            assert batch["label"].dtype == np.int32
            seen += batch["label"][batch["mask"]].tolist()
    assert sorted(seen) == list(range(count))
    assert len(set(lengths)) == 1


def test_evaluation_sees_a_central_crop_or_the_whole_image(options, tmp_path):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :10] = 255  # which the crop cuts off
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(file.getvalue())
    source = sources.open_dataset(str(tmp_path)).source("train")

    def seen(crop):
        options.eval_crop = crop
        (batch,) = pipeline.eval_batches(source, options, num_classes=1, batch_size=1)
        return batch["image"][0]

    assert seen("central").max() == 0
    np.testing.assert_array_equal(seen("whole")[:, :2], 255)
    np.testing.assert_array_equal(seen("whole")[:, 3:], 0)


def test_the_tables_of_crops_are_what_a_configuration_chooses_from(options, monkeypatch):
    """A row that is added is used, and no other."""

    def corner(image, size, *_):
        return image[: size[0], : size[1]]

    monkeypatch.setitem(transforms.TRAIN_CROPS, "corner", corner)
    monkeypatch.setitem(transforms.EVAL_CROPS, "corner", corner)
    options.update(crop="corner", eval_crop="corner", flip=False)
    source = NumberedSource(4)
    arguments = dict(num_classes=4, batch_size=4)
    for batch in (
        next(pipeline.train_batches(source, options, seed=0, **arguments)),
        next(iter(pipeline.eval_batches(source, options, **arguments))),
    ):
        for image, label in zip(batch["image"], batch["label"], strict=True):
            whole = transforms.decode(source.images[label])
            np.testing.assert_array_equal(image, whole[:16, :16])


def test_randaugment_changes_training_images_alone(options, image_folder):
    source = sources.open_dataset(str(image_folder)).source("train")

    def first(**settings):
        options.update(settings)
        arguments = dict(num_classes=3, batch_size=8)
        training = next(pipeline.train_batches(source, options, seed=0, **arguments))
        return training, next(iter(pipeline.eval_batches(source, options, **arguments)))

    plain, plain_test = first(randaugment=0)
    augmented, augmented_test = first(randaugment=2)
    again, _ = first(randaugment=2)
    weak, _ = first(randaugment_magnitude=1.0)
    assert (augmented["image"] != plain["image"]).any((1, 2, 3)).sum() >= 6
    assert (augmented["image"] != weak["image"]).any()
    np.testing.assert_array_equal(augmented["image"], again["image"])
    np.testing.assert_array_equal(augmented["label"], plain["label"])
    np.testing.assert_array_equal(augmented_test["image"], plain_test["image"])


def test_images_can_be_wider_than_high(options):
    options.image_size = (16, 40)
    source = NumberedSource(3)
    batch = next(iter(pipeline.eval_batches(source, options, num_classes=3, batch_size=3)))
    assert batch["image"].shape == (3, 16, 40, 3)


def test_a_damaged_image_is_named(tmp_path, options):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    source = sources.open_dataset(str(tmp_path)).source("train")
    with pytest.raises(ValueError, match=r"broken\.jpg: not a readable image"):
        next(pipeline.train_batches(source, options, num_classes=1, batch_size=1, seed=0))


def test_a_label_out_of_range_is_named(options):
    with pytest.raises(ValueError, match="label 2, but there are 2 classes"):
        next(iter(pipeline.eval_batches(NumberedSource(3), options, num_classes=2, batch_size=3)))


def test_a_name_is_a_folder_if_it_looks_like_a_path_or_exists(image_folder, monkeypatch):
    monkeypatch.chdir(image_folder.parent)
    monkeypatch.setenv("HOME", str(image_folder.parent))
    for name in (image_folder.name, f"./{image_folder.name}", f"~/{image_folder.name}"):
        assert sources.open_dataset(name).splits == {"train": 80}
    for name in ("./mnist", "~/mnist", "/mnist"):
        with pytest.raises(FileNotFoundError, match=f"no folder '{name}'"):
            sources.open_dataset(name)


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        sources.open_dataset(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="no images"):
        sources.open_dataset(str(tmp_path))


@pytest.mark.parametrize("split", ["train[", "train[:85]%", "tr ain", "train[a:]", "train[:200%]"])
def test_wrong_split_syntax_is_explained(split):
    with pytest.raises(ValueError, match="not a split: write one like"):
        splits.parse_split(split)


def test_unknown_split_lists_the_known(image_folder):
    with pytest.raises(ValueError, match=r"Unknown split 'test'.*train"):
        sources.open_dataset(str(image_folder)).source("test")


def test_real_photos(photos, options):
    options.image_size = 64
    dataset = sources.open_dataset(str(photos))
    assert dataset.class_names == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    source = dataset.source("train[85%:]")
    batches = list(pipeline.eval_batches(source, options, num_classes=5, batch_size=100))
    assert sum(b["mask"].sum() for b in batches) == len(source)
    deviation = (4317 * 0.15 * 0.85) ** 0.5  # of the binomial distribution
    assert abs(len(source) - 4317 * 0.15) < 3 * deviation


def test_threads_are_the_cpus_that_the_process_may_use(monkeypatch):
    process = host.Process(host=1, cpus=1, cpu_count=3)
    monkeypatch.setattr(host, "own_process", lambda: process)
    monkeypatch.setattr(host, "all_processes", lambda: (process,))
    monkeypatch.setattr(read_ahead.jax, "default_backend", lambda: "gpu")
    options = default().data
    assert read_ahead.read_options(options).num_threads == 3
    options.prefetch = 2  # Grain would use as many threads, and no more
    assert read_ahead.read_options(options).prefetch_buffer_size == 3
    options.threads, options.prefetch = 5, 9
    assert read_ahead.read_options(options).num_threads == 5
    assert read_ahead.read_options(options).prefetch_buffer_size == 9


def test_processes_share_the_cpus_that_both_may_use(monkeypatch):
    """Two processes share six CPUs; one beside them has two of its own, one is on another host."""
    shared, own, other = (host.Process(*x) for x in ((1, 1, 6), (1, 2, 2), (2, 1, 9)))
    monkeypatch.setattr(host, "all_processes", lambda: (shared, shared, own, other))
    monkeypatch.setattr(read_ahead.jax, "default_backend", lambda: "gpu")
    assert [read_ahead.threads_of_process(x) for x in (shared, own, other)] == [3, 2, 9]
    monkeypatch.setattr(read_ahead.jax, "default_backend", lambda: "cpu")  # which also trains
    assert [read_ahead.threads_of_process(x) for x in (shared, own, other)] == [2, 2, 2]
