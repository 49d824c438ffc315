"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the name `path` when the block ends, and goes if it raises.

    The folder is made where it is missing. Whatever happens, `path` is the old file or the whole new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")  # writers look at the suffix
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a full disk, found while writing, names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def require_writable(path: str | PathLike[str]) -> None:
    """Raise OSError, saying what is in the way, unless `replacing(path)` could write there now.

    For work that takes long: nobody should wait for it and learn then that it has no place.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name the file that is to be written")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.stem}.probe{path.suffix}")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(f"{path}: cannot be written: {error.strerror}; name another place") from error


def write_text(path: str | PathLike[str], text: str) -> Path:
    """Write `text` as UTF-8, whole or not at all; returns the path."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def absolute_path(path: Path) -> Path:
    """`path` from the root of the file system, without going through the links in it: what lies beside a file is looked
    for beside its link, as all who open a file by its name do. Only what precedes a `..` is followed."""
    if ".." not in path.parts:
        return Path(os.path.abspath(path))
    last = len(path.parts) - path.parts[::-1].index("..")
    return Path(*path.parts[:last]).resolve() / Path(*path.parts[last:])
