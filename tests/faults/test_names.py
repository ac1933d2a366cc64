"""Names are bytes: those that aren't UTF-8, in two forms of Unicode, too long or full of marks."""

import codecs
import csv
import html.parser
import io
import json
import logging
import os
import pathlib
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from conftest import REPOSITORY, TINY, environment, random_checkpoint
from ml_collections import ConfigDict
from PIL import Image

from vit_jax import predict
from vit_jax.checkpoints.checkpoint import read_checkpoint, write_checkpoint
from vit_jax.cli import arguments, errors
from vit_jax.cli.environment import start_logging
from vit_jax.common import files
from vit_jax.common.messages import first_few
from vit_jax.common.names import as_unicode, class_name, printable, short_stem, to_json
from vit_jax.config.defaults import default
from vit_jax.data import checks
from vit_jax.data.__main__ import main as data_main
from vit_jax.data.folders import FolderDataset
from vit_jax.inference.exporter import export
from vit_jax.inference.program import _PROGRAM
from vit_jax.interpret.report import write_report
from vit_jax.jobs import compare
from vit_jax.jobs.evaluate import evaluate
from vit_jax.jobs.metric_writer import _keep_rows
from vit_jax.weights import catalogue, load, save
from vit_jax.weights.checked_json import parse_json

NFD = unicodedata.normalize("NFD", "naïve").encode()
FOLDERS = {  # as bytes, and the class's name
    b"caf\xe9": r"caf\xe9",
    "café".encode(): "café",
    NFD: "naïve",
    b"new\nline": "new\nline",
    b'tab\t"quote", $x_{$': 'tab\t"quote", $x_{$',
    b"|<b>&amp;\x1b[31m": "|<b>&amp;\x1b[31m",
    "花 ไทย".encode(): "花 ไทย",
    b"x" * 255: "x" * 255,
}
IMAGES = (b"b\xff\n<i>.png", b"y" * 251 + b".png", b'z\x1b[0m|,".png')
pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="other systems don't have names of any bytes"
)


def draw(path, colour):
    """Writes a PNG file of noise around a grey, at a path of bytes."""
    noise = np.random.default_rng(colour).normal(colour, 20, (16, 16, 3))
    with open(path, "wb") as file:
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(file, "PNG")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of eight classes, in a folder whose name isn't UTF-8."""
    root = os.fsencode(tmp_path_factory.mktemp("names")) + b"/photos\xe9\n|"
    for number, name in enumerate(FOLDERS):
        os.makedirs(os.path.join(root, name))
        for image in IMAGES:
            draw(os.path.join(root, name, image), 20 * number)
    return os.fsdecode(root)


@pytest.fixture(scope="module")
def checkpoint(folder):
    """A checkpoint of these classes."""
    names = FolderDataset(folder).class_names
    return random_checkpoint(num_classes=len(names), **TINY)._replace(class_names=names)


# ------------------------------------------------------------------------- the rule for names


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("花 ไทย é a b", "花 ไทย é a b"),
        ("caf\udce9", r"caf\xe9"),
        ("\ud83d", r"\ud83d"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x1b[31mred\x07\x9b", r"\x1b[31mred\x07\x9b"),
        ("a\u202eb\u2028c\ufeff", r"a\u202eb\u2028c\ufeff"),
        ("क\u094d\u200dष 👩\u200d🔬", "क\u094d\u200dष 👩\u200d🔬"),
        (pathlib.Path("a\nb"), r"a\nb"),
    ],
)
def test_what_cannot_be_shown_is_escaped(text, shown):
    assert printable(text) == shown
    printable(text).encode()


def test_lines_may_stay():
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"
    assert first_few(["a\nb", "c"]) == r"a\nb, c"


def test_json_has_no_lone_surrogates():
    value = {"a\udce9": ["\udce9\n", ("\ud83d", 1, None)], "é": "花\ud83d\ude00"}
    text = to_json(value)
    assert text.isascii()
    assert json.loads(text) == {
        r"a\xe9": ["\\xe9\n", [r"\ud83d", 1, None]],
        "é": "花\\ud83d\\ude00",
    }


def test_the_classes_of_a_folder(folder):
    assert FolderDataset(folder).class_names == tuple(sorted(FOLDERS.values()))


@pytest.mark.parametrize("splits", [("train", "test"), ("train", "train")])
def test_two_forms_of_unicode_are_one_class(tmp_path, splits):
    for form, split in zip(("NFC", "NFD"), splits, strict=True):
        name = unicodedata.normalize(form, "café")
        (tmp_path / split / name).mkdir(parents=True)
        draw(tmp_path / split / name / f"{form}.png", 9)
        (tmp_path / split / "tea").mkdir(exist_ok=True)
        draw(tmp_path / split / "tea" / f"{form}.png", 99)
    dataset = FolderDataset(tmp_path)
    assert dataset.class_names == ("café", "tea")
    assert sum(dataset.splits.values()) == 4
    assert checks.find_empty_classes(dataset, splits[1]) == []


@pytest.mark.parametrize("names", [(rb"caf\xe9", b"caf\xe9"), (rb"a\x1b", b"a\x1b")])
@pytest.mark.parametrize("splits", [("train", "test"), ("train", "train"), ("", "")])
def test_two_names_that_are_written_alike_are_refused(tmp_path, names, splits):
    for name, split in zip(names, splits, strict=True):
        folder = os.path.join(os.fsencode(tmp_path / split), name)
        os.makedirs(folder)
        draw(os.path.join(folder, b"1.png"), 9)
    with pytest.raises(ValueError, match=r"Two folders in .* are both written (caf\\xe9|a\\x1b), "):
        FolderDataset(tmp_path)


# --------------------------------------------------------------------- what is written is valid


def test_a_checkpoint_keeps_the_names(checkpoint, tmp_path):
    write_checkpoint(checkpoint, tmp_path / "a\n|<b>")
    assert read_checkpoint(tmp_path / "a\n|<b>").class_names == checkpoint.class_names
    metadata = next((tmp_path / "a\n|<b>" / "metadata").iterdir()).read_text("utf-8")
    assert json.loads(metadata)["class_names"] == list(checkpoint.class_names)


@pytest.mark.parametrize("format", ["timm", "hf"])
def test_formats_with_names_of_classes_keep_them(checkpoint, tmp_path, format):
    path = tmp_path / ("a" * 243 + ".safetensors" if format == "timm" else "b" * 255)
    save(checkpoint, path, format=format)
    assert load(path).class_names == checkpoint.class_names
    if format == "hf":
        config = json.loads((path / "config.json").read_text("utf-8"))
        assert list(config["label2id"]) == list(checkpoint.class_names)


def test_evaluation_writes_tables_that_can_be_read(folder, checkpoint, tmp_path):
    save(checkpoint, tmp_path / "saved", format="orbax")
    config = default()
    config.update(job="evaluate", init_from=str(tmp_path / "saved"), eval_batch_size=24)
    config.data.name = folder
    summary = evaluate(config, tmp_path / "run\n|")
    with open(summary["confusion_matrix"], newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file))
    shown = [printable(name, keep="\n\t") for name in checkpoint.class_names]
    assert header[1:] == [row[0] for row in rows] == shown
    assert sum(int(x) for row in rows for x in row[1:]) == 24
    table = (tmp_path / "run\n|" / "evaluation.md").read_text("utf-8").splitlines()
    assert len(table) == 3
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in table]
    assert cells == [cells[0]] * 3
    assert r"photos\xe9\n\|" in table[2]


class Elements(html.parser.HTMLParser):
    """The names of a page's elements, and its text."""

    def __init__(self, page):
        super().__init__()
        self.names, self.text = set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)

    def handle_data(self, data):
        self.text += data


def test_a_report_on_images_of_all_names(folder, checkpoint, tmp_path):
    found = arguments.find_images([folder])[:3]
    for name in "ab":
        (tmp_path / name).mkdir()
        draw(tmp_path / name / "same.png", 50)
        found.append(str(tmp_path / name / "same.png"))
    report = write_report(checkpoint, found, tmp_path / ("r" * 255), sample=1)
    assert not report.unreadable
    page = Elements(report.page.read_text("utf-8"))
    assert "i" not in page.names
    for name in (*map(os.fsdecode, IMAGES), *checkpoint.class_names):
        assert printable(name) in page.text
    pictures = sorted(path.name for path in report.page.parent.glob("00*-rollout.png"))
    assert len(pictures) == 5
    assert pictures[3:] == ["004-same-rollout.png", "005-same-rollout.png"]


@pytest.mark.parametrize("name", ["y" * 255, "花" * 85, "a\nb", "c\udce9"])
def test_the_names_of_pictures_are_short_enough(name):
    assert len(f"001-{short_stem(name)}-rollout.png".encode()) <= 255
    assert "\\" not in short_stem(name)


def test_a_figure_with_names_of_runs(tmp_path, recwarn):
    point = compare.Point(1.0, [0.5], 10)
    series = {"a $x_{$ 花\x1b": [point], "|<b>\n": [point], "^$_": [point]}
    compare.accuracy_against_compute(series, tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text("utf-8")
    assert "<!-- a $x_{$ 花" in text
    assert not recwarn.list


def test_runs_that_would_share_a_folder_are_refused(tmp_path):
    config = default()
    config.update(job="compare", total_steps=2)
    config.compare.runs = ConfigDict({"a b": {}, "a|b": {}})
    with pytest.raises(ValueError, match=r"'a b' and 'a\|b' would have the same folder, a_b:"):
        compare.compare(config, tmp_path)


def test_the_program_beside_an_export_shows_names_escaped():
    code = re.search(r"^def shown.*?\n\n\n", _PROGRAM.template, re.DOTALL | re.MULTILINE)[0]
    exec(code, defined := {})
    assert defined["shown"]("a\n\x1b[1m\udcff é") == r"a\n\x1b[1m\udcff é"


@pytest.mark.parametrize("name", ["x" * 251 + ".txt", "花" * 85])
def test_a_file_of_the_longest_name_is_replaced(tmp_path, name):
    with files.replacing(tmp_path / name) as partial:
        partial.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_place_for_checkpoints_must_be_unicode(tmp_path, checkpoint):
    path = os.path.join(tmp_path, "a\udcff")
    for write in (files.absolute, lambda path: export(checkpoint, path + ".stablehlo")):
        with pytest.raises(ValueError, match=r"a\\xff.* has bytes in its name that are not UTF-8"):
            write(path)
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------ commands


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "a.safetensors"
    save(checkpoint, path)
    return path


def test_predict_answers_for_all_names(folder, saved, monkeypatch, capsys):
    """As JSON, as CSV and as a table, of a list on stdin with a byte-order mark."""
    found = arguments.find_images([folder])[:6]
    listed = codecs.BOM_UTF8 + b"\0".join(map(os.fsencode, found))
    printed = {}
    for option in ("--json", "--csv", "--top=1"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed)))
        predict.main([str(saved), "-", option])
        printed[option] = capsys.readouterr().out
    lines = [json.loads(line) for line in printed["--json"].splitlines()]
    assert [line["image"] for line in lines] == list(map(as_unicode, found))
    rows = list(csv.DictReader(io.StringIO(printed["--csv"], newline="")))
    assert [row["image"] for row in rows[::3]] == [printable(x, keep="\n\t") for x in found]
    table = printed["--top=1"].splitlines()
    assert [line.startswith(printable(x)) for line, x in zip(table, found, strict=True)] == [1] * 6
    assert "\x1b" not in "".join(printed.values())


def test_predict_where_the_terminal_has_no_unicode(folder, saved):
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.predict", saved, folder, "--top=1"],
        cwd=REPOSITORY,
        env=environment() | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.decode("ascii").splitlines()) == 24
    assert rb"caf\xe9/b\xff\n<i>.png" in done.stdout


def test_check_counts_all_names(folder, capsys):
    with pytest.raises(SystemExit) as exit:
        data_main(["check", folder])
    assert exit.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    counts = [line for line in lines if line.startswith("class ")]
    assert counts == [f"class {printable(x)}: 3 in train" for x in sorted(FOLDERS.values())]


def test_unreadable_images_have_a_line_each(tmp_path, saved):
    names = [b"a\xff\nb.jpg", b"\x1b[31m.jpg"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"x")
    with pytest.raises(SystemExit) as exit:
        predict.main([str(saved), str(tmp_path)])
    first, *lines = exit.value.code.splitlines()
    assert first == "Skipped 2 of 2 images, which can't be read:"
    assert [line.split(": ")[0] for line in lines] == [
        f"{tmp_path}/{printable(os.fsdecode(name))}" for name in sorted(names)
    ]


def test_messages_do_not_speak_to_the_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    start_logging()
    logging.getLogger("vit_jax").info("%s\nsecond", "a\x1b[31m\udce9")
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)
    assert stream.getvalue() == "a\\x1b[31m\\xe9\nsecond\n"
    assert errors.describe_error(ValueError("a\x1b\nb")) == "ValueError: a\\x1b\nb"


# ---------------------------------------------------------------------------- byte-order marks


@pytest.mark.parametrize(
    "data",
    [
        "a é.jpg\nb.jpg\n".encode(),
        codecs.BOM_UTF8 + "a é.jpg\r\nb.jpg".encode(),
        codecs.BOM_UTF16_LE + "a é.jpg\r\nb.jpg\r\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "a é.jpg\nb.jpg\n".encode("utf-16-be"),
        "a é.jpg\0b.jpg\0".encode(),
    ],
)
def test_lists_on_stdin(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))
    assert arguments.find_images(["-"], arguments.names_on_stdin()) == ["a é.jpg", "b.jpg"]


def test_names_in_a_list_are_bytes(monkeypatch):
    data = b"a\xff.jpg\n\xef\xbb\xbfb\x1c\xe2\x80\xa8.jpg\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    found = arguments.find_images(["-"], arguments.names_on_stdin())
    assert os.fsencode(found[0]) == b"a\xff.jpg" and found[1].endswith("b\x1c\u2028.jpg")


def test_files_with_a_byte_order_mark(tmp_path, monkeypatch):
    table = REPOSITORY / "checkpoints" / "published.csv"
    (tmp_path / "checkpoints").mkdir()
    marked = tmp_path / "checkpoints" / "published.csv"
    marked.write_bytes(codecs.BOM_UTF8 + b"\n".join(table.read_bytes().splitlines()[:3]))
    published = catalogue.published()
    monkeypatch.setattr(catalogue, "REPOSITORY", tmp_path)
    assert list(catalogue.published().items()) == list(published.items())[:2]
    for text in ('\ufeff{"a": 1}', codecs.BOM_UTF8 + b'{"a": 1}'):
        assert parse_json(tmp_path, text) == {"a": 1}
    (tmp_path / "metrics.csv").write_bytes(codecs.BOM_UTF8 + b"step,loss\n1,2.5\n2,2.4\n")
    _keep_rows(tmp_path / "metrics.csv", 1, ["step", "loss"])
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,2.5\n"


def test_old_names_of_classes_are_compared_in_one_form():
    assert class_name(unicodedata.normalize("NFD", "café")) == class_name("café") == "café"
    assert class_name("caf\udce9") == r"caf\xe9"
