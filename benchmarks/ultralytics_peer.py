"""ultralytics' yolo11n, trained by its own code and defaults, judged by isodet's evaluation.

ultralytics is never a dependency: this file is used only where somebody installed it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from runtime import Card, Detector
from runtime.backends.protocol import Backend, Images, RawOutputs
from runtime.card.card import Nms
from runtime.evaluation.evaluate import Evaluation, evaluate
from trainer.config.train import TrainConfig
from trainer.data.datasets import val_data
from trainer.prepare.convert import convert

LOWEST_SCORE, DETECTIONS = 0.001, 300
"""As its own validation has them."""


class UltralyticsBackend(Backend):
    """A trained YOLO behind isodet's `Detector`."""

    device, max_batch = "cpu", 8
    fixed_batch: int | None = None

    def __init__(self, model: object, card: Card) -> None:
        from ultralytics import __version__

        self.model, self.card, self.name = model, card, f"ultralytics {__version__}"

    def __call__(self, images: Images) -> RawOutputs:
        height, width = self.card.input_size_hw
        size = (len(images), DETECTIONS)
        counts = np.zeros((len(images), 1), np.int32)
        raw = RawOutputs(
            counts, np.zeros((*size, 4), np.float32), np.zeros(size, np.float32),
            np.zeros(size, np.int32),
        )  # fmt: skip
        found = self.model.predict(
            list(images), imgsz=(height, width), conf=LOWEST_SCORE, iou=0.7, max_det=DETECTIONS, device="cpu",
            verbose=False,
        )  # fmt: skip
        for i, one in enumerate(found):
            boxes = one.boxes.data.numpy()  # xyxy, score, label
            boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
            counts[i] = n = len(boxes)
            raw.boxes[i, :n], raw.scores[i, :n], raw.labels[i, :n] = boxes[:, :4], boxes[:, 4], boxes[:, 5]
        return raw


def train_yolo(config: TrainConfig, out: Path, weights: Path | None = None) -> Evaluation:
    """Train by its defaults for `config`'s data, size, batch, epochs, mirroring and seed.

    weights: a file of ultralytics to start from, such as yolo11n.pt; None: from scratch.
    """
    from ultralytics import YOLO

    data = (out / "yolo").resolve()
    if not (data / "data.yaml").exists():
        for split, where in (("train", config.data.train_splits[0]), ("val", config.data.val)):
            convert(where.annotations, "yolo", data / split, where.images, config.model.classes, "copy", split=split,
                    voc_origin=where.voc_origin)  # fmt: skip
        names = "\n".join(f"  {i}: '{name}'" for i, name in enumerate(config.model.classes))
        text = f"path: {data}\ntrain: train/images\nval: val/images\nnames:\n{names}\n"
        (data / "data.yaml").write_text(text)
    model = YOLO("yolo11n.yaml" if weights is None else str(weights))
    model.train(
        data=str(data / "data.yaml"), epochs=config.schedule.epochs, imgsz=max(config.model.input_size_hw),
        batch=config.images_per_batch, pretrained=weights is not None, device="cpu", workers=0, seed=config.seed,
        fliplr=config.augment.flip,
        val=False, plots=False, project=str((out / "yolo-runs").resolve()), name=config.name, exist_ok=True,
        verbose=False,
    )  # fmt: skip
    trained = YOLO(str(out / "yolo-runs" / config.name / "weights" / "last.pt"))
    nms: Nms = {"kind": "portable", "iou": 0.7, "candidates": 1000, "detections": DETECTIONS}
    card = Card("checkpoint", config.model.classes, config.model.input_size_hw, LOWEST_SCORE, nms)
    return evaluate(Detector(UltralyticsBackend(trained, card)), val_data(config))
