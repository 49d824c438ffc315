"""Evaluation with other merging than the graph's, and over several views of each image (test-time augmentation).

It needs the candidates before NMS, which an exported graph does not give: a checkpoint only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from isodet.errors import ArgumentError
from models.deploy.graph import Deploy
from runtime.backends.torch.backend import TorchBackend
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.images.device_frames import COPY, DeviceFrame
from runtime.images.frames import FrameError
from runtime.images.image import Image, Letterbox, Resize
from runtime.tiles import Tiles
from trainer.augment.geometry import scaled_rule
from trainer.tta.box_fusion import Candidates, Nms, greedy_nms, join, merge

SCALES = (0.75, 1.25)
"""What `scales` adds to the image as it is."""


@dataclass(frozen=True)
class View:
    """One view of an image: the size of its input over the usual one, and whether it is mirrored left to right."""

    scale: float = 1.0
    flip: bool = False


def parse_views(text: str) -> tuple[View, ...]:
    """Views from text such as `flip,scales` or `flip,0.5,1.5`: the image as it is, at each scale, each mirrored too.

    Raises ValueError for anything else.
    """
    scales, flip = [1.0], False
    for part in (p.strip() for p in text.split(",")):
        if part == "flip":
            flip = True
            continue
        try:
            added = SCALES if part == "scales" else (float(part),)
        except ValueError:
            added = (0.0,)
        if not all(0.25 <= scale <= 4 for scale in added):
            raise ArgumentError.of(
                "tta", f"expected flip, scales, or factors from 0.25 to 4, as flip,0.75,1.25; got {part!r}"
            )
        scales += [scale for scale in added if scale not in scales]
    return tuple(View(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,)))


class TtaDetector(Detector):
    """A `Detector` of a checkpoint whose candidates, of all `views` together, are merged by `nms`, in each tile.

    The candidates of each view are mapped back to the frame before they are merged. Under `wbf` each of several views
    goes through greedy NMS before they are fused. With `nms` "hard" and one view it finds what `Detector` finds. Raises
    ValueError for a file that is not a checkpoint.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        nms: Nms = "hard",
        views: Sequence[View] = (View(),),
        device: str = "auto",
        tiles: Tiles | Literal["card"] | None = "card",
    ) -> None:
        super().__init__(checkpoint, device=device, tiles=tiles)
        if not isinstance(self.backend, TorchBackend) or not isinstance(self.backend.model, Deploy):
            raise ArgumentError.at(
                checkpoint,
                "--nms and --tta merge candidates before NMS, which an exported graph does not give; "
                "name the checkpoint (.pt) that it was exported from",
            )
        self.deploy, self.nms, self.views = self.backend.model, nms, tuple(views)
        self.device = torch.device(self.backend.device)

    def _detect(
        self, images: Sequence[Any], placements: Sequence[Letterbox], limits: float | NDArray[np.float32]
    ) -> list[Detections]:
        if isinstance(images[0], DeviceFrame):
            raise FrameError(f"expected frames in host memory: each view is letterboxed there; copy them: {COPY}")
        per_class = np.broadcast_to(np.asarray(limits, np.float32), len(self.class_names))
        merged = map(self._merged, images)
        return [detections[detections.scores >= per_class[detections.labels]] for detections in merged]

    def _merged(self, frame: Image) -> Detections:
        post = self.deploy.config.postprocess
        lowest = post.score_threshold if post.threshold_on == "score" else 0.0
        parts = [self._candidates(frame, view, lowest) for view in self.views]
        if self.nms == "wbf" and len(parts) > 1:
            # The paper fuses reports of several models and counts those that agree: each view may report a box once.
            parts = [greedy_nms(part.ranked(), post.nms_iou) for part in parts]
        merged = merge(join(parts), self.nms, post.nms_iou, lowest, len(self.views))
        best = merged.take(np.arange(min(post.detections, len(merged.scores))))
        height, width = frame.shape[:2]
        boxes = np.clip(best.boxes_xyxy, 0, (width, height, width, height)).astype(np.float32)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        scores, labels = best.scores[inside].astype(np.float32), best.labels[inside].astype(np.int32)
        return Detections(boxes[inside], scores, labels, self.class_names)

    @torch.no_grad()
    def _candidates(self, frame: Image, view: View, lowest: float) -> Candidates:
        """The candidates of one view in pixels of the frame, not clipped to it."""
        placement = scaled(self._resize, view.scale).fit((frame.shape[0], frame.shape[1]))
        image = placement.apply(np.ascontiguousarray(frame[:, ::-1]) if view.flip else frame)
        images = torch.from_numpy(image[None]).to(self.device)
        columns = self.deploy.candidates(self.deploy.detector(images), (images.shape[1], images.shape[2]))
        boxes, scores, labels = (column[0].double().cpu().numpy() for column in columns)
        keep = scores > lowest
        if self.deploy.config.postprocess.empty_boxes == "drop":
            keep &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        return Candidates(_to_frame(boxes[keep], placement, view), scores[keep], labels[keep].astype(np.int64))


def _to_frame(boxes_xyxy: NDArray[np.float64], placement: Letterbox, view: View) -> NDArray[np.float64]:
    """Boxes [K, 4] of a view's input in pixels of the frame, not clipped to it."""
    boxes = boxes_xyxy / (placement.scale_xy * 2)
    if view.flip:
        width = placement.source_hw[1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    return boxes


def scaled(resize: Resize, scale: float) -> Resize:
    """The rule for an input of `scale` times the size, its sides multiples of 32 where they were scaled."""
    return resize if scale == 1 else scaled_rule(resize, scale, multiple=32)
