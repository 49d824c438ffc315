"""Writing complete files or none, and the user's folder for caches."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

LONGEST_NAME = 255
"""Bytes of a file's name, on most file systems."""


def partial_path(path: Path) -> Path:
    """The hidden file beside `path` that is written first.

    It has the same suffix, since writers choose the format by it, and a short name, since that of `path` may already
    have the greatest length. The same `path` always gives the same file.
    """
    return path.with_name(f".{_short(path, 24)}.partial{_suffix(path)}")


def fitting(stem: str, suffix: str) -> str:
    """`stem`, cut where it and `suffix` are too long for a file's name. A hash keeps cut names distinct."""
    room = LONGEST_NAME - len(os.fsencode(suffix))
    if len(os.fsencode(stem)) <= room:
        return stem
    mark = f"~{zlib.crc32(os.fsencode(stem)):08x}"
    cut = stem
    while len(os.fsencode(cut)) > room - len(mark):
        cut = cut[:-1]
    return cut + mark


def _short(path: Path, most: int) -> str:
    stem = path.stem if _suffix(path) else path.name
    return stem if len(stem) <= most else f"{stem[:most]}~{zlib.crc32(os.fsencode(path.name)):08x}"


def _suffix(path: Path) -> str:
    return path.suffix if len(path.suffix) <= 16 else ""  # text after the last dot of a sentence is not a suffix


def cache_folder(instead: str) -> Path:
    """The user's folder for isodet's caches; it may not exist yet.

    Raises OSError where there is no home folder, as in a container whose user has no entry; the message asks to set the
    variable `instead`.
    """
    configured = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    try:
        folder = Path(configured or Path.home() / ("AppData/Local" if sys.platform == "win32" else ".cache"))
    except RuntimeError:
        raise OSError(f"this user has no home folder to keep a cache in; set {instead}, or XDG_CACHE_HOME") from None
    return folder / "isodet"


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to. It is renamed to `path` when the block ends, and removed if the block raises.

    A missing folder is made. In every case `path` is the old file or the complete new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        unnamed = error.filename is None or str(error.filename) == str(partial)
        if unnamed and error.errno is not None:  # a full disk, found while writing, names no file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def require_writable(path: str | PathLike[str]) -> None:
    """Raise OSError, saying what is in the way, unless `replacing(path)` could write there now.

    For long work, which should not fail at its end because its result cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name the file that is to be written")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{_short(path, 24)}.probe{_suffix(path)}")
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
    """`path` from the root of the file system. Links in it are not followed, so that the neighbors of a linked file are
    looked for beside the link; but links before a `..` are. Raises ValueError for an impossible name.
    """
    if b"\0" in os.fsencode(path):  # fsencode raises ValueError for half of a surrogate pair
        raise ValueError("a name with a null byte")
    if ".." not in path.parts:
        return Path(os.path.abspath(path))
    last = len(path.parts) - path.parts[::-1].index("..")
    return Path(*path.parts[:last]).resolve() / Path(*path.parts[last:])
