"""A tensor of another shape is named where it enters, with the shape that was expected; broadcasting would hide it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.assigners import assign
from models.coders import decode, encode_delta
from models.deploy.graph import Deploy
from models.deploy.nms import PortableNms
from models.detector import Detector, Raw
from models.loss import detection_loss
from runtime.backends.protocol import RawOutputs
from runtime.suppression import suppress
from tests.models.small import SIZE, grid_for, small

BOXES, LABELS = torch.tensor([[[4.0, 6.0, 40.0, 50.0]]]).expand(2, 1, 4), torch.tensor([[0], [1]])


CONFIG = small()
GRID = grid_for(SIZE, CONFIG.anchors)
RAW = Raw(torch.zeros(2, 129, 3), torch.zeros(2, 129, 4), torch.zeros(2, 129))


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"raw": {"logits": torch.zeros(2, 129, 1)}}, r"raw.logits: .* \[2, 129, 3\], got \[2, 129, 1\]"),
        ({"raw": {"boxes": torch.zeros(1, 129, 4)}}, r"raw.boxes: expected the shape \[2, 129, 4\], got \[1, 129, 4\]"),
        ({"raw": {"quality": torch.zeros(2, 129, 1)}}, r"raw.quality: expected the shape \[2, 129\]"),
        ({"boxes": BOXES[:1]}, r"gt_boxes_xyxy: expected the shape \[2, any, 4\], got \[1, 1, 4\]"),
        ({"labels": LABELS.expand(2, 3)}, r"gt_labels: expected the shape \[2, 1\], got \[2, 3\]"),
        ({"sizes": torch.zeros(2)}, r"sizes_hw: expected the shape \[2, 2\], got \[2\]"),
    ],
)
def test_of_the_loss(changed, message):
    assert len(GRID.strides) == 129
    raw = RAW._replace(**changed.get("raw", {}))
    boxes, labels = changed.get("boxes", BOXES), changed.get("labels", LABELS)
    with pytest.raises(AssertionError, match=message):
        detection_loss(CONFIG, raw, GRID, boxes, labels, changed.get("sizes"))


BOOLS = torch.ones(2, dtype=torch.bool)
OTHERS = {
    "assigners, boxes": (lambda: assign(CONFIG.assign, GRID, torch.zeros(2, 1, 5), LABELS >= 0),
                         r"gt_boxes_xyxy: expected the shape \[2, 1, 4\], got \[2, 1, 5\]"),
    "assigners, regions": (lambda: assign(CONFIG.assign, GRID, BOXES, LABELS >= 0, BOOLS),
                           r"gt_ignore: expected the shape \[2, 1\], got \[2\]"),
    "decoder": (lambda: decode(CONFIG.box, GRID, RAW.boxes[:, :1]),
                r"codes: expected the shape \[..., 129, 4\], got \[2, 1, 4\]"),
    "encoder": (lambda: encode_delta(GRID.boxes_xyxy, torch.zeros(129, 5), CONFIG.box.stds),
                r"boxes_xyxy: expected the shape \[..., 4\], got \[129, 5\]"),
    "graph, images": (lambda: deploy()(torch.zeros(1, 3, *SIZE, dtype=torch.uint8)),
                      r"images: expected the shape \[any, any, any, 3\], got \[1, 3, 64, 96\]"),
    "graph, raw": (lambda: deploy().candidates(RAW._replace(boxes=RAW.boxes[:, :1])),
                   r"raw.boxes: expected the shape \[2, 129, 4\], got \[2, 1, 4\]"),
    "graph, candidates": (lambda: deploy().detections(torch.zeros(2, 1, 4), torch.zeros(2, 7), torch.zeros(2, 7)),
                          r"boxes: expected the shape \[2, 7, 4\], got \[2, 1, 4\]"),
    "nms, scores": (lambda: PortableNms(0.5, 10)(torch.zeros(2, 7, 4), torch.zeros(2, 1), torch.zeros(2, 7)),
                    r"scores: expected the shape \[2, 7\], got \[2, 1\]"),
    "nms, boxes": (lambda: PortableNms(0.5, 10)(torch.zeros(2, 1, 4), torch.zeros(2, 7), torch.zeros(2, 7)),
                   r"boxes_xyxy: expected the shape \[2, 7, 4\], got \[2, 1, 4\]"),
    "suppression": (lambda: suppress(RawOutputs(None, *arrays((2, 7, 4), (2, 7), (1, 7))), 0.5, 10),
                    r"labels: expected the shape \[2, 7\], got \[1, 7\]"),
}  # fmt: skip


def deploy() -> Deploy:
    return Deploy(Detector(small(), load_weights=False).eval())


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [np.zeros(shape, np.float32) for shape in shapes]


@pytest.mark.parametrize("call, message", OTHERS.values(), ids=OTHERS)
def test_of_all_others(call, message):
    with pytest.raises(AssertionError, match=message):
        call()
