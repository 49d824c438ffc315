"""Which files of a folder are its pictures, by content. Hidden files do not count; links to folders are followed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from runtime.images.encoded import encoded_format
from runtime.images.formats.boxes import HEIC_ADVICE
from runtime.images.image import IMAGE_SUFFIXES

_NO_DATA = {"@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
"""Folders that systems make beside data: thumbnails, resource forks, deleted files."""
_BACKUPS = ("~", ".bak", ".orig", "_original", ".old", ".tmp", ".part", ".crdownload")
_RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"}
"""Cameras' raw files: TIFF by content, whose first picture is a small preview."""
_MOTION = {".mjpeg", ".mjpg"}
"""JPEGs one after the other: a video, though it begins as a picture does."""
_NOT_READ = {
    ".heic", ".heif", ".avif", ".gif", ".jp2", ".j2k", ".jpx", ".jxl", ".psd", ".svg", ".tga", ".exr", ".hdr",
    ".pbm", ".pgm", ".ppm", ".pnm", ".pam", ".pfm", ".ras",
    ".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", *_MOTION, *_RAW,
}  # fmt: skip
"""Suffixes of pictures and videos that are not read as pictures of a data set."""
_TEXT = {".txt", ".xml", ".json", ".yaml", ".yml", ".csv", ".md", ".py", ".cache", ".npy", ".npz"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not data: the name begins with a dot, or a system made it."""
    return name.startswith(".") or name in _NO_DATA


def files_in(folder: Path) -> list[Path]:
    """All files below `folder`, in the order of their paths, without hidden ones.

    Links to folders are followed, unless one leads back to a folder that it lies in. A broken link is listed.
    Raises `OSError` for a folder that cannot be listed.
    """
    return sorted(_walk(folder, ()))


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                yield from _walk(folder / entry.name, (*above, here))
            else:
                yield folder / entry.name


class Listing(NamedTuple):
    """What lies in a folder."""

    pictures: list[Path]
    left_out: list[Path]
    """Files that look like data and are not read: pictures of other kinds, videos, backups of pictures."""


def list_pictures(paths: Iterable[Path]) -> Listing:
    """The pictures among `paths`, in their order, and what was left out.

    A usual suffix decides (the reader then reports a broken picture); any other file is judged by its content.
    """
    pictures, left_out = [], []
    for path in paths:
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            pictures.append(path)
            continue
        if suffix in _TEXT:
            continue
        content = _content(path)
        if path.name.lower().endswith(_BACKUPS):
            if content == "picture":
                left_out.append(path)
        elif content == "picture" and suffix not in _MOTION | _RAW:
            pictures.append(path)
        elif suffix in _NOT_READ or content:
            left_out.append(path)
    return Listing(pictures, left_out)


def is_picture(path: Path) -> bool:
    """Whether a file is to be read as a picture: by its content, or else by its suffix.

    HEIC counts as a picture: the error of reading it has advice, that of the decoder of videos has none.
    """
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    return suffix not in _MOTION | _RAW and _content(path) in ("picture", "HEIC")


def is_heic(path: Path) -> bool:
    """Whether the content of a file is HEIC, as iPhones write it."""
    return _content(path) == "HEIC"


def pictures_in(folder: Path) -> list[Path]:
    """All pictures below a folder, in the order of their paths."""
    return list_pictures(files_in(folder)).pictures


def left_out_text(paths: Sequence[Path]) -> str:
    """The text '3 files are no pictures that are read (.gif, .heic)', and what to do with those in HEIC."""
    suffixes = sorted({path.suffix or path.name for path in paths})
    shown = ", ".join(suffixes[:6]) + (", ..." if len(suffixes) > 6 else "")
    heic = sum(map(is_heic, paths))
    advice = f"; {heic} are HEIC: {HEIC_ADVICE}" if heic else ""
    return f"{len(paths)} files are no pictures that are read ({shown}){advice}"


def _content(path: Path) -> str:
    """'picture' for JPEG, PNG, BMP, WebP and TIFF; 'HEIC'; 'other' for pictures that are not read; '' for the rest."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError:
        return ""  # a broken link, or no permission: reading the file by its name reports it
    name = encoded_format(head)
    if name == "HEIC":
        return name
    if name in ("JPEG", "PNG", "WebP", "TIFF") or (name == "BMP" and head[6:10] == b"\0\0\0\0"):
        return "picture"
    if head[4:8] == b"ftyp":  # AVIF, MP4
        return "other"
    others = (b"\0\0\0\x0cJXL", b"\xff\x0a", b"8BPS")
    return "other" if name in ("GIF", "JPEG 2000") or head.startswith(others) else ""
