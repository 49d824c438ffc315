"""Run folders as `trainer fit` writes them: what a command takes when it is told no file."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from runtime.card import Card
from runtime.coco import CocoDataset, read_coco


class RunsError(ValueError):
    """A file that was not named and that no run has; the message says how to get or name it."""


def newest(*names: str, runs: str | PathLike[str] = "runs") -> Path:
    """The newest `runs/*/<name>` of the first of `names` that any run has. Raises `RunsError` if there is none."""
    for name in names:
        found = sorted(Path(runs).glob(f"*/{name}"), key=lambda path: path.stat().st_mtime)
        if found:
            return found[-1]
    raise RunsError(
        f"no file was named, and there is no {' or '.join(names)} in {Path(runs)}/*/; "
        "name one, or train with `trainer fit`"
    )


def validation_data(
    card: Card,
    source: str | PathLike[str],
    annotations: str | PathLike[str] | None = None,
    images: str | PathLike[str] | None = None,
) -> CocoDataset:
    """The COCO data to judge a model on: what is given, else the validation data its card was trained with.

    `source` names the model in errors. Raises `RunsError` where neither is known, `CocoError` where it cannot
    be read.
    """
    if (annotations is None) != (images is None):
        raise RunsError("annotations and images go together: give both or neither")
    if annotations is None or images is None:
        split = card.training.get("data", {}).get("val", {})
        if "annotations" not in split or "images" not in split:
            raise RunsError(
                f"{source}: its card names no validation data; give --annotations FILE.json --images FOLDER"
            )
        annotations, images = split["annotations"], split["images"]
    return read_coco(annotations, images, card.classes)
