"""A web page that is one file: sections of paragraphs, tables and pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vit_jax.common.names import printable


class Picture(NamedTuple):
    """One picture of the page, or several of the same image, side by side.

    Attributes:
      files: {name of a file, .png or .jpg: what it shows, in a few words}.
      title: what they show.
      caption: what a reader sees in them.
    """

    files: Mapping[str, str]
    title: str
    caption: str


class Section(NamedTuple):
    """Paragraphs, then a table, then pictures, below a title.

    Attributes:
      title: of the section.
      paragraphs: texts.
      pictures: of one kind.
      table: rows of cells, the first of which is the header; () for none.
      link: (file beside the page, text) of a link at the end.
      narrow: True for small pictures, whose captions are as narrow.
    """

    title: str
    paragraphs: Sequence[str]
    pictures: Sequence[Picture] = ()
    table: Sequence[Sequence[str]] = ()
    link: tuple[str, str] | None = None
    narrow: bool = False


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 88rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; }
p { max-width: 48rem; }
.pictures, .files { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: start; }
.files { gap: 0.5rem; }
figure { margin: 0; max-width: 100%; }
img { max-width: 100%; border-radius: 4px; background: white; }
figcaption { font-size: 0.9rem; max-width: 37rem; overflow-wrap: anywhere; }
.narrow figure { width: 16rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: 0.15rem 1.2rem 0.15rem 0; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
td { max-width: 40rem; overflow-wrap: break-word; }
"""


def build_page(
    title: str, text: str, sections: Sequence[Section], read: Callable[[str], bytes]
) -> str:
    """Returns a page as HTML, which holds its pictures.

    Args:
      title: of the page.
      text: the first paragraph.
      sections: what follows. All texts are shown as `printable` has them.
      read: name of a picture's file -> its bytes.
    """
    body = [f"<h1>{_escape(title)}</h1>", f"<p>{_escape(text)}</p>"]
    for section in sections:
        body.append(f"<h2>{_escape(section.title)}</h2>")
        body += [f"<p>{_escape(paragraph)}</p>" for paragraph in section.paragraphs]
        body += _table(section.table)
        if section.pictures:
            body.append(f'<div class="pictures{" narrow" * section.narrow}">')
            body += [line for picture in section.pictures for line in _figure(picture, read)]
            body.append("</div>")
        if section.link is not None:
            file, shown = map(_escape, section.link)
            body.append(f'<p><a href="{file}">{shown}</a></p>')
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>{_escape(title)}</title><style>{_STYLE}</style></head><body>",
        *body,
        "</body></html>\n",
    ]
    return "\n".join(lines)


def _escape(text: str) -> str:
    return html.escape(printable(text))


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table; [] if it has no rows."""
    if not rows:
        return []
    lines = ["<table>"]
    for row, cell in zip(rows, ["th"] + ["td"] * len(rows), strict=False):
        lines.append(f"<tr>{''.join(f'<{cell}>{_escape(x)}</{cell}>' for x in row)}</tr>")
    return [*lines, "</table>"]


def _figure(picture: Picture, read: Callable[[str], bytes]) -> list[str]:
    title, caption = _escape(picture.title), _escape(picture.caption)
    lines = ['<figure><div class="files">']
    for file, shown in picture.files.items():
        kind = "png" if file.endswith(".png") else "jpeg"
        source = f"data:image/{kind};base64,{base64.b64encode(read(file)).decode()}"
        lines.append(f'<img alt="{title}: {_escape(shown)}" src="{source}">')
    text = f"<b>{title}</b><br>{caption}" if caption else f"<b>{title}</b>"
    return [*lines, f"</div><figcaption>{text}</figcaption></figure>"]
