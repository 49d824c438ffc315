"""A tensor of another shape is named where it enters, with the shape that was expected; broadcasting would hide it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.assigners import assign
from models.coders import decode, encode_delta
from models.config.model import ModelConfig, model_config
from models.deploy.graph import Deploy
from models.deploy.nms import PortableNms
from models.detector import Detector, Raw
from models.loss import detection_loss
from models.priors import Priors, feature_sizes, priors
from runtime.backends.protocol import RawOutputs
from runtime.suppression import suppress

SIZE = (64, 96)
BOXES, LABELS = torch.tensor([[[4.0, 6.0, 40.0, 50.0]]]).expand(2, 1, 4), torch.tensor([[0], [1]])


def network(**keys: object) -> tuple[ModelConfig, Priors, Raw]:
    config = model_config({"classes": ["a", "b", "c"], "input_size_hw": list(SIZE), **keys})
    grid = priors(feature_sizes(SIZE, (3, 7)), (8, 16, 32, 64, 129), config.anchors)
    N = len(grid.strides)
    return config, grid, Raw(torch.zeros(2, N, 3), torch.zeros(2, N, 4), torch.zeros(2, N))


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"raw": {"logits": torch.zeros(2, 129, 1)}},
            r"raw.logits: expected the shape \[2, 129, 3\], got \[2, 129, 1\]",
        ),
        ({"raw": {"boxes": torch.zeros(1, 129, 4)}}, r"raw.boxes: expected the shape \[2, 129, 4\], got \[1, 129, 4\]"),
        ({"raw": {"quality": torch.zeros(2, 129, 1)}}, r"raw.quality: expected the shape \[2, 129\]"),
        ({"boxes": BOXES[:1]}, r"gt_boxes_xyxy: expected the shape \[2, any, 4\], got \[1, 1, 4\]"),
        ({"labels": LABELS.expand(2, 3)}, r"gt_labels: expected the shape \[2, 1\], got \[2, 3\]"),
        ({"sizes": torch.zeros(2)}, r"sizes_hw: expected the shape \[2, 2\], got \[2\]"),
    ],
)
def test_of_the_loss(changed, message):
    config, grid, raw = network()
    assert raw.logits.shape[1] == 129
    raw = raw._replace(**changed.get("raw", {}))
    boxes, labels = changed.get("boxes", BOXES), changed.get("labels", LABELS)
    with pytest.raises(AssertionError, match=message):
        detection_loss(config, raw, grid, boxes, labels, changed.get("sizes"))


def test_of_the_assigners():
    config, grid, _ = network()
    with pytest.raises(AssertionError, match=r"gt_boxes_xyxy: expected the shape \[2, 1, 4\], got \[2, 1, 5\]"):
        assign(config.assign, grid, torch.zeros(2, 1, 5), LABELS >= 0)
    with pytest.raises(AssertionError, match=r"gt_ignore: expected the shape \[2, 1\], got \[2\]"):
        assign(config.assign, grid, BOXES, LABELS >= 0, torch.ones(2, dtype=torch.bool))


def test_of_the_coders():
    config, grid, raw = network()
    with pytest.raises(AssertionError, match=r"codes: expected the shape \[..., 129, 4\], got \[2, 1, 4\]"):
        decode(config.box, grid, raw.boxes[:, :1])
    with pytest.raises(AssertionError, match=r"boxes_xyxy: expected the shape \[..., 4\], got \[129, 5\]"):
        encode_delta(grid.boxes_xyxy, torch.zeros(129, 5), config.box.stds)


def test_of_the_deployed_graph():
    config, _, raw = network(backbone={"name": "resnet18", "width": 0.125}, neck={"channels": 16})
    deploy = Deploy(Detector(config, load_weights=False).eval())
    with pytest.raises(AssertionError, match=r"images: expected the shape \[any, any, any, 3\], got \[1, 3, 64, 96\]"):
        deploy(torch.zeros(1, 3, *SIZE, dtype=torch.uint8))
    with pytest.raises(AssertionError, match=r"raw.boxes: expected the shape \[2, 129, 4\], got \[2, 1, 4\]"):
        deploy.candidates(raw._replace(boxes=raw.boxes[:, :1]))
    with pytest.raises(AssertionError, match=r"boxes: expected the shape \[2, 7, 4\], got \[2, 1, 4\]"):
        deploy.detections(torch.zeros(2, 1, 4), torch.zeros(2, 7), torch.zeros(2, 7))


def test_of_suppression():
    nms = PortableNms(0.5, 10)
    with pytest.raises(AssertionError, match=r"scores: expected the shape \[2, 7\], got \[2, 1\]"):
        nms(torch.zeros(2, 7, 4), torch.zeros(2, 1), torch.zeros(2, 7))
    with pytest.raises(AssertionError, match=r"boxes_xyxy: expected the shape \[2, 7, 4\], got \[2, 1, 4\]"):
        nms(torch.zeros(2, 1, 4), torch.zeros(2, 7), torch.zeros(2, 7))
    boxes, scores = np.zeros((2, 7, 4), np.float32), np.zeros((2, 7), np.float32)
    with pytest.raises(AssertionError, match=r"labels: expected the shape \[2, 7\], got \[1, 7\]"):
        suppress(RawOutputs(None, boxes, scores, np.zeros((1, 7), np.int32)), 0.5, 10)
