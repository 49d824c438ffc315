"""Which files of a folder are its pictures: told by content; hidden ones are none, linked folders are folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from runtime.images.image import IMAGE_SUFFIXES

_NO_DATA = {"@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
"""Folders that systems make beside data: thumbnails, resource forks, what was thrown away."""
_BACKUPS = ("~", ".bak", ".orig", "_original", ".old", ".tmp", ".part", ".crdownload")
_RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"}
"""Cameras' raw files: TIFF by content, whose first picture is a small preview."""
_MOTION = {".mjpeg", ".mjpg"}
"""JPEGs one after the other: a video, though it begins as a picture does."""
_NOT_READ = {
    ".heic", ".heif", ".avif", ".gif", ".jp2", ".j2k", ".jpx", ".jxl", ".psd", ".svg", ".tga", ".exr", ".hdr",
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", *_MOTION, *_RAW,
}  # fmt: skip
"""Suffixes of pictures and videos that are not read as pictures of a data set."""
_TEXT = {".txt", ".xml", ".json", ".yaml", ".yml", ".csv", ".md", ".py", ".cache", ".npy", ".npz"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no data: it begins with a dot, or a system made it."""
    return name.startswith(".") or name in _NO_DATA


def files_in(folder: Path) -> list[Path]:
    """All files below `folder`, in the order of their paths, without hidden ones.

    Linked folders are gone into, unless one leads back to a folder that it lies in. A link to nothing is listed.
    Raises `OSError` for a folder that cannot be listed.
    """
    found: list[Path] = []
    _walk(folder, (), found)
    return sorted(found)


def _walk(folder: Path, above: tuple[tuple[int, int], ...], found: list[Path]) -> None:
    status = folder.stat()
    if (status.st_dev, status.st_ino) in above:
        return
    above = (*above, (status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                _walk(folder / entry.name, above, found)
            else:
                found.append(folder / entry.name)


class Listing(NamedTuple):
    """What lies in a folder."""

    pictures: list[Path]
    left_out: list[Path]
    """Files that look like data and are not read: pictures of other kinds, videos, backups of pictures."""


def list_pictures(paths: Iterable[Path]) -> Listing:
    """The pictures among `paths`, in their order, and what was left out.

    A usual suffix is believed (a broken picture is then told by its reader); any other file is asked for its content.
    """
    pictures, left_out = [], []
    for path in paths:
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            pictures.append(path)
        elif suffix in _TEXT:
            continue
        elif path.name.lower().endswith(_BACKUPS):
            if _content(path) == "picture":
                left_out.append(path)
        elif is_picture(path):
            pictures.append(path)
        elif suffix in _NOT_READ or _content(path):
            left_out.append(path)
    return Listing(pictures, left_out)


def is_picture(path: Path) -> bool:
    """Whether a file is to be read as a picture: by its content, or else by its suffix."""
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    return suffix not in _MOTION | _RAW and _content(path) == "picture"


def pictures_in(folder: Path) -> list[Path]:
    """All pictures below a folder, in the order of their paths."""
    return list_pictures(files_in(folder)).pictures


def left_out_text(paths: Sequence[Path]) -> str:
    """'3 files are no pictures that are read (.gif, .heic)'."""
    suffixes = sorted({path.suffix or path.name for path in paths})
    shown = ", ".join(suffixes[:6]) + (", ..." if len(suffixes) > 6 else "")
    return f"{len(paths)} files are no pictures that are read ({shown})"


def _content(path: Path) -> str:
    """'picture' for JPEG, PNG, BMP, WebP and TIFF, 'other' for pictures that are not read, '' for anything else."""
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError:
        return ""  # a link to nothing, or no permission: whoever names the file is told
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*")):
        return "picture"
    if (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or (head[:2] == b"BM" and head[6:10] == b"\0\0\0\0"):
        return "picture"
    isobmff = head[4:8] == b"ftyp"  # HEIC, AVIF, MP4
    others = (b"GIF8", b"\0\0\0\x0cjP", b"\0\0\0\x0cJXL", b"\xff\x0a", b"8BPS")
    return "other" if isobmff or head.startswith(others) else ""
