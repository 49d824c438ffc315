"""Tables as text, for a terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str]) -> list[str]:
    """The lines of a table: columns as wide as their widest cell, those named in `left` to the left, others right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    forms = [f"{{:{'<' if name in left else '>'}{width}}}" for name, width in zip(head, widths, strict=True)]
    return ["  ".join(forms).format(*row).rstrip() for row in (head, *rows)]
