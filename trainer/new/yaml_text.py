"""Text for a YAML file with comments: scalars, paths, the splits of a data set."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from runtime.files.write import absolute_path


def quoted(text: str) -> str:
    """`text` as a YAML scalar on one line, which is read as text even where it is no, 1, a: b, or has quotes."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9).strip()


def split_lines(
    name: str, annotations: Path, images: Path | None, out: Path, more: Sequence[tuple[str, str]] = ()
) -> list[str]:
    """The lines of one split below `data:`, with paths relative to the file `out`, and `more` (key, value) pairs."""
    lines = [f"  {name}:", f"    annotations: {quoted(relative(annotations, out))}"]
    if images is not None:
        lines.append(f"    images: {quoted(relative(images, out))}")
    return [*lines, *(f"    {key}: {value}" for key, value in more)]


def relative(path: Path, out: Path) -> str:
    """`path` as seen from the folder of `out`, with forward slashes."""
    folder, target = out.parent.resolve(), absolute_path(path)  # a link is not followed
    try:
        relative = Path(os.path.relpath(target, folder)).as_posix()
    except ValueError:  # another drive
        return target.as_posix()
    return f"./{relative}" if relative.startswith("~") else relative  # a leading ~ would mean the home folder


def folder_name(out: Path) -> str:
    """A name for runs/, from the file's own."""
    return re.sub(r'[/\\:*?"<>|]', "_", out.stem) or "run"


def one_line(text: str) -> str:
    """`text` quoted for a comment, without line breaks, which would end the comment."""
    return repr(text) if text.isprintable() else ascii(text)
