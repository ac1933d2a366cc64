"""The documents tell the truth: quotations, snippets, links, commands, numbers and the notebook."""

import ast
import importlib.util
import re
import shlex
import textwrap

import nbformat
import numpy as np
import pytest
from conftest import REPOSITORY

from vit_jax.config.defaults import default
from vit_jax.inference.classifier import Classifier

DOCS = REPOSITORY / "docs"
ENGLISH, CHINESE = DOCS / "walkthrough.md", DOCS / "walkthrough.zh.md"
README = REPOSITORY / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
NOTEBOOK = DOCS / "flowers.ipynb"

# The visible link to the file, where there is one, the comment that marks the block, the block.
BLOCK = re.compile(
    r"(?:^\[`(?P<shown>[^`\n]+)`\]\((?P<link>[^)\n]*)\)\n\n)?"
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def blocks(page, language):
    return [m for m in BLOCK.finditer(page.read_text("utf-8")) if m["language"] == language]


def prose(page):
    """The text of a page without its blocks of code."""
    return BLOCK.sub("", page.read_text("utf-8"))


def missing_part(quotation, source):
    """The first part of a quotation, between lines `...`, that isn't in the source where it should
    be, after the part before; None for a true quotation. Indentation counts within a part."""
    lines, at = source.splitlines(), 0
    for part in re.split(r"^\.\.\.\n", quotation, flags=re.MULTILINE):
        wanted = textwrap.dedent(part).splitlines()
        for start in range(at, len(lines) - len(wanted) + 1):
            found = textwrap.dedent("\n".join(lines[start : start + len(wanted)]))
            if found.splitlines() == wanted:
                at = start + len(wanted)
                break
        else:
            return part
    return None


def quotations(page):
    return [m for m in blocks(page, "python") if (m["mark"] or "").startswith("from ")]


def test_python_is_either_quoted_or_run():
    for page in (ENGLISH, CHINESE):
        for block in blocks(page, "python"):
            assert re.fullmatch(r"run|from \S+\.py", block["mark"] or ""), block["text"]


def test_quotations_are_in_the_files_they_name():
    assert len(quotations(ENGLISH)) > 20
    for block in quotations(ENGLISH):
        name = block["mark"].removeprefix("from ")
        seen = block["shown"], block["link"]
        assert seen == (name, f"../{name}"), "the reader sees another file's name"
        part = missing_part(block["text"], (REPOSITORY / name).read_text("utf-8"))
        assert part is None, f"{name} has no such lines:\n{part}"


@pytest.mark.parametrize(
    ("quotation", "true"),
    [
        ("    b = 1\n    c = 2\n", True),
        ("b = 1\nc = 2\n", True),  # indented otherwise as a whole
        ("a:\n...\nd\n", True),
        ("d\n...\na:\n", False),  # in another order
        ("a:\n    c = 2\n", False),  # a line left out in silence
        ("a:\nb = 1\n", False),  # indented otherwise within
        ("    b = 2\n", False),
    ],
)
def test_a_changed_line_would_be_found(quotation, true):
    source = "a:\n    b = 1\n    c = 2\nd\n"
    assert (missing_part(quotation, source) is None) == true


def test_snippets_run_one_after_the_other(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    snippets = [m["text"] for m in blocks(ENGLISH, "python") if m["mark"] == "run"]
    assert sum(snippet.count("assert ") for snippet in snippets) > 20
    namespace = {}
    for snippet in snippets:
        exec(compile(snippet, ENGLISH.name, "exec"), namespace)
    # What the text says of the last: the NumPy functions alone gave the model's answer.
    assert namespace["checkpoint"].class_names[int(np.argmax(namespace["probabilities"]))] == "rose"


@pytest.mark.parametrize(
    ("pattern", "least"),
    [
        (r"^\$\$ .* \$\$$", 8),  # equations
        (r"(?<=\]\()(?!https|#|walkthrough)[^)\s]+(?=\))", 30),  # pictures and files
        (r"^#+(?= )", 20),  # headings
        (r"\d[\d.,]* ± \d[\d.]* %", 9),  # accuracies
    ],
)
def test_both_languages_show_the_same(pattern, least):
    english, chinese = (re.findall(pattern, prose(p), re.MULTILINE) for p in (ENGLISH, CHINESE))
    assert len(english) >= least
    assert english == chinese


def test_both_languages_have_the_same_code():
    english, chinese = (
        [m[0] for m in BLOCK.finditer(p.read_text("utf-8"))] for p in (ENGLISH, CHINESE)
    )
    assert len(english) > 40
    assert english == chinese


def test_equations_are_what_github_can_show():
    """It takes a backslash before punctuation for an escape of Markdown's, and drops it."""
    for page in (ENGLISH, CHINESE):
        text = prose(page)
        equations = re.findall(r"^\$\$ (.*) \$\$$", text, re.MULTILINE)
        assert [int(re.search(r"\\qquad \((\d)\)$", e)[1]) for e in equations] == [
            1,
            2,
            3,
            5,
            6,
            7,
            8,
            4,
        ]
        for equation in equations:
            assert not re.search(r"\\[^a-zA-Z]", equation)
            assert equation.count("{") == equation.count("}")
        assert text.count("$") == 4 * len(equations), "mathematics outside of $$ … $$ lines"


# ------------------------------------------------------------------------------- links, numbers


def anchors(page):
    """The fragments that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    assert links
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert not path.startswith("/") and REPOSITORY in target.parents, f"{link} leads outside"
        assert target.exists(), f"{link} leads nowhere"
        if fragment:
            assert fragment in anchors(target), f"{link}: no such heading"


def test_every_picture_says_what_it_shows():
    for page in PAGES:
        assert all(len(text) > 10 for text in re.findall(r"!\[([^\]]*)\]", prose(page)))


def test_accuracies_are_those_of_the_readme():
    known = README.read_text("utf-8")
    rows = [row for row in prose(ENGLISH).splitlines() if "±" in row]
    assert len(rows) == 3
    assert all(row in known for row in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_what_there_is(page):
    text = "".join(block["text"] for block in blocks(page, "bash")).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in text.splitlines()]
    commands = [words for words in commands if words[:2] == ["python", "-m"]]
    assert commands
    known = default()
    for words in commands:
        assert words[2] == "pip" or importlib.util.find_spec(words[2]), words
        for word in words[3:]:
            if word.startswith("--config="):
                name = word.removeprefix("--config=").partition(":")[0]
                assert (REPOSITORY / name).is_file(), word
            elif word.startswith("--config."):
                key = word.removeprefix("--config.").partition("=")[0]
                where = known
                for part in key.split("."):
                    assert part in where, word
                    where = where[part]


def test_shown_predictions_are_the_models(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    (shown,) = blocks(ENGLISH, "text")
    lines = [re.split(r"  +", line) for line in shown["text"].splitlines()]
    assert len(lines) == 5
    classifier = Classifier.restore("checkpoints/quickstart")
    answers = classifier.predict([line[0] for line in lines], top=2)
    for (path, *texts), predictions in zip(lines, answers, strict=True):
        label, percent, _ = texts[0].split(" ")
        assert label == predictions[0].label, path
        for text, prediction in zip(texts, predictions, strict=True):
            percent = float(text.split(" ")[1])
            assert percent == pytest.approx(100 * prediction.probability, abs=0.5), path


# --------------------------------------------------------------------------------- the notebook


@pytest.fixture(scope="module")
def notebook():
    assert NOTEBOOK.stat().st_size < 1.5e6
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


@pytest.fixture(scope="module")
def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cells):
    """What cells printed, and the text and HTML of what they showed."""
    for output in (output for cell in cells for output in cell.outputs):
        yield output.get("text", "")
        yield from (x for kind, x in output.get("data", {}).items() if kind.startswith("text/"))


def test_notebook_was_run_from_top_to_bottom(notebook, code_cells):
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.execution_count for cell in code_cells] == list(range(1, len(code_cells) + 1))
    for output in (output for cell in code_cells for output in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text


def test_notebook_is_python_that_parses(code_cells):
    names = {
        alias.name
        for cell in code_cells
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.ImportFrom) and node.module == "vit_jax"
        for alias in node.names
    }
    assert {"data", "interpret", "models", "train"} <= names
    assert all(importlib.util.find_spec(f"vit_jax.{name}") for name in names)


def test_notebook_has_its_sections(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^## \d\. (.*)$", text, re.MULTILINE)
    assert headings == [
        "The data",
        "Patches",
        "The model",
        "Training",
        "Results",
        "Attention maps",
        "Beside the shipped checkpoint",
    ]


def test_notebook_learned_and_shows_it(code_cells):
    printed = "\n".join(texts(code_cells))
    accuracies = [float(x) for x in re.findall(r"test accuracy (\d+\.\d)%", printed)]
    assert accuracies and min(accuracies) > 75
    pictures = [o for cell in code_cells for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 8


def test_notebook_is_the_same_wherever_and_whenever_it_is_run(notebook, code_cells):
    for text in texts(code_cells):
        assert not re.search(r"(?<!\w)/(home|root|work|tmp|Users|var)\b", text), text
        assert not re.search(r"\b20\d\d-\d\d-\d\d\b|\b\d\d:\d\d:\d\d\b", text), text
        assert "\r" not in text, "a progress bar"
    hint = "run it with --ExecutePreprocessor.record_timing=False"
    assert not any("execution" in cell.metadata for cell in notebook.cells), hint
