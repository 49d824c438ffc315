"""Text as it stands in a YAML file that is written with comments: scalars, paths, the splits of a data set."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml


def quoted(text: str) -> str:
    """`text` as a YAML scalar on one line that is text whatever it looks like: no, 1, a: b, quotes, umlauts."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9).strip()


def split_lines(name: str, annotations: Path, images: Path | None, out: Path) -> list[str]:
    """The lines of one split below `data:`, with paths relative to the file `out`."""
    lines = [f"  {name}:", f"    annotations: {quoted(relative(annotations, out))}"]
    return lines if images is None else [*lines, f"    images: {quoted(relative(images, out))}"]


def relative(path: Path, out: Path) -> str:
    """`path` as seen from the folder of `out`, with forward slashes."""
    here, there = out.parent.resolve(), path.resolve()
    try:
        relative = Path(os.path.relpath(there, here)).as_posix()
    except ValueError:  # another drive
        return there.as_posix()
    return f"./{relative}" if relative.startswith("~") else relative  # a leading ~ would mean the home folder


def folder_name(out: Path) -> str:
    """A name for runs/, from the file's own."""
    return re.sub(r'[/\\:*?"<>|]', "_", out.stem) or "run"
