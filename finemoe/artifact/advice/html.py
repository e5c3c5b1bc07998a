"""The HTML elements of the page. All text passes through `escape`."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light; }
body { margin: 2rem auto; max-width: 56rem; padding: 0 1.2rem; color: #1b1b1b; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid #ccc; padding-bottom: .15rem; }
p, li { max-width: 46rem; }
.facts { color: #444; margin: .1rem 0; }
.advice { padding-left: 1.2rem; }
.advice li { margin: .35rem 0; }
.advice li:first-child { font-weight: 600; }
.warnings { border: 1px solid #b35900; border-left-width: 6px; background: #fff7ec; padding: .5rem 1rem; margin: 1.2rem 0; }
.warnings h2 { border: 0; margin: 0; font-size: 1rem; }
.warnings ul { margin: .3rem 0; padding-left: 1.2rem; }
figure { margin: .6rem 0 1rem; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .88rem; color: #333; max-width: 46rem; margin-bottom: .5rem; }
details { margin: .5rem 0; }
summary { cursor: pointer; color: #0b4f82; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { border-bottom: 1px solid #ddd; padding: .12rem .55rem; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid #888; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.no-room td { color: #777; }
code { font-size: .9em; overflow-wrap: anywhere; }
footer { margin-top: 2.5rem; border-top: 1px solid #ccc; color: #555; font-size: .85rem; }
@page { margin: 14mm; }
@media print {
  body { margin: 0; max-width: none; font-size: 10.5pt; }
  figure, .warnings, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  table { font-size: 5.5pt; }
  th, td { padding: .05rem .18rem; }
  details:not([open])::details-content { content-visibility: visible; block-size: auto; }
}
"""
Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page. Its content security policy blocks external resources; it allows only inline style and `data:` pictures."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = [
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    return "\n".join(['<!DOCTYPE html>\n<html lang="en">\n<head>', *head, "</head>\n<body>", *parts, "</body>\n</html>\n"])


def heading(text: str) -> str:
    """Heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph, with a class if `kind` is given."""
    return f"<p{_kind(kind)}>{escape(text)}</p>"


def bullets(texts: Iterable[str], kind: str = "") -> str:
    """A list."""
    return "\n".join([f"<ul{_kind(kind)}>", *(f"<li>{escape(text)}</li>" for text in texts), "</ul>"])


def definitions(texts: Mapping[str, str]) -> str:
    """A list of terms with their definitions."""
    items = (f"<li><b>{escape(term)}</b>: {escape(text)}</li>" for term, text in texts.items())
    return "\n".join(["<ul>", *items, "</ul>"])


def table(title: str, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> str:
    """A collapsible table; rows whose `fits` is false are grey."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name, _ in columns)
    body = [_row([text(row) for _, text in columns], is_grey=not row.get("fits", True)) for row in rows]
    lines = [f"<details>\n<summary>{escape(title)}</summary>", '<div class="wide"><table>', f"<thead><tr>{head}</tr></thead>"]
    return "\n".join([*lines, "<tbody>", *body, "</tbody>", "</table></div>\n</details>"])


def _row(cells: Iterable[str], is_grey: bool) -> str:
    return f"<tr{_kind('no-room' if is_grey else '')}>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def picture(fig: "Figure", title: str, text: str) -> str:
    """A figure embedded as SVG with text drawn as paths, so that it looks the same everywhere; same figure, same bytes."""
    data = base64.b64encode(svg(fig)).decode("ascii")
    image = f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>\n<figcaption>{escape(text)}</figcaption>\n{image}\n</figure>"


def svg(fig: "Figure") -> bytes:
    """A figure as SVG without date and creator; its ids are derived from its content (`svg.hashsalt` in the style)."""
    file = io.BytesIO()
    fig.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return file.getvalue()


def _kind(name: str) -> str:
    return f' class="{name}"' if name else ""
