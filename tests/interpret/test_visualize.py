"""The report of what a model sees, for each kind of model."""

import base64
import html.parser
import pathlib
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY, random_checkpoint
from PIL import Image

from vit_jax.inference.classifier import Classifier, read_image, view_image
from vit_jax.interpret import figures
from vit_jax.interpret.attention import attention_maps, rollout
from vit_jax.interpret.report import write_report

FLOWERS = sorted(map(str, (REPOSITORY / "docs" / "flowers").glob("*.png")))
SIZES = dict(width=24, mlp_dim=32, num_heads=2, depth=4)
KINDS = {
    "token": ("Ti/16", SIZES),
    "relative, no head": ("Ti/16", SIZES | dict(positions="relative")),
    "hybrid": ("R50+B/16", SIZES | dict(stem=(1,), patch_size=2)),
    "axial": ("Axial-B/16", SIZES),
    "resnet": ("R50x1", dict(layers=(1, 1))),
}


def checkpoint(kind, num_classes=3):
    variant, attributes = KINDS[kind]
    return random_checkpoint(variant, num_classes, **attributes)


class Reader(html.parser.HTMLParser):
    """Collects the text of a page and what it loads."""

    def __init__(self, page):
        super().__init__()
        self.loaded, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.loaded += [value for name, value in attributes if name in ("src", "href", "data")]

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow if kind in ("hybrid", "axial") else ())
        for kind in KINDS
    ],
)
def test_the_report_holds_what_applies_to_the_model(tmp_path, kind):
    found = checkpoint(kind, num_classes=0 if "no head" in kind else 3)
    page, images, unreadable = write_report(found, FLOWERS[:2], tmp_path / "report")
    assert (images, unreadable) == (2, ())
    assert page == tmp_path / "report" / "index.html"
    pictures = {path.name for path in page.parent.glob("*.png")}
    expected = {"filters.png"}
    if kind == "resnet":
        expected |= {"001-daisy-class.png", "002-dandelion-class.png"}
    else:
        expected |= {
            f"{stem}-{which}.png"
            for stem in ("001-daisy", "002-dandelion")
            for which in ("rollout", "heads")
        }
        expected.add("distances.png")
        if "relative" not in kind:
            expected.add("positions.png")
    assert pictures == expected
    read = Reader(page.read_text())
    assert not re.search(r"<(\w+)[^>]*>\s*</\1>|<br></", page.read_text())  # an empty element
    assert len(read.loaded) == len(expected)
    inside = {base64.b64decode(x.removeprefix("data:image/png;base64,")) for x in read.loaded}
    assert inside == {(page.parent / name).read_bytes() for name in pictures}
    assert ("a <b>" in read.text) == ("no head" not in kind)
    if found.num_classes:
        for predictions in Classifier(found).predict(FLOWERS[:2], top=3):
            words = [f"{p.label} {100 * p.probability:.1f} %" for p in predictions]
            assert ", ".join(words) in read.text
    assert "daisy.png" in read.text and "a/checkpoint" in read.text
    if kind != "resnet":
        assert re.search(r"figures 6 and 14.*appendix D\.8", read.text)
        assert re.search(r"over 2 images of 32 x 48 pixels \(figures 7 right and 11", read.text)
    assert ("figure 7 centre" in read.text) == ("positions.png" in expected)
    for name in pictures:
        with Image.open(page.parent / name) as image:
            assert np.asarray(image.convert("RGB")).std() > 5  # something is drawn


def test_the_rollout_picture_is_the_photo_beside_its_rollout(tmp_path):
    found = checkpoint("token")
    write_report(found, FLOWERS[:1], tmp_path)
    picture = np.asarray(Image.open(tmp_path / "001-daisy-rollout.png"))
    height, width = 288, 432
    assert picture.shape == (height, 2 * width + 8, 3)
    image = read_image(FLOWERS[0])
    photo = view_image(image, found, (height, width))
    np.testing.assert_array_equal(picture[:, :width], photo)
    view = view_image(image, found)[None]
    weights = attention_maps(found.model(), found.params, view)
    contributions = np.asarray(rollout(weights, (2, 3)))[0]
    np.testing.assert_allclose(
        picture[:, -width:].astype(int), figures.overlay(photo, contributions), atol=1
    )


def test_the_photo_stands_beside_its_head_maps_in_the_picture_and_on_the_page(tmp_path):
    found = checkpoint("token")
    page = write_report(found, FLOWERS[:2], tmp_path, layers=[1, 4]).page.read_text()
    picture = np.asarray(Image.open(tmp_path / "001-daisy-heads.png").convert("RGB"))
    image = read_image(FLOWERS[0])
    places = []  # where a photo of some size fits best, and how well
    for height in range(100, 200, 2):
        photo = view_image(image, found, (height, 3 * height // 2))
        likeness = cv2.matchTemplate(picture, photo, cv2.TM_CCOEFF_NORMED)
        _, best, _, (left, _) = cv2.minMaxLoc(likeness)
        places.append((best, left + photo.shape[1]))
    best, right = max(places)
    assert best > 0.95 and right < 0.6 * picture.shape[1]
    figures_ = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    for name, figure in zip(("daisy", "dandelion"), figures_, strict=False):
        shown = re.findall(r'alt="([^"]*)"', figure)
        assert shown == [f"{name}.png: rollout", f"{name}.png: heads"]


def test_damaged_images_are_left_out_and_named(tmp_path):
    words, cut = tmp_path / "words.jpg", tmp_path / "cut.png"
    words.write_text("no image")
    cut.write_bytes((REPOSITORY / "docs" / "flowers" / "rose.png").read_bytes()[:900])
    paths = [str(words), FLOWERS[0], str(cut), FLOWERS[1], "gone.jpg"]
    out = tmp_path / "out"
    report = write_report(checkpoint("token"), paths, out, shown=4, sample=9)
    assert report.images == 5 and len(report.unreadable) == 3
    for path, reason in zip((words, cut, "gone.jpg"), report.unreadable, strict=True):
        assert reason.startswith(f"{path}: ")
    shown = sorted(path.name for path in out.glob("*-heads.png"))
    assert shown == ["001-daisy-heads.png", "002-dandelion-heads.png"]
    assert "over 2 images" in report.page.read_text()
    report = write_report(checkpoint("token"), paths[:2], tmp_path / "one", sample=1)
    assert "Mean attention distance" not in report.page.read_text()
    with pytest.raises(ValueError, match=r"(?s)None of the images to show.*words\.jpg.*cut\.png"):
        write_report(checkpoint("token"), [str(words), str(cut)], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_folders_named_like_classes_are_the_true_classes(tmp_path):
    found = checkpoint("token")
    paths = []
    for folder, flower in (("b", 0), ("b", 1), ("c", 2), ("d", 3), ("a <b>", 4)):
        (tmp_path / folder).mkdir(exist_ok=True)
        paths.append(str(shutil.copy(FLOWERS[flower], tmp_path / folder)))
    page = write_report(found, paths, tmp_path / "out").page.read_text()
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)[: len(paths)]
    answers = [answer[0].label for answer in Classifier(found).predict(paths)]
    folders = [pathlib.Path(path).parent.name for path in paths]
    right = [answer == folder for answer, folder in zip(answers, folders, strict=True)]
    for caption, folder, is_right in zip(captions, folders, right, strict=True):
        verdict = f"{'Right' if is_right else 'Wrong'}: the true class is {folder}."
        expected = "Its folder, d, is no class of the model." if folder == "d" else verdict
        assert html.unescape(caption).endswith(f" %. {expected}")
    assert 0 < sum(right) < 4
    assert f"Right predictions: {sum(right)} of the 4 images whose folder is a class" in page

    page = write_report(found, FLOWERS, tmp_path / "flowers").page.read_text()
    assert "older" not in page and "true class" not in page  # "flowers" is no class


def test_the_overlay_is_brightest_where_the_map_is_largest():
    values = np.zeros((4, 6))
    values[1, 4] = 3.0
    found = figures.overlay(np.full((40, 60, 3), 100, np.uint8), values).sum(-1)
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert 10 <= row < 20 and 40 <= column < 50
    even = figures.overlay(np.full((40, 60, 3), 100, np.uint8), np.ones((4, 6)))
    assert (even == even[0, 0]).all()


def test_only_some_of_many_images_are_shown(tmp_path):
    write_report(checkpoint("token"), FLOWERS * 4, tmp_path, shown=4, sample=3, layers=[2])
    shown = sorted(path.name for path in tmp_path.glob("*-heads.png"))
    assert shown == [f"00{i}-daisy-heads.png" for i in (1, 2, 3, 4)]  # every fifth
    assert "over 3 images" in (tmp_path / "index.html").read_text()


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vit_jax.visualize", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_command_prints_where_the_page_is(tmp_path):
    out = f"--out={tmp_path / 'out'}"
    done = run("checkpoints/quickstart", "docs/flowers", out, "--layers=1,4")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out' / 'index.html'}\n"
    assert "rose 99." in (tmp_path / "out" / "index.html").read_text()
    done = run("checkpoints/quickstart", "docs/flowers", "README.md", out)
    assert done.returncode == 1
    assert done.stdout == f"{tmp_path / 'out' / 'index.html'}\n"
    assert done.stderr.startswith("Skipped 1 of 6 images, which can't be read:\nREADME.md: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["docs/flowers", "--layers=5"], "There is no layer 5: the model has layers 1 to 4"),
        (["README.md"], "README.md: not a readable image"),
    ],
)
def test_errors_come_before_anything_is_drawn(tmp_path, arguments, message):
    done = run("checkpoints/quickstart", *arguments, f"--out={tmp_path / 'out'}")
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
