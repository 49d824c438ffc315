"""Other projects' checkpoints as ours: `trainer import`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from models.checkpoint import save_checkpoint
from models.importers import COCO_INPUT_HW, Imported, ImportRefused, Source, import_checkpoint
from runtime.card.card import sha256_file
from trainer.run.checkpoint_card import checkpoint_card


def import_detector(
    path: str | Path,
    out: str | Path = "best.pt",
    source: Source | None = None,
    classes: Sequence[str] | None = None,
    input_size_hw: tuple[int, int] | None = None,
    style: Literal["pytorch", "caffe"] | None = None,
    norm_eps: float | None = None,
    resize: tuple[int, int] | None = None,
) -> Imported:
    """Write the checkpoint `path` of torchvision or mmdetection to `out` as isodet's, with its card.

    Arguments are those of `models.importers.import_checkpoint`. Raises `ImportRefused`; then nothing is written.
    """
    if Path(out).exists() and Path(path).exists() and Path(out).samefile(path):
        raise ImportRefused.at(path, "it would be overwritten by its own import; name another file with --out")
    imported = import_checkpoint(path, source, classes, input_size_hw or COCO_INPUT_HW, style, norm_eps, resize)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    card = checkpoint_card(imported.config, {"imported_file": sha256_file(path)}, created=now)
    save_checkpoint(out, imported.state, card.to_json())
    return imported
