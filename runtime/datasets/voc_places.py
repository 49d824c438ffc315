"""Where the files of a Pascal VOC data set are: its .xml, its pictures, and the lists that name some of them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from runtime.datasets.annotations import DatasetError, read_lines
from runtime.files.write import absolute_path
from runtime.images.image import IMAGE_SUFFIXES
from runtime.images.picture_files import Listing, files_in, is_hidden, list_pictures

_ANNOTATIONS = ("Annotations", "annotations", "xmls", "Annotation")
_PICTURES = ("JPEGImages", "images", "Images", "imgs")


@dataclass(frozen=True)
class VocPlaces:
    """The .xml files of a data set and the folder of its pictures."""

    files: tuple[Path, ...]
    folder: Path
    """The folder of all .xml files of the set."""
    pictures: Path
    is_complete: bool
    """Whether `files` are all there are; False for a list of names."""

    @cached_property
    def _listing(self) -> Listing:
        return list_pictures(files_in(self.pictures))

    @cached_property
    def _by_stem(self) -> dict[str, list[Path]]:
        stems = defaultdict(list)
        for path in self._listing.pictures:
            stems[path.stem].append(path)
        return stems

    def picture(self, file: Path, file_name: str) -> Path:
        """The picture of an .xml: by its <filename>, else by the name of the .xml itself; last by a name that only one
        picture below the folder has.

        A <filename> that belongs to another .xml was copied along with that file (`is_borrowed`): then the picture with
        the name of this .xml is meant, where there is one.
        """
        nested = file.parent.relative_to(self.folder)
        stem = self.pictures / nested / file.stem
        named = [self.pictures / file_name, self.pictures / nested / file_name] if file_name else []
        own = [stem.with_name(stem.name + suffix) for suffix in (*IMAGE_SUFFIXES, ".JPG", ".PNG")]
        for path in (*own, *named) if self.is_borrowed(file, file_name) else (*named, *own):
            if os.path.isfile(path):
                return path
        beside = [path for path in self._by_stem.get(file.stem, ()) if path.parent == stem.parent]
        anywhere = self._by_stem.get(Path(file_name.replace("\\", "/")).stem or file.stem, [])
        for candidates in (beside, anywhere):
            if len(candidates) == 1:
                return candidates[0]
        return named[0] if named else stem.with_name(stem.name + ".jpg")

    def is_borrowed(self, file: Path, file_name: str) -> bool:
        """Whether the <filename> of an .xml is that of a picture which has an .xml of its own beside this one."""
        stem = Path(file_name.replace("\\", "/")).stem
        return bool(stem) and stem != file.stem and file.with_name(f"{stem}.xml") in self._named

    @cached_property
    def _named(self) -> frozenset[Path]:
        return frozenset(self.files)

    def unannotated(self) -> list[Path]:
        """Pictures below their folder without an .xml of their name."""
        stems = {file.stem for file in self.files}
        return [path for path in self._listing.pictures if path.stem not in stems]

    @property
    def left_out(self) -> list[Path]:
        """Files among the pictures that isodet does not read."""
        return self._listing.left_out

    def other_files(self) -> Iterable[Path]:
        """The .xml files of the set that `files` does not name."""
        return (path for path in xml_in(self.folder) if path not in self._named)


def voc_places(annotations: Path, images: Path | None) -> VocPlaces:
    """Where the files of the folder or list `annotations` are. Raises `DatasetError`."""
    if os.path.isdir(annotations):
        folder = next((annotations / name for name in _ANNOTATIONS if os.path.isdir(annotations / name)), annotations)
        files = xml_in(folder)
        if not files and folder != annotations:
            folder, files = annotations, xml_in(annotations)
        if not files:
            raise DatasetError.at(folder, "expected .xml files of Pascal VOC in it; there is none")
        return VocPlaces(tuple(files), folder, images or _pictures_of(folder, files[0]), True)
    names = read_lines(annotations, "cannot read this list of names")
    if not names:
        raise DatasetError.at(annotations, "expected names of images, one a line; it has none")
    at = annotations_of_list(annotations, names)
    if at is None:
        raise DatasetError.at(
            annotations,
            f"lists names (the first: {names[0]!r}), and no .xml of these names lies beside it; "
            "expected ImageSets/Main/NAME.txt beside Annotations/, or a list in the folder above the .xml files",
        )
    files = [_named(at, name, annotations, number) for number, name in enumerate(names, start=1)]
    return VocPlaces(tuple(files), at, images or _pictures_of(at, files[0]), False)


def xml_in(folder: Path) -> list[Path]:
    """All .xml files below a folder, in the order of their paths."""
    return [path for path in files_in(folder) if path.suffix.lower() == ".xml"]


def annotations_of_list(path: Path, names: list[str]) -> Path | None:
    """The folder of the .xml files that a list names: Annotations/ beside ImageSets/, the list's own folder, or one in
    that or beside it. None where no such folder has an .xml of one of the first 20 names."""
    place = absolute_path(path).parent
    devkit = place.parent.parent / "Annotations"
    if place.name == "Main" and os.path.isdir(devkit):
        return devkit
    candidates = [devkit, place, *_below(place), *(inner for below in _below(place) for inner in _below(below))]
    candidates += _below(place.parent)
    texts = [text for name in names[:20] for text in _readings(name)]
    return next((place for place in candidates if any(os.path.isfile(place / f"{text}.xml") for text in texts)), None)


def _below(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
    except OSError:
        return []  # a folder beside the data that cannot be listed holds none of it


def _without_flag(name: str) -> str | None:
    """A line of a list of one class (`2008_000008 -1`) without its flag; None for other lines."""
    words = name.rsplit(maxsplit=1)
    return words[0] if len(words) == 2 and words[1] in ("-1", "0", "1") else None


def _readings(name: str) -> list[str]:
    """A line as a name: unchanged, and without a picture's or .xml's suffix or the flag of a list of one class."""
    suffix = Path(name).suffix
    without_suffix = name[: -len(suffix)] if suffix.lower() in (*IMAGE_SUFFIXES, ".xml") else None
    return [text for text in (name, without_suffix, _without_flag(name)) if text is not None]


def _named(folder: Path, name: str, path: Path, number: int) -> Path:
    usual, *variants = (folder / f"{text}.xml" for text in _readings(name))
    if not os.path.isfile(usual) and _without_flag(name) is not None:
        raise DatasetError(
            f"{path}, line {number}: expected one name of an image, got {name!r}; the lists of single "
            "classes (aeroplane_train.txt) are not for detection, take train.txt"
        )
    return next((file for file in (usual, *variants) if os.path.isfile(file)), usual)


def _pictures_of(folder: Path, first: Path) -> Path:
    """JPEGImages/ beside the folder of the .xml files, that folder itself, or one of another usual name."""
    if os.path.isdir(folder.parent / _PICTURES[0]):
        return folder.parent / _PICTURES[0]
    if list_pictures(path for path in sorted(first.parent.glob("*")) if path.stem == first.stem).pictures:
        return folder
    beside = [place / name for place in (folder, folder.parent, folder.parent.parent) for name in _PICTURES]
    return next((path for path in beside if os.path.isdir(path)), folder)
