"""DDOD: classes and boxes with positives of their own, against loops, and what the loss makes of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isodet.strict import ConfigError
from models.assigners import BACKGROUND, IGNORED, assign
from models.assigners.atss import assign_atss
from models.assigners.ddod import assign_ddod
from models.assigners.tal import Predictions
from models.boxes import iou as overlap_of
from models.checkpoint import build_detector
from models.coders import decode
from models.config.choices import ASSIGNERS
from models.config.model import AssignConfig, ModelConfig, model_config
from models.detector import Detector, Raw
from models.loss import REGION, detection_loss
from models.losses.boxes import giou_loss
from models.losses.classification import bce_loss, focal_loss
from models.priors import Priors
from tests.export.networks import save_network
from tests.models.small import BOXES, LABELS, SIZE, grid_for, images, losses_without_objects, small
from tests.models.test_assigners import NINE, ONE, batches, compare, iou, loop_atss, padded
from tests.models.test_tal import predicted

DDOD = AssignConfig(kind="ddod", alpha=0.8)


def loop_ddod(
    grid: Priors, boxes: list[list[float]], predictions: Predictions, image: int, topk: int, alpha: float
) -> tuple[list[int], set[int]]:
    """ATSS with s^(1 - alpha) u^alpha in place of the anchor's IoU, in float64."""
    predicted_boxes = predictions.boxes_xyxy[image].double().tolist()

    def fit(g: int, i: int) -> float:
        score = 1 / (1 + math.exp(-float(predictions.logits[image, i, predictions.gt_labels[image, g]])))
        overlap: float = iou(predicted_boxes[i], boxes[g])
        return score ** (1 - alpha) * overlap**alpha

    return loop_atss(grid, boxes, topk, fit)


@pytest.mark.parametrize("G", [0, 3])
@pytest.mark.parametrize("anchors", [ONE, NINE])
def test_without_objects_everything_is_background(G, anchors):
    grid = grid_for(SIZE, anchors)
    boxes = torch.tensor([8.0, 8.0, 60.0, 60.0]).expand(2, G, 4)
    predictions = predicted(grid, boxes)._replace(gt_labels=torch.full((2, G), -1))
    matched = assign(DDOD, grid, boxes, torch.zeros(2, G, dtype=torch.bool), predictions=predictions)
    assert matched.shape == (2, len(grid.strides)) and (matched == BACKGROUND).all()


@given(batches(), st.integers(0, 2**20), st.sampled_from([1, 4, 9]), st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_the_assignment_is_the_papers(batch, seed, topk, alpha):
    size_hw, objects = batch
    grid = grid_for(size_hw, ONE)
    boxes, valid = padded(objects)
    predictions = predicted(grid, boxes, seed)
    matched = assign_ddod(grid, boxes, valid, topk, alpha, predictions=predictions)
    compare(matched, [loop_ddod(grid, rows, predictions, b, topk, alpha) for b, rows in enumerate(objects)])


@given(batches(), st.sampled_from([4, 9]))
def test_it_is_atss_where_the_predicted_boxes_are_the_anchors_and_scores_count_nothing(batch, topk):
    size_hw, objects = batch
    grid = grid_for(size_hw, ONE)
    boxes, valid = padded(objects)
    anchors = grid.boxes_xyxy.expand(len(objects), -1, 4)
    predictions = predicted(grid, boxes)._replace(boxes_xyxy=anchors)
    matched = assign_ddod(grid, boxes, valid, topk, 1.0, predictions=predictions)
    assert torch.equal(matched, assign_atss(grid, boxes, valid, topk))


def test_padding_and_ignore_regions_are_kept_out():
    grid = grid_for((96, 128), ONE)
    boxes = torch.tensor([[[4.0, 4, 60, 60], [30, 4, 128, 96], [90, 70, 120, 90]]])
    valid, regions = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
    config = AssignConfig(kind="ddod", alpha=0.8, padding="absent", ignore_over="objects", ignore_iof=0.3)
    predictions, sizes = predicted(grid, boxes), torch.tensor([[64, 96]])
    matched = assign(config, grid, boxes, valid, regions, sizes, predictions)[0]
    beyond = ~grid.within(sizes)[0]
    assert (matched[beyond] == IGNORED).all() and (matched == 0).any() and (matched[~beyond] == IGNORED).any()


def test_the_second_assignment_has_the_weight_of_boxes_and_others_have_none():
    config = small(assign={"kind": "ddod", "box_alpha": 0.3})
    assert (config.assign.alpha, config.assign.topk) == (0.8, 9)
    assert config.assign.for_boxes == AssignConfig(kind="ddod", alpha=0.3, box_alpha=0.3)
    for kind in ASSIGNERS:
        if kind != "ddod":
            assert AssignConfig(kind=kind).for_boxes == AssignConfig(kind=kind)


# ---------------------------------------------------------------------------------------------
# the loss


def ddod(**keys: Any) -> ModelConfig:
    return small(**{"assign": {"kind": "ddod"}, "quality": "iou", **keys})


def outputs(config: ModelConfig) -> tuple[Raw, Priors]:
    """Boxes near their anchors, as at the start of a training, and scores that differ."""
    grid, generator = grid_for(SIZE, config.anchors), torch.Generator().manual_seed(0)
    N = len(grid.strides)
    logits = 2 * torch.randn(2, N, 3, generator=generator) - 2
    boxes, quality = torch.randn(2, N, 4, generator=generator), torch.randn(2, N, generator=generator)
    return Raw(logits.requires_grad_(), boxes.requires_grad_(), quality.requires_grad_()), grid


@pytest.mark.parametrize("G", [0, 2])
def test_empty_pictures_teach_background_only(G):
    raw, grid = outputs(ddod())
    losses = losses_without_objects(ddod(), raw, grid, G)
    assert losses.cls > 0 and losses.box == losses.quality == 0
    assert not raw.boxes.grad.any() and not raw.quality.grad.any() and raw.logits.grad.isfinite().all()


@pytest.mark.parametrize("cls", ["focal", "bce"])
def test_classes_and_boxes_have_their_own_positives_and_divisors(cls):
    """Point by point, with two assignments that differ."""
    config = ddod(loss={"cls": cls})
    raw, grid = outputs(config)
    boxes = decode(config.box, grid, raw.boxes)
    predictions = Predictions(raw.logits.detach(), boxes.detach(), LABELS)
    of_classes, of_boxes = (
        assign_ddod(grid, BOXES, LABELS >= 0, 9, alpha, predictions=predictions) for alpha in (0.8, 0.5)
    )
    assert not torch.equal(of_classes >= 0, of_boxes >= 0)
    targets, box, quality = torch.zeros_like(raw.logits), torch.zeros(()), torch.zeros(())
    for b, n in (of_classes >= 0).nonzero().tolist():
        targets[b, n, LABELS[b, of_classes[b, n]]] = 1
    for b, n in (of_boxes >= 0).nonzero().tolist():
        wanted = BOXES[b, of_boxes[b, n]]
        box = box + giou_loss(boxes[b, n], wanted)
        quality = quality + bce_loss(raw.quality[b, n], overlap_of(boxes[b, n].detach(), wanted))
    class_divisor, box_divisor = ((m >= 0).sum(dim=1).clamp(min=1).sum() for m in (of_classes, of_boxes))
    losses = detection_loss(config, raw, grid, BOXES, LABELS)
    each = {"focal": focal_loss, "bce": bce_loss}[cls]
    torch.testing.assert_close(losses.cls, each(raw.logits, targets).sum() / class_divisor)
    torch.testing.assert_close(losses.box, 2 * box / box_divisor)
    torch.testing.assert_close(losses.quality, quality / box_divisor)
    losses.total.backward()
    for grad in (raw.boxes.grad, raw.quality.grad[..., None]):
        assert torch.equal(grad.any(dim=-1), of_boxes >= 0)


def test_a_score_that_is_the_quality_learns_the_iou_at_the_positives_of_classes():
    config = ddod(quality="none", loss={"cls": "qfl"})
    raw, grid = outputs(config)
    boxes = decode(config.box, grid, raw.boxes.detach())
    logits = raw.logits.detach().clone()
    matched = assign_ddod(grid, BOXES, LABELS >= 0, predictions=Predictions(logits, boxes, LABELS))
    image, prior = (matched >= 0).nonzero(as_tuple=True)
    owner = matched[image, prior]
    logits[image, prior, LABELS[image, owner]] = overlap_of(boxes[image, prior], BOXES[image, owner]).logit()
    # The assignment of the new scores is another one in general; where it is the same, nothing is left to learn.
    again = assign_ddod(grid, BOXES, LABELS >= 0, predictions=Predictions(logits, boxes, LABELS))
    leaf = logits.requires_grad_()
    detection_loss(config, raw._replace(logits=leaf, quality=None), grid, BOXES, LABELS).cls.backward()
    same = (again == matched) & (matched >= 0)
    assert same.any()
    b, n = same.nonzero(as_tuple=True)
    assert (leaf.grad[b, n, LABELS[b, matched[b, n]]].abs() < 1e-6).all()


def test_each_image_may_have_its_own_divisor_and_processes_share_two():
    raw, grid = outputs(ddod())
    config = ddod(loss={"normalizer": "image"})
    losses = detection_loss(config, raw, grid, BOXES, LABELS)
    each = [
        detection_loss(config, Raw(*(part[b : b + 1] for part in raw)), grid, BOXES[b : b + 1], LABELS[b : b + 1])
        for b in range(2)
    ]
    torch.testing.assert_close(losses.total, (each[0].total + each[1].total) / 2)
    plain, shared = (detection_loss(ddod(), raw, grid, BOXES, LABELS, total=t) for t in (lambda x: 5 * x, lambda x: x))
    for term, alone in zip(plain, shared, strict=True):
        torch.testing.assert_close(5 * term, alone)


def test_a_region_beside_an_object_takes_its_background_out_of_the_loss():
    raw, grid = outputs(ddod())
    detection_loss(ddod(), raw, grid, BOXES, torch.tensor([[0, REGION], [1, -1]])).total.backward()
    within = overlap_of(grid.boxes_xyxy, BOXES[0, 1].expand(len(grid.boxes_xyxy), 4)) > 0.3
    assert within.any() and not raw.logits.grad[0].any(dim=-1).all() and raw.logits.grad[1].any(dim=-1).all()


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_it_learns_and_a_checkpoint_brings_it_back(amp, tmp_path):
    torch.manual_seed(0)
    config = ddod(head={"depth": 1, "prior": 0.1})
    model = Detector(config).train()
    optimizer, history = torch.optim.AdamW(model.parameters(), 3e-3), []
    for _ in range(30):
        with torch.autocast("cpu", amp, enabled=amp is not None):
            raw = model(images())
        losses = detection_loss(config, raw, model.priors(), BOXES, LABELS)
        optimizer.zero_grad()
        losses.total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        history.append([losses.cls.item(), losses.box.item()])
    first, last = torch.tensor(history[:3]).mean(0), torch.tensor(history[-3:]).mean(0)
    assert (last < first).all()
    again, _ = build_detector(save_network(tmp_path / "a.pt", model))
    assert again.config == config
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model.eval()(images()), again.eval()(images()), strict=True))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"alpha": 1.5}, "model.assign.alpha: expected 0 to 1, a weight"),
        ({"alpha": -0.5}, "model.assign.alpha: expected 0 to 20"),
        ({"box_alpha": 1.5}, "model.assign.box_alpha: expected 0 to 1"),
        ({"box_alpha": -0.1}, "model.assign.box_alpha: expected 0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(keys, message):
    with pytest.raises(ConfigError, match=message):
        ddod(assign={"kind": "ddod", **keys})


def test_the_weight_of_classes_is_the_papers_wherever_it_is_asked_for():
    assert model_config({"classes": ["a"], "assign": {"kind": "ddod"}}).assign.alpha == 0.8
    assert model_config({"classes": ["a"], "assign": {"kind": "ddod", "alpha": 0.6}}).assign.alpha == 0.6
    assert model_config({"classes": ["a"], "detector": "tood"}).assign.alpha == 1.0
