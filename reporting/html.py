"""Pieces of the page."""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from PIL import Image


def html_frame(title: str, contents: str, body: str) -> str:
    """A page with its style, and what leads to its parts."""
    template = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), contents=contents, body=body)


def html_contents(body: str) -> tuple[str, str]:
    """Links to the parts that begin with an <h2>, and the body with what they lead to."""
    links: list[str] = []

    def numbered(found: re.Match) -> str:
        links.append(f'<a href="#part-{len(links) + 1}">{found[1]}</a>')
        return f'<h2 id="part-{len(links)}">{found[1]}</h2>'

    body = re.sub(r"<h2>(.*?)</h2>", numbered, body)
    return f'<nav aria-label="Contents">{"".join(links)}</nav>', body


def picture_kind(picture: bytes) -> str:
    """Of the bytes of a picture: gif or png."""
    return "gif" if picture.startswith(b"GIF8") else "png"


def width_of(picture: bytes) -> int:
    """Of the bytes of a picture, in pixels."""
    with Image.open(io.BytesIO(picture)) as image:
        return image.width


def html_facts(facts: Sequence[tuple[str, str]]) -> str:
    """Numbers to see first, each with what it is."""
    cards = "".join(f'<div class="fact"><b>{escape(value)}</b><span>{escape(text)}</span></div>'
                    for value, text in facts)
    return f'<div class="facts">{cards}</div>'


def html_missing(what: str, part: Mapping) -> str:
    """Why a part of a report is not there; nothing where it is."""
    return "" if part["available"] else \
        f"<p class=missing>{escape(what)}: not available: {escape(part['reason'])}</p>"


def html_table(head: Sequence[str] | None, rows: Iterable[Sequence[str]], main: int | None = None, kind: str = ""
               ) -> str:
    """An HTML table; column `main` holds the number to look at.

    Cells say what their column is, so that narrow screens can show a row as a card.
    """
    top = "" if head is None else "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"
    lines, written = [], escape if kind else html_cell
    for row in rows:
        cells = [f"<td{html_attributes(i, head, main)}>{written(cell)}</td>" for i, cell in enumerate(row)]
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return f'<table class="{kind}">{top}{"".join(lines)}</table>'


def html_cell(text: str) -> str:
    """A cell of a table of numbers: lines do not break within such as 1e-05 and < 0.0001."""
    return re.sub(r"&lt; [\d.]+|-?\b[\d.]+e-\d+", r'<span class="whole">\g<0></span>', escape(text))


def html_attributes(column: int, head: Sequence[str] | None, main: int | None) -> str:
    """Of a cell: the class of the number to look at, and the head of its column, but for the first, which is a name."""
    return (' class="main"' if column == main else "") + (
        f' data-head="{escape(head[column])}"' if head is not None and column else "")


def html_figure(name: str, figures: Mapping[str, bytes], caption: str = "", share: float = 1) -> str:
    """A figure with its picture inside it, as wide as a share of its room; nothing where there is none of the name."""
    if name not in figures:
        return ""
    data, kind = base64.b64encode(figures[name]).decode(), picture_kind(figures[name])
    note = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    style = f' style="max-width: {share:.1%}"' if share < 1 else ""
    return (f'<figure><img alt="{escape(name.replace("_", " "))}" src="data:image/{kind};base64,{data}"{style}>{note}'
            "</figure>")


def html_grid(names: Iterable[str], figures: Mapping[str, bytes]) -> str:
    """Charts side by side."""
    return f'<div class="charts">{"".join(html_figure(name, figures) for name in names)}</div>'


def html_strips(name: str, figures: Mapping[str, bytes]) -> str:
    """Pictures NAME_1, NAME_2, ... of volumes, side by side as far as there is room and in one scale; nothing where
    there are none.
    """
    widths = {key: width_of(figures[key]) for key in figures if key.removeprefix(f"{name}_").isdigit()}
    strips = [html_figure(key, figures, share=width / max(widths.values())) for key, width in widths.items()]
    return f'<div class="dark">{"".join(strips)}</div>' if strips else ""
