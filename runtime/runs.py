"""Run folders as `trainer fit` writes them: the files that a command takes when it is given none."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from isodet.errors import IsodetError
from runtime.artifact import read_card
from runtime.card.card import Card, sha256_file
from runtime.datasets import FORMATS, read_dataset, read_split
from runtime.datasets.annotations import CocoDataset


class RunsError(IsodetError, ValueError):
    """A file that was not named and that no run has; the message says how to make or name it."""


def newest(*names: str, runs: str | PathLike[str] = "runs") -> Path:
    """The newest file `runs/*/<name>`, of the first of `names` that any run has. Raises `RunsError` without one."""
    for name in names:
        if files := list(Path(runs).glob(f"*/{name}")):
            return max(files, key=lambda path: path.stat().st_mtime)
    raise RunsError(
        f"no file was named, and there is no {' or '.join(names)} in {Path(runs)}/*/; "
        "name one, or train with `trainer fit`",
        path=runs,
    )


def validation_data(
    card: Card,
    source: str | PathLike[str],
    annotations: str | PathLike[str] | None = None,
    images: str | PathLike[str] | None = None,
) -> CocoDataset:
    """The data to evaluate a model on: the given `annotations`, else the validation data of its training, by its card.

    annotations, images: of any format that `read_dataset` reads; a YOLO data.yaml gives its `val`.
    `source` names the model in errors. Raises `RunsError` where no data is named, `DatasetError` where it cannot be
    read.
    """
    if annotations is not None:
        return read_dataset(annotations, images, card.classes)
    if images is not None:
        raise RunsError("a folder of images alone is not enough: give its annotations, too")
    split = _val_split(card, Path(source))
    if "annotations" not in split:
        raise RunsError.at(source, "its card names no validation data; give --annotations FILE (--images FOLDER)")
    kind = split.get("format", "auto")
    if kind not in ("auto", *FORMATS):
        raise RunsError.at(source, f"its card names validation data of the unknown format {kind!r}; give --annotations")
    return read_split(split, card.classes, "val")


def _val_split(card: Card, source: Path) -> dict[str, Any]:
    """The validation data that a card names, with paths that exist; {} where it names none.

    A checkpoint has absolute paths. The paths of an artifact are relative to the folder of its checkpoint, or are names
    alone: these are looked up in the checkpoint beside the artifact. Raises `RunsError` where it is not there.
    """
    split = _named_val(card)
    if "annotations" not in split or Path(split["annotations"]).is_absolute():
        return split
    folder = source.resolve().parent
    paths = {key: str(folder / split[key]) for key in ("annotations", "images", "pictures") if split.get(key)}
    if all(Path(path).exists() for path in paths.values()):
        return {**split, **paths}
    for checkpoint in sorted(folder.glob("*.pt")):
        if sha256_file(checkpoint) == card.hashes.get("checkpoint"):
            return _named_val(read_card(checkpoint, check_hashes=False))
    raise RunsError.at(
        source,
        f"the validation data that its card names, {split['annotations']}, is not beside it, nor the "
        "checkpoint that knows where it is; give --annotations FILE (--images FOLDER)",
    )


def _named_val(card: Card) -> dict[str, Any]:
    data = card.training.get("data")
    split = data.get("val") if isinstance(data, Mapping) else None
    return dict(split) if isinstance(split, Mapping) else {}
