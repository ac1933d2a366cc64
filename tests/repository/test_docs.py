"""The documents tell the truth: quotations, examples, links, commands, numbers and the notebook."""

import ast
import importlib.util
import re
import shlex
import subprocess

import nbformat
import numpy as np
import pytest
from conftest import REPOSITORY

import vit_jax
from vit_jax.config.defaults import default

DOCS = REPOSITORY / "docs"
ENGLISH, CHINESE = DOCS / "walkthrough.md", DOCS / "walkthrough.zh.md"
README = REPOSITORY / "README.md"
PAGES = [
    README,
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "CHANGELOG.md",
    REPOSITORY / "benchmarks" / "README.md",
    REPOSITORY / "checkpoints" / "README.md",
    *sorted(DOCS.glob("*.md")),
]
NOTEBOOK = DOCS / "flowers.ipynb"

# The visible link to the file, where there is one, the comment that marks the block, the block.
BLOCK = re.compile(
    r"(?:^\[`(?P<shown>[^`\n]+)`\]\((?P<link>[^)\n]*)\)\n\n)?"
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def name_of(page):
    return page.relative_to(REPOSITORY).as_posix()


def blocks(page, language):
    return [m for m in BLOCK.finditer(page.read_text("utf-8")) if m["language"] == language]


def prose(page):
    """The text of a page without its blocks of code."""
    return BLOCK.sub("", page.read_text("utf-8"))


# --------------------------------------------------------------------------------- quoted code


@pytest.fixture(scope="module")
def quote():
    """The script docs/quote.py, as a module."""
    spec = importlib.util.spec_from_file_location("quote", DOCS / "quote.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quotations_are_as_the_source_has_them(quote):
    assert quote.main(check=True) == 0, "run python docs/quote.py"
    quoted = [m for m in blocks(ENGLISH, "python") if (m["mark"] or "").startswith("from ")]
    assert len(quoted) > 15
    for block in quoted:
        name = re.fullmatch(r"from (\S+): \S+", block["mark"])[1]
        seen = block["shown"], block["link"]
        assert seen == (name, f"../{name}"), "the reader sees another file's name"


def test_a_stale_quotation_is_found_and_filled_in(quote, monkeypatch, tmp_path, capsys):
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(quote, "REPOSITORY", tmp_path)
    monkeypatch.setattr(quote, "DOCS", tmp_path / "docs")
    source = """
TABLE = {
    "a": 1,  # with its comment
}

class Moon:
    '''A class.'''

    size = 3

    @property
    def area(self):
        '''Says much

        in several lines.
        '''
        return 4 * self.size
"""
    (tmp_path / "moon.py").write_text(source)
    page = tmp_path / "docs" / "page.md"
    names = ("TABLE", "Moon", "Moon.area")
    mark = "<!-- from moon.py: {} -->\n```python\n{}```\n"
    page.write_text("".join(mark.format(name, "stale = True\n") for name in names))
    assert quote.main(check=True) == 1 and "page.md" in capsys.readouterr().err
    assert "stale" in page.read_text()  # --check writes nothing
    assert quote.main(check=False) == 0 and quote.main(check=True) == 0
    area = "@property\ndef area(self):\n    return 4 * self.size\n"
    moon = "class Moon:\n    size = 3\n\n" + "".join(f"    {x}\n" for x in area.splitlines())
    code = ('TABLE = {\n    "a": 1,  # with its comment\n}\n', moon, area)
    assert page.read_text() == "".join(map(mark.format, names, code))
    (tmp_path / "moon.py").write_text(source.replace("4 *", "5 *"))
    assert quote.main(check=True) == 1
    page.write_text(mark.format("Moon.volume", ""))
    with pytest.raises(LookupError, match=r"There is no Moon.volume in moon.py"):
        quote.main(check=True)


# -------------------------------------------------------------------------------------- examples


def test_python_is_either_quoted_or_run():
    for page in (ENGLISH, CHINESE):
        for block in blocks(page, "python"):
            assert re.fullmatch(r"run|from \S+\.py: [\w.]+", block["mark"] or ""), block["text"]


@pytest.mark.slow
def test_the_walkthroughs_session_runs(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    snippets = [m["text"] for m in blocks(ENGLISH, "python") if m["mark"] == "run"]
    assert sum(snippet.count("assert ") for snippet in snippets) > 20
    namespace = {}
    for snippet in snippets:
        exec(compile(snippet, ENGLISH.name, "exec"), namespace)
    # What the text says of the last: the NumPy functions alone gave the model's answer.
    assert namespace["checkpoint"].class_names[int(np.argmax(namespace["probabilities"]))] == "rose"


@pytest.fixture
def run_examples(monkeypatch, tmp_path):
    """Runs the Python of a page; returns its variables. What it writes is not in the repository."""
    for name in ("checkpoints", "configs", "docs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)

    def run(page):
        namespace = {}
        for block in blocks(page, "python"):
            exec(compile(block["text"], name_of(page), "exec"), namespace)
        return namespace

    return run


def test_examples_of_the_readme_run(run_examples):
    found = run_examples(README)
    assert found["best"].label == "rose" and found["best"].probability > 0.99


@pytest.mark.slow
def test_examples_of_the_api_run(run_examples):
    found = run_examples(DOCS / "python.md")
    assert found["logits"].shape == (1, 10)
    assert found["features"].pooled.shape == (2, 96)
    assert found["features"].tokens[4].shape == (2, 37, 96)
    assert found["larger"].image_shape == (96, 96)
    assert found["summary"]["test_accuracy"] == 1 and found["best"].label == "dark"
    assert np.mean(found["losses"][-20:]) < np.mean(found["losses"][:20]) - 0.1
    assert found["params"]["head"]["kernel"].shape == (96, 5)
    assert found["flops"] == pytest.approx(1.11e11, rel=0.005)
    vit_jax.load("smaller.npz")


def test_all_other_python_is_in_the_walkthrough():
    known = {README, DOCS / "python.md", ENGLISH, CHINESE}
    assert not [page for page in PAGES if page not in known and blocks(page, "python")]


def test_every_name_of_the_api_is_in_the_documents():
    text = (DOCS / "python.md").read_text("utf-8")
    for name in (
        "build",
        "VARIANTS",
        "load",
        "adapt",
        "save",
        "Classifier",
        "fit",
        "default_config",
    ):
        assert f"`{name}" in text and hasattr(vit_jax, name)
    for name in ("train", "evaluate"):
        assert f"`{name}(" in text and callable(getattr(vit_jax, name))


# ------------------------------------------------------------------------------- two languages


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


# ---------------------------------------------------------------- links, numbers, commands


def anchors(page):
    """The fragments that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_are_there(page):
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
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


def test_the_map_names_every_file():
    text = (DOCS / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"\b[a-z0-9_]+\.py\b", text))
    package = REPOSITORY / "vit_jax"
    there = {path.name for path in package.rglob("*.py")} - {"__init__.py"}
    assert there <= named, f"not on the map: {sorted(there - named)}"
    assert named <= there | {"utils.py", "test_architecture.py", "__init__.py"}
    for room, files in re.findall(r"^ +([a-z]+)/ (.*\n(?: {20}.*\n)*)", text, re.MULTILINE):
        for name in re.findall(r"\b[a-z0-9_]+\.py\b", files):
            assert list(package.rglob(f"{room}/{name}")), f"{room} has no {name}"


def test_readme_is_short():
    assert README.stat().st_size <= 8192


def test_accuracies_are_those_of_the_study():
    known = (DOCS / "experiments.md").read_text("utf-8")
    rows = [row for row in prose(ENGLISH).splitlines() if "±" in row]
    assert len(rows) == 3
    assert all(row in known for row in rows)


def commands(page):
    """The commands of a page, as words: those of its blocks, and those between backticks."""
    text = "".join(block["text"] for block in blocks(page, "bash")).replace("\\\n", " ")
    lines = text.replace("&&", "\n").splitlines()
    lines += re.findall(r"`((?:python|make) [^`]+)`", " ".join(prose(page).split()))
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            found.append(words)
    return found


def test_all_commands_are_documented_somewhere():
    shown = {words[2] for page in PAGES for words in commands(page) if words[1:2] == ["-m"]}
    names = [path.stem for path in (REPOSITORY / "vit_jax").glob("[!_]*.py")]
    assert len(names) > 7
    assert {f"vit_jax.{name}" for name in names} | {"vit_jax.data"} <= shown
    benchmarks = (REPOSITORY / "benchmarks").glob("[!_]*.py")
    known = "machine"  # which the others share
    assert {f"benchmarks.{path.stem}" for path in benchmarks if path.stem != known} <= shown


@pytest.fixture(scope="module")
def sources():
    """The text of all the code of commands."""
    return "".join(
        path.read_text("utf-8")
        for folder in ("vit_jax", "benchmarks")
        for path in (REPOSITORY / folder).rglob("*.py")
    )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_what_there_is(page, sources):
    exports = re.findall(r"vit_jax\.export \S+ (\S+)\.", page.read_text("utf-8"))
    for words in commands(page):
        program = words[1].removesuffix(".py") if len(words) > 1 else ""
        if words[0] != "python" or program not in exports:  # `export` writes such a program
            check_command(words, sources)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_have_no_comments(page):
    """A comment is an argument in zsh, the shell of macOS."""
    lines = "".join(block["text"] for block in blocks(page, "bash")).splitlines()
    assert not [line for line in lines if re.search(r"(^|\s)#", line)]


def test_the_quickstart_ends_with_commands_that_can_be_pasted(tmp_path, sources):
    """Where `python` does nothing, `make quickstart` prints the end alone."""
    (tmp_path / "python").symlink_to("/bin/true")
    make = ["make", "-s", "quickstart", f"BIN={tmp_path}", "-o", ".venv/installed"]
    done = subprocess.run(make, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    first, *lines = [line for line in done.stdout.splitlines() if line.startswith(("s", "python"))]
    assert first == "source .venv/bin/activate" and "Next" in done.stdout
    readme = README.read_text("utf-8")
    for line, command in zip(lines, ("predict", "visualize", "main"), strict=True):
        words = shlex.split(line)
        assert words[2] == f"vit_jax.{command}"
        check_command(words, sources)
        for word in words[3:]:  # what the commands read is there by then
            made = word in ("runs/quickstart", "--workdir=runs/photos", "--out=runs/report")
            assert made or word.startswith("--config=") or (REPOSITORY / word).exists(), word
        if command != "main":
            assert line.replace("runs/quickstart", "checkpoints/quickstart") in readme
    assert "--workdir=runs/quickstart" in readme


def check_command(words, sources):
    """Asserts that a command's target, program, files, keys and flags exist."""
    targets = re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    if words[0] == "make":
        assert words[1] in targets, words
    elif words[:2] == ["python", "-m"]:
        known = words[2] in ("pip", "venv", "pytest") or importlib.util.find_spec(words[2])
        assert known, words
        for word in words[3:]:
            check_argument(word, sources)
    elif words[0] == "python":
        assert (REPOSITORY / words[1]).is_file(), words


def check_argument(word, sources):
    """Asserts that the file or key of a configuration, or the flag, exists."""
    if word.startswith("--config="):
        name = word.removeprefix("--config=").partition(":")[0]
        assert name == "FILE" or (REPOSITORY / name).is_file(), word
    elif word.startswith("--config."):
        where = default()
        for part in word.removeprefix("--config.").partition("=")[0].split("."):
            assert part in where, word
            where = where[part]
    elif word.startswith("--"):
        flag = word[2:].partition("=")[0]
        assert f'"--{flag}"' in sources or re.search(rf'(DEFINE_\w+|Flag)\(\s*"{flag}"', sources), (
            word
        )


def test_shown_predictions_are_the_models(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    (shown,) = blocks(ENGLISH, "text")
    lines = [re.split(r"  +", line) for line in shown["text"].splitlines()]
    assert len(lines) == 5
    classifier = vit_jax.Classifier("checkpoints/quickstart")
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


def test_notebook_imports_what_there_is(code_cells):
    found = [
        node
        for cell in code_cells
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("vit_jax")
    ]
    assert len(found) > 5
    for node in found:
        exec(ast.unparse(node))


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
