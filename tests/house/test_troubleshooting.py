"""docs/troubleshooting.md has a row for every message of an error, and no row for any other."""

import ast
import functools
import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "troubleshooting.md"
HEADER = ["what you see", "why", "what to do"]
GAP = "\0"  # stands for what a message is filled with

# Functions that return or collect sentences which another one puts into an error.
FINDINGS = {
    "vit_jax/checkpoint.py": ("_damage", "differences"),
    "vit_jax/config.py": ("no_such_key", "changes"),
    "vit_jax/datasets/prepare.py": ("_prepared",),
    "vit_jax/interop/download.py": ("_check",),
    "vit_jax/interop/torch.py": ("_reason",),
    "vit_jax/interop/weights.py": ("_problems",),
}


class Message(NamedTuple):
    """A text of an error or a warning, with a GAP for each thing it is filled with."""

    where: str
    text: str


class Module:
    """The messages of one file of Python, found in its syntax.

    Args:
      text: of the file.
      name: what it is called in `Message.where`.
    """

    def __init__(self, text: str, name: str):
        self._name, self._tree = name, ast.parse(text)
        self._functions = [x for x in ast.walk(self._tree) if isinstance(x, ast.FunctionDef)]

    def messages(self) -> Iterator[Message]:
        """Yields every message that has words of its own."""
        owner = {}  # of every node: the innermost function it is in; outer ones come first
        for scope in [self._tree, *self._functions]:
            owner |= {node: scope for node in ast.walk(scope)}
        for node, scope in owner.items():
            for expression in self._told(node, scope):
                for text in self._texts(expression, scope):
                    if words(text):
                        yield Message(f"{self._name}:{node.lineno}", _plain(text))

    def _told(self, node: ast.AST, scope: ast.AST) -> Iterator[ast.expr]:
        """Yields the expressions of what people will read, where a node raises, exits or warns."""
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from node.exc.args
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            to_stderr = any(ast.unparse(x.value) == "sys.stderr" for x in node.keywords)
            if called in ("sys.exit", "parser.error") or called.endswith(".__init__"):
                yield from node.args
            elif called in ("logger.warning", "logger.error", "warnings.warn"):
                yield node.args[0]
            elif called == "flags.multi_flags_validator":
                yield node.args[1]
            elif called == "print" and to_stderr:
                yield from node.args
        elif isinstance(node, ast.Yield | ast.YieldFrom) and self._name == "vit_jax/config.py":
            value = node.value
            yield value.elts[-1] if isinstance(value, ast.Tuple) else value
        if getattr(scope, "name", "") in FINDINGS.get(self._name, ()):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".append"):
                yield from node.args
            elif isinstance(node, ast.ListComp):
                yield node.elt
            elif isinstance(node, ast.Return) and node.value is not None:
                yield from node.value.elts if isinstance(node.value, ast.List) else [node.value]
            elif isinstance(node, ast.Assign):
                yield node.value

    def _texts(self, node: ast.expr, scope: ast.AST, seen: frozenset = frozenset()) -> list[str]:
        """Returns the texts that an expression can have, as far as they are written in the file."""

        def of(*nodes):
            known = seen | {id(node)}
            return [
                text for x in nodes if id(x) not in known for text in self._texts(x, scope, known)
            ]

        match node:
            case ast.Constant(value=str(text)):
                return [re.sub(r"%[-+.\d]*[a-z]", GAP, text)]
            case ast.JoinedStr(values=values):
                text = "".join(x.value if isinstance(x, ast.Constant) else GAP for x in values)
                gaps = [x.value for x in values if isinstance(x, ast.FormattedValue)]
                return [text] if len(words(text)) > 2 else [text, *of(*gaps)]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                sides = [of(side) or [GAP] for side in (left, right)]
                return ["".join(pair) for pair in zip(*_as_long(sides), strict=True)]
            case ast.IfExp(body=body, orelse=orelse):
                return of(body, orelse)
            case ast.BoolOp(values=values):
                return of(*values)
            case ast.NamedExpr(value=value):
                return of(value)
            case ast.GeneratorExp(elt=ast.Tuple(elts=parts)):
                return of(parts[-1])
            case ast.GeneratorExp(elt=part):
                return of(part)
            case ast.Call(func=ast.Attribute(attr="join"), args=[ast.List(elts=parts)]):
                return of(*parts)
            case ast.Call(func=ast.Name(id=name)):
                returned = [
                    (x.value, function)
                    for function in self._functions
                    if function.name == name
                    for x in ast.walk(function)
                    if isinstance(x, ast.Return) and x.value
                ]
                return [
                    text
                    for x, function in returned
                    if id(x) not in seen
                    for text in self._texts(x, function, seen | {id(node), id(x)})
                ]
            case ast.Name(id=name) if not isinstance(scope, ast.Module):
                return of(*_assigned(scope, name))
        return []


def _as_long(lists: list[list[str]]) -> list[list[str]]:
    longest = max(map(len, lists))
    return [(texts * longest)[:longest] for texts in lists]


def _assigned(scope: ast.AST, name: str) -> Iterator[ast.expr]:
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                yield value
            case ast.NamedExpr(target=ast.Name(id=found), value=value) if found == name:
                yield value


def _plain(text: str) -> str:
    """Returns a text in one line, without the marks of code."""
    return " ".join(text.replace("`", "").split())


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z][\w'-]*", text)


def of_shell(text: str, name: str) -> Iterator[Message]:
    """Yields the messages of a script of Bash: of its `fail`, and what goes to stderr."""
    for number, line in enumerate(text.splitlines(), 1):
        for found in re.finditer(r"""(?:\bfail|\becho) (["'])(?P<text>.*)\1(?P<rest>.*)""", line):
            if "fail " in found[0] or ">&2" in found["rest"]:
                text = re.sub(r"\$\w+", GAP, found["text"])
                if words(text):
                    yield Message(f"{name}:{number}", _plain(text))


@functools.cache
def messages() -> tuple[Message, ...]:
    found = []
    for path in sorted(REPOSITORY.glob("vit_jax/**/*.py")):
        name = path.relative_to(REPOSITORY).as_posix()
        found += Module(path.read_text("utf-8"), name).messages()
    for path in sorted(REPOSITORY.glob("scripts/*.sh")):
        found += of_shell(path.read_text("utf-8"), path.relative_to(REPOSITORY).as_posix())
    return tuple(dict.fromkeys(found))


def rows(text: str) -> list[list[str]]:
    """Returns the rows, as cells, of the tables of messages in a page."""
    found, within = [], False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells == HEADER:
            within = True
        elif not cells:
            within = False
        elif within and set("".join(cells)) != {"-"}:
            found.append(cells)
    return found


def fragments(cell: str) -> list[str]:
    """Returns what is between backticks."""
    return [" ".join(text.split()) for text in re.findall(r"`([^`]+)`", cell)]


def shows(fragment: str, message: Message) -> bool:
    """Tells whether a fragment, with … for anything, is of a message.

    It has to have four words, or all that the message has.
    """
    if len(words(fragment)) < 4 and words(fragment) != words(message.text):
        return False
    parts = [re.escape(_plain(part)) for part in fragment.split("…")]
    return re.search(".*".join(parts), message.text) is not None


@functools.cache
def documented() -> tuple[str, ...]:
    text = PAGE.read_text("utf-8")
    return tuple(fragment for row in rows(text) for fragment in fragments(row[0]))


def missing(found: list[Message] | tuple[Message, ...]) -> list[str]:
    return [
        f"{message.where}: {message.text.replace(GAP, '…')}"
        for message in found
        if not any(shows(fragment, message) for fragment in documented())
    ]


def test_every_message_has_a_row():
    assert len(messages()) > 200
    lacking = missing(messages())
    assert not lacking, "no row of docs/troubleshooting.md shows:\n" + "\n".join(lacking)


def test_every_row_is_of_a_message():
    stale = [f for f in documented() if not any(shows(f, message) for message in messages())]
    assert not stale, "nothing says this any more:\n" + "\n".join(stale)


def test_rows_are_whole():
    found = rows(PAGE.read_text("utf-8"))
    assert len(found) > 100
    for row in found:
        assert len(row) == 3 and all(row), row
        assert fragments(row[0]), f"no message in backticks: {row[0]}"


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ('raise ValueError(f"{x} has no moon: buy" " one.")', ["… has no moon: buy one."]),
        ("raise ValueError(f'{path}: {error}')", []),  # another's words
        ("raise", []),
        ("raise KeyboardInterrupt", []),
        ('sys.exit("No moon here.")', ["No moon here."]),
        ('logger.warning("%s has %.1f moons", x, y)', ["… has … moons"]),
        ('logger.info("there are moons")', []),
        ('raise ValueError("No moons: " + ", ".join(x) + ".")', ["No moons: …."]),
        (
            """
            def _lost(x):
                return f"The moon {x} is lost."

            def look(x):
                if x:
                    problem = _lost(x) if x > 1 else "There is none."
                    raise OSError(problem)
            """,
            ["The moon … is lost.", "There is none."],
        ),
    ],
)
def test_messages_are_found(code, texts):
    found = Module(textwrap.dedent(code), "moons.py").messages()
    assert [message.text.replace(GAP, "…") for message in found] == texts


def test_a_new_message_would_be_missed():
    new = 'def f(x):\n    raise ValueError(f"{x} has no moon: buy one.")\n'
    assert missing(list(Module(new, "moons.py").messages())) == [
        "moons.py:2: … has no moon: buy one."
    ]
