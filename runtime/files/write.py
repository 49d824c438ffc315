"""Files that are written whole or not at all, and the user's folder for caches."""

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
    """The hidden file beside `path` that is written first. It has the same suffix, as writers look at it, and a
    short name, since `path`'s own may have no room for more. It is the same for the same `path`.
    """
    return path.with_name(f".{_short(path, 24)}.partial{_suffix(path)}")


def fitting(stem: str, suffix: str) -> str:
    """`stem`, cut where `stem` and `suffix` are longer together than a file's name may be; cut ones stay distinct."""
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
    return path.suffix if len(path.suffix) <= 16 else ""  # what follows the last dot of a sentence is none


def cache_folder(instead: str) -> Path:
    """The user's folder for isodet's caches, not made. Raises OSError where there is no home folder, as in a container
    whose user has no entry; the message asks for `instead`, what else can be set.
    """
    given = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    try:
        folder = Path(given or Path.home() / ("AppData/Local" if sys.platform == "win32" else ".cache"))
    except RuntimeError:
        raise OSError(f"this user has no home folder to keep a cache in; set {instead}, or XDG_CACHE_HOME") from None
    return folder / "isodet"


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the name `path` when the block ends, and goes if it raises.

    The folder is made where it is missing. Whatever happens, `path` is the old file or the whole new one.
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

    For work that takes long: nobody should wait for it and learn then that it has no place.
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
    """`path` from the root of the file system, without going through the links in it: what lies beside a file is looked
    for beside its link, as all who open a file by its name do. Only what precedes a `..` is followed. Raises ValueError
    for what no file can be called.
    """
    if b"\0" in os.fsencode(path):  # which half of a surrogate pair has no bytes for
        raise ValueError("a name with a null byte")
    if ".." not in path.parts:
        return Path(os.path.abspath(path))
    last = len(path.parts) - path.parts[::-1].index("..")
    return Path(*path.parts[:last]).resolve() / Path(*path.parts[last:])
