"""docs/troubleshooting.md and the messages of the code: neither has one that the other lacks.

Both directions read string literals, and nothing else of the code. A message that is put together
from a list of parts is not seen by the second direction; the page may have it all the same.
"""

import ast
import functools
import re

import pytest
from conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "troubleshooting.md"
HEADER = ["what you see", "why", "what to do"]
GAP = "\0"  # stands for a value within a message
SAYS = ("sys.exit", "parser.error", "logger.warning", "logger.error", "warnings.warn")


def literal(node):
    """The text of a string, an f-string or a sum of them, with a GAP for each value."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%[-+.\d]*[a-z]", GAP, text)
        case ast.JoinedStr(values=values):
            return "".join(literal(value) for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return literal(left) + literal(right)
    return GAP


def literals(tree):
    """All texts of a file of Python, joined where they are written as a sum."""
    return [plain(literal(node)) for node in ast.walk(tree) if isinstance(node, ast.expr)]


def messages(source):
    """The (line, text) of each message of four words or more that is written where it is raised,
    warned of or printed on the way out."""
    for node in ast.walk(ast.parse(source)):
        raised = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        call = node.exc if raised else node
        if not raised and not (isinstance(call, ast.Call) and ast.unparse(call.func) in SAYS):
            continue
        for argument in call.args:
            choices = (argument.body, argument.orelse) if isinstance(argument, ast.IfExp) else ()
            for text in map(literal, choices or [argument]):
                if len(words(text)) >= 4:
                    yield node.lineno, plain(text)


def plain(text):
    """One line, without the marks of code."""
    return " ".join(text.replace("`", "").split())


def words(text):
    return re.findall(r"[A-Za-z][\w'-]*", text)


def shows(fragment, text):
    """Whether a fragment of the page, with … for anything, is in a text."""
    parts = [re.escape(plain(part)) for part in fragment.split("…")]
    return re.search(".*".join(parts), text) is not None


def rows(text):
    """The rows, as lists of cells, of the tables of messages in a page."""
    found, within = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        within = bool(cells) and (within or cells == HEADER)
        if within and cells != HEADER and set("".join(cells)) != {"-"}:
            found.append(cells)
    return found


@functools.cache
def documented():
    """The fragments in backticks in the first column."""
    first = [row[0] for row in rows(PAGE.read_text("utf-8"))]
    return [" ".join(text.split()) for cell in first for text in re.findall(r"`([^`]+)`", cell)]


def undocumented(source):
    """The messages of a file of Python that no row shows by four words or by all they have."""
    for line, text in messages(source):
        if not any(
            len(words(f)) >= min(4, len(words(text))) and shows(f, text) for f in documented()
        ):
            yield f"{line}: {text.replace(GAP, '…')}"


def test_every_message_has_a_row():
    paths = sorted(REPOSITORY.glob("vit_jax/**/*.py"))
    found = [
        f"{path.relative_to(REPOSITORY)}:{message}"
        for path in paths
        for message in undocumented(path.read_text("utf-8"))
    ]
    assert not found, "no row of docs/troubleshooting.md shows:\n" + "\n".join(found)
    assert sum(1 for path in paths for _ in messages(path.read_text("utf-8"))) > 120


def test_every_row_is_of_a_message():
    texts = [
        text
        for path in REPOSITORY.glob("vit_jax/**/*.py")
        for text in literals(ast.parse(path.read_text("utf-8")))
    ]
    for path in REPOSITORY.glob("scripts/*.sh"):
        texts += [re.sub(r"\$\w+", GAP, line) for line in path.read_text("utf-8").splitlines()]
    text = "\n".join(sorted(set(texts)))
    stale = [fragment for fragment in documented() if not shows(fragment, text)]
    assert not stale, "nothing says this any more:\n" + "\n".join(stale)


def test_rows_are_whole():
    found = rows(PAGE.read_text("utf-8"))
    assert len(found) > 100
    for row in found:
        assert len(row) == 3 and all(row), row
        assert "`" in row[0], f"no message in backticks: {row[0]}"


@pytest.mark.parametrize(
    "code",
    [
        'raise ValueError(f"{x} has no moon: " "buy one.")',
        'raise ValueError(x + " has no moon: buy one.")',
        'raise ValueError("There is one." if x else f"{x} has no moon: buy one.")',
        'sys.exit(f"{x} has no moon: buy one.")',
        'logger.warning("%s has no moon: buy one.", x)',
    ],
)
def test_a_new_message_would_be_missed(code):
    assert list(undocumented(code)) == ["1: … has no moon: buy one."]


def test_a_stale_row_would_be_found():
    assert not shows("… has no moon: buy …", f"{GAP} has no sun: buy one.")
    assert shows("… has no moon: buy …", f"{GAP} has no moon: buy one.")
