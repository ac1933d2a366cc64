"""What docs/fidelity.md names: its tests, files and keys exist, and each section has its rows."""

import ast
import re

import pytest
from conftest import REPOSITORY

from vit_jax.config.defaults import default
from vit_jax.config.keys import all_keys, type_problem

PAGE = (REPOSITORY / "docs" / "fidelity.md").read_text(encoding="utf-8")
COLUMNS = ["place", "the paper", "the authors' code", "this package", "test"]


def rows_of(page):
    """Returns {heading: cells of each row} of the tables with five columns."""
    found = {}
    for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        header, _, *rows = [[x.strip() for x in line.strip("|").split(" | ")] for line in lines]
        assert header == COLUMNS
        found[part.split()[0]] = rows
    return found


ROWS = [(name, *row) for name, rows in rows_of(PAGE).items() for row in rows]


def quoted(cell):
    return re.findall(r"`([^`]+)`", cell)


def problem_of_test(name):
    """Returns what is wrong with the name of a test, such as tests/a/test_b.py::test_c; else ""."""
    path, _, function = name.partition("::")
    if not (REPOSITORY / path).is_file():
        return f"there is no {path}"
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    names = {x.name for x in tree.body if isinstance(x, ast.FunctionDef)}
    return "" if function in names else f"{path} has no {function}"


def problem_of_key(text):
    """Returns what is wrong with a key or with key=value; else ""."""
    key, _, value = text.removeprefix("config.").partition("=")
    if key not in set(all_keys(default())):
        return f"there is no {key}"
    return type_problem(key, ast.literal_eval(value)) if value else ""


def test_sections_3_4_b_and_d_have_rows():
    count = {name: len(rows) for name, rows in rows_of(PAGE).items()}
    assert list(count) == ["3", "4", "B", "D"]
    assert min(count.values()) >= 15
    places = " ".join(row[1] for row in ROWS)
    sections = [f"3.{i}" for i in (1, 2)] + [f"4.{i}" for i in range(1, 7)]
    sections += ["B.1", "B.1.1", "B.1.2"] + [f"D.{i}" for i in range(1, 11)]
    sections += [f"Table {i}" for i in (1, 2, 3, 4, 6)]
    assert [x for x in sections if not re.search(rf"(?<![\w.]){re.escape(x)}\b", places)] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[1]}, {row[2][:30]}")
def test_what_a_row_names_is_there(row):
    section, place, paper, authors, ours, tests = row
    assert place.startswith(section)
    assert paper and authors and ours
    for name in quoted(tests):
        assert problem_of_test(name) == ""
    if not quoted(tests):  # only what isn't here has no test
        assert "**Differs:** not here" in ours and tests == "–"
    for text in quoted(ours):
        if text.startswith("config."):
            assert problem_of_key(text) == ""
        elif re.fullmatch(r"[\w/]+\.py|[\w]+/", text):
            folders = (REPOSITORY, REPOSITORY / "vit_jax")
            assert any((folder / text).exists() for folder in folders), text


def test_names_that_are_not_there_are_found():
    here = "tests/repository/test_fidelity.py"
    assert problem_of_test(f"{here}::test_names_that_are_not_there_are_found") == ""
    assert problem_of_test(f"{here}::test_another") == f"{here} has no test_another"
    assert problem_of_test("tests/none.py::test_x") == "there is no tests/none.py"
    assert problem_of_key("config.optim.lr=0.01") == problem_of_key("config.model.pool") == ""
    assert problem_of_key("config.optim.rate") == "there is no optim.rate"
    assert problem_of_key('config.optim.lr="fast"')
