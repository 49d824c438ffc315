"""An HTML page in one file: text, tables, and pictures inside."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from pathlib import Path

from runtime.files.write import write_text

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } img { max-width: 100% }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 13px }
"""


def write_page(path: Path, title: str, parts: Sequence[str]) -> Path:
    """Write the page whose body is `parts`, pieces of HTML; returns its path."""
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return write_text(path, f"{head}<style>{_STYLE}</style>\n" + "\n".join(parts))


def table(head: Sequence[str], rows: Sequence[Sequence[float | str]]) -> str:
    """A table: text as it is, numbers with one decimal where they are not whole, - for NaN."""

    def cell(value: float | str) -> str:
        if isinstance(value, str):
            return html.escape(value)
        return "-" if math.isnan(value) else f"{value:.0f}" if value == int(value) else f"{value:.1f}"

    header = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table><tr>{header}</tr>{lines}</table>"


def image(path: Path) -> str:
    """The PNG or JPEG at `path`, inside the page."""
    kind = "png" if path.suffix == ".png" else "jpeg"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(path.stem)}" src="data:image/{kind};base64,{data}"></p>'
