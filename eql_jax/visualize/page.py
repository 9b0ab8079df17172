"""Pieces of an HTML page that is one file: its frame, tables, and pictures. Nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence

from PIL import Image

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c1e22; margin: 0 auto; max-width: 1500px; padding: 16px 28px; }
h1 { font-size: 24px; } h2 { font-size: 19px; margin-top: 36px; border-bottom: 1px solid #ddd; padding-bottom: 4px; }
h3 { font-size: 16px; margin: 22px 0 8px; } .scroll { overflow-x: auto; } .note { color: #8a4b00; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: 2px 10px; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f5f6f8; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(380px, 1fr)); gap: 16px; }
figure { margin: 0; } figure img { width: 100%; } figcaption { font-size: 13px; color: #444; }
.chart img { width: auto; max-width: 100%; }
.row.wide { grid-template-columns: repeat(auto-fill, minmax(560px, 1fr)); }
pre { background: #f5f6f8; padding: 10px; overflow: auto; font-size: 13px; } svg { width: 100%; height: auto; }
"""
_PICTURE_SIDE = 720  # longest side of a picture on the page, pixels


def html_page(title: str, sections: Iterable[str]) -> str:
    """A whole document. `title` is text, the sections are HTML."""
    title = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1>{''.join(sections)}</html>\n"
    )


def html_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts (escaped here): the first column to the left, the others to the right."""
    lines = [_line("th", head), *(_line("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def _line(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"


def html_figure(source: str, caption: str) -> str:
    """A picture (a data URI) with a caption (text)."""
    return f'<figure><img src="{source}"><figcaption>{html.escape(caption)}</figcaption></figure>'


def picture_uri(picture: Image.Image, *, longest_side: int = _PICTURE_SIDE) -> str:
    """A photograph as JPEG within the page, scaled down to `longest_side`."""
    picture = picture.copy()
    picture.thumbnail((longest_side, longest_side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")


def data_uri(content: bytes, media_type: str) -> str:
    """The bytes of a file as an address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
