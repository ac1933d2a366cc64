"""Fills the quotations in docs/*.md from the source: python docs/quote.py [--check].

A quotation is a block of Python under a comment that names a file and something in it:

    <!-- from vit_jax/models/patches.py: PatchEmbedding.__call__ -->

The name is that of a function, a class or a variable at the top of the file, or, after a dot, of
something within it. The block gets its source, without docstrings and without indentation.
"""

import argparse
import ast
import pathlib
import re
import sys
import textwrap

DOCS = pathlib.Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
BLOCK = re.compile(
    r"(?P<mark>^<!-- from (?P<file>\S+): (?P<name>[\w.]+) -->\n)```python\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


def find(tree: ast.Module, name: str) -> ast.stmt:
    """Returns the definition or assignment that a dotted name stands for.

    Raises:
      LookupError: nothing is called so.
    """
    node = tree
    for part in name.split("."):
        for child in node.body:
            targets = getattr(child, "targets", [getattr(child, "target", None)])
            names = {getattr(child, "name", None), *(getattr(x, "id", None) for x in targets)}
            if part in names:
                node = child
                break
        else:
            raise LookupError(name)
    return node


def quote(source: str, name: str) -> str:
    """Returns the code of what is called `name` in a source text, without docstrings."""
    node, lines = find(ast.parse(source), name), source.splitlines()
    first = min(x.lineno for x in (node, *getattr(node, "decorator_list", ())))
    kept = dict(enumerate(lines[first - 1 : node.end_lineno], first))
    for part in ast.walk(node):
        if not isinstance(part, ast.FunctionDef | ast.ClassDef) or not ast.get_docstring(part):
            continue
        text = part.body[0]
        for number in range(text.lineno, text.end_lineno + 1):
            kept.pop(number)
        if len(part.body) > 1 and not lines[text.end_lineno].strip():
            kept.pop(text.end_lineno + 1)
    return textwrap.dedent("\n".join(kept.values())) + "\n"


def fill(page: str) -> str:
    """Returns the text of a page with every quotation as the source has it.

    Raises:
      LookupError: a page names what is not in the file.
    """

    def block(found: re.Match) -> str:
        source = (REPOSITORY / found["file"]).read_text("utf-8")
        try:
            code = quote(source, found["name"])
        except LookupError:
            raise LookupError(f"There is no {found['name']} in {found['file']}.") from None
        return f"{found['mark']}```python\n{code}```"

    return BLOCK.sub(block, page)


def main(check: bool) -> int:
    """Fills all pages; with `check`, writes none and returns 1 if one would change."""
    stale = []
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text("utf-8")
        if (filled := fill(text)) == text:
            continue
        stale.append(path.name)
        if not check:
            path.write_text(filled, "utf-8")
    if check and stale:
        print(f"Stale quotations in {', '.join(stale)}: run python docs/quote.py.", file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether a page is stale")
    sys.exit(main(parser.parse_args().check))
