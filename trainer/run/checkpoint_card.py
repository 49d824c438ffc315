"""The card of a checkpoint, trained here or imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from isodet.strict import to_mapping
from models.checkpoint import read_checkpoint, save_checkpoint
from models.config.model import ModelConfig
from runtime.card.card import Card
from runtime.images.image import ShortSide
from trainer.data.train_set import resize_rule
from trainer.run.provenance import package_versions


def checkpoint_card(
    model: ModelConfig,
    hashes: Mapping[str, str],
    training: Mapping[str, Any] | None = None,
    created: str = "",
    quantization: Mapping[str, Any] | None = None,
) -> Card:
    """The card of a checkpoint of `model`, without scores. `hashes`: sha256 of the files that it was made from."""
    post, resize = model.postprocess, resize_rule(model)
    return Card(
        kind="checkpoint",
        classes=model.classes,
        input_size_hw=model.input_size_hw,
        score_threshold=post.score_threshold,
        nms={
            "kind": "portable",
            "iou": post.nms_iou,
            "candidates": post.candidates,
            "detections": post.detections,
        },
        resize=asdict(resize) if isinstance(resize, ShortSide) else {},
        versions=package_versions(),
        hashes=hashes,
        model=to_mapping(model),
        training=training or {},
        created=created,
        precision="int8" if quantization else "fp32",
        quantization=quantization or {},
    )


def keep_thresholds(checkpoint: str | Path, thresholds: Mapping[str, float]) -> None:
    """Write thresholds by class name into the card of a checkpoint; everything else in the file stays.

    Raises `CheckpointError` or `CardError` for a file or thresholds that cannot be used.
    """
    content = read_checkpoint(checkpoint)
    card = replace(Card.from_json(content["card"], checkpoint), thresholds=dict(thresholds))
    save_checkpoint(checkpoint, content["model"], card.to_json(), content["resume"])
