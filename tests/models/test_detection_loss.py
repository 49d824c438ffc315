"""Every legal combination of assigner, code, quality, class loss and box loss; the others are refused with a reason."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from isodet.strict import ConfigError, build
from models.assigners import BACKGROUND, IGNORED, assign
from models.boxes import iou
from models.coders import decode
from models.config.choices import ASSIGNERS, BOX_LOSSES
from models.config.model import LossConfig, ModelConfig, model_config
from models.detector import Raw
from models.layers.heads import Head
from models.loss import detection_loss
from models.losses.classification import bce_loss, focal_loss, smoothed
from models.priors import feature_sizes
from tests.models.small import BOXES, LABELS, SIZE, grid_for

KINDS = tuple(ASSIGNERS)
CODES = ("delta", "ltrb", "dfl")
QUALITIES = ("centerness", "iou", "distribution", "none")
BESIDE = ("centerness", "iou")  # that have a loss of their own
CLASS_LOSSES: dict[str, dict[str, Any]] = {
    **{name: {"cls": name} for name in ("focal", "qfl", "vfl", "ghm")},
    "bce": {"cls": "bce", "smoothing": 0.1},
    "bce, mined": {"cls": "bce", "hard_negatives": 3.0},
}
OF_CODES = ("l1", "smooth_l1", "balanced_l1")


def configured(**keys: Any) -> ModelConfig:
    return model_config({"classes": ["a", "b", "c"], "input_size_hw": list(SIZE), "anchors": {"size": 4.0}, **keys})


def outputs(config: ModelConfig) -> tuple[Raw, Any]:
    """Raw outputs as leaves (what a network would say), and their grid."""
    grid = grid_for(SIZE, config.anchors)
    generator, N = torch.Generator().manual_seed(0), len(grid.boxes_xyxy)
    logits = torch.randn(2, N, 3, generator=generator) - 2
    boxes = torch.randn(2, N, config.box.channels, generator=generator) / 2
    quality = None if config.quality == "none" else torch.randn(2, N, generator=generator).requires_grad_()
    return Raw(logits.requires_grad_(), boxes.requires_grad_(), quality), grid


def legal(kind: str, code: str, quality: str, cls: str, box: str) -> bool:
    if quality == "distribution" and (code != "dfl" or cls not in ("qfl", "vfl")):
        return False
    if kind == "tal" and (quality in BESIDE or cls in ("focal", "ghm") or "smoothing" in CLASS_LOSSES[cls]):
        return False
    return not (code != "delta" and box in OF_CODES) and not (cls in ("qfl", "vfl") and quality in BESIDE)


@pytest.mark.parametrize("kind, code, quality", list(itertools.product(KINDS, CODES, QUALITIES)))
def test_every_legal_combination_has_a_finite_loss_and_gradient(kind, code, quality):
    for cls, box in itertools.product(CLASS_LOSSES, BOX_LOSSES):
        keys = {"assign": {"kind": kind}, "box": {"code": code, "loss": box}, "quality": quality}
        keys["loss"] = CLASS_LOSSES[cls]
        if not legal(kind, code, quality, cls, box):
            with pytest.raises(ConfigError, match="is defined on delta codes|set quality: none|assign.kind tal|: dist"):
                configured(**keys)
            continue
        config = configured(**keys)
        raw, grid = outputs(config)
        terms = detection_loss(config, raw, grid, BOXES, LABELS)
        assert all(torch.isfinite(term) for term in terms), (cls, box)
        assert terms.cls > 0 and terms.box > 0 and (terms.quality > 0) == (quality in BESIDE), (cls, box)
        terms.total.backward()
        for part in raw:
            assert part is None or (torch.isfinite(part.grad).all() and part.grad.any()), (cls, box)


@pytest.mark.parametrize("cls", CLASS_LOSSES)
@pytest.mark.parametrize("box", BOX_LOSSES)
@pytest.mark.parametrize("G", [0, 2], ids=["no rows", "padding"])
def test_without_objects_only_background_is_learned(cls, box, G):
    quality = "none" if cls in ("qfl", "vfl") else "centerness"
    config = configured(box={"loss": box}, quality=quality, loss=CLASS_LOSSES[cls])
    raw, grid = outputs(config)
    terms = detection_loss(config, raw, grid, torch.zeros(2, G, 4), torch.full((2, G), -1))
    terms.total.backward()  # each term has a graph all the same
    assert terms.cls > 0 and terms.box == 0 and terms.quality == 0
    assert torch.equal(raw.boxes.grad, torch.zeros_like(raw.boxes)) and torch.isfinite(raw.logits.grad).all()


@pytest.mark.parametrize("cls", ["qfl", "vfl"])
def test_a_score_that_is_the_quality_has_its_optimum_at_the_iou(cls):
    """Descending on the logits alone ends at the IoU of each positive's box, and its box is told nothing by it."""
    config = configured(quality="none", loss={"cls": cls, "gamma": 1.0})
    raw, grid = outputs(config)
    matched = assign(config.assign, grid, BOXES, LABELS >= 0)
    logits = torch.zeros_like(raw.logits).requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        detection_loss(config, raw._replace(logits=logits), grid, BOXES, LABELS).cls.backward()
        optimizer.step()
    assert raw.boxes.grad is None
    image, prior = (matched >= 0).nonzero(as_tuple=True)
    owner = matched[image, prior]
    overlap = iou(decode(config.box, grid, raw.boxes.detach())[image, prior], BOXES[image, owner])
    score = logits.detach().sigmoid()[image, prior]
    torch.testing.assert_close(score.gather(1, LABELS[image, owner][:, None])[:, 0], overlap, atol=0.05, rtol=0)


@pytest.mark.parametrize("cls, hard", [("focal", 0.0), ("focal", 3.0), ("bce", 3.0), ("ghm", 0.0)])
def test_what_is_ignored_has_no_gradient(cls, hard):
    config = configured(detector="retinanet", assign={"neg_iou": 0.1}, loss={"cls": cls, "hard_negatives": hard})
    raw, grid = outputs(config)
    matched = assign(config.assign, grid, BOXES, LABELS >= 0)
    assert (matched == IGNORED).any()
    detection_loss(config, raw, grid, BOXES, LABELS).total.backward()
    assert not raw.logits.grad[matched == IGNORED].any()
    background = raw.logits.grad[matched == BACKGROUND].any(dim=-1)
    found = int((matched >= 0).sum())
    assert raw.logits.grad[matched >= 0].any(dim=-1).all()
    assert int(background.sum()) <= 3 * found if hard else bool(background.all())


def test_the_keys_of_the_class_loss_arrive():
    config = configured(quality="none", loss={"alpha": 0.4, "gamma": 1.5})
    raw, grid = outputs(config)
    matched = assign(config.assign, grid, BOXES, LABELS >= 0)
    targets = torch.zeros_like(raw.logits)
    image, prior = (matched >= 0).nonzero(as_tuple=True)
    targets[image, prior, LABELS[image, matched[image, prior]]] = 1
    divisor = (matched >= 0).sum(1).clamp(min=1).sum()
    ours = detection_loss(config, raw, grid, BOXES, LABELS).cls
    torch.testing.assert_close(ours, focal_loss(raw.logits, targets, 0.4, 1.5).sum() / divisor)
    smooth = configured(quality="none", loss={"cls": "bce", "smoothing": 0.2})
    expected = bce_loss(raw.logits, smoothed(targets, (matched >= 0)[..., None] * 0.2)).sum() / divisor
    torch.testing.assert_close(detection_loss(smooth, raw, grid, BOXES, LABELS).cls, expected)


@pytest.mark.parametrize("where", ["box", "cls"])
@pytest.mark.parametrize("quality", ["centerness", "iou"])
def test_the_quality_branch_stands_on_the_chosen_tower(where, quality):
    config = configured(quality=quality, neck={"channels": 16}, head={"depth": 1, "quality_on": where})
    head = Head(config, levels=5)
    features = [torch.randn(2, 16, h, w) for h, w in feature_sizes(SIZE, (3, 7))]
    head(features)[2].sum().backward()
    fed, other = (head.box_tower, head.cls_tower) if where == "box" else (head.cls_tower, head.box_tower)
    assert any(p.grad is not None and p.grad.any() for p in fed.parameters())
    assert not any(p.grad is not None and p.grad.any() for p in other.parameters())


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"loss": {"cls": "qfl"}}, "loss.cls: qfl makes the class score the box's quality.*set quality: none"),
        ({"loss": {"cls": "vfl"}, "quality": "iou"}, "loss.cls: vfl .*quality: iou"),
        ({"box": {"code": "ltrb", "loss": "smooth_l1"}}, "box.loss: smooth_l1 is defined on delta codes"),
        ({"box": {"code": "ltrb", "loss": "balanced_l1"}}, "box.loss: balanced_l1 is defined on delta codes"),
        ({"box": {"loss": "eiuo"}}, "model.box.loss: expected one of .*did you mean 'eiou'"),
        ({"box": {"beta": 0}}, "model.box.beta: expected a positive number"),
        ({"loss": {"cls": "focal", "smoothing": 0.1}}, "model.loss.smoothing: focal needs the targets as they are"),
        ({"loss": {"cls": "bce", "alpha": 0.5}}, "model.loss.alpha: bce has no such weight"),
        ({"loss": {"alpha": 1.0}}, "model.loss.alpha: expected null or a number above 0 and below 1"),
        ({"loss": {"cls": "ghm", "hard_negatives": 3}}, "model.loss.hard_negatives: ghm weighs by all points"),
        ({"loss": {"cls": "qfl", "gamma": 0.5}, "quality": "none"}, "model.loss.gamma: .*qfl has an endless slope"),
        ({"loss": {"bins": 1}}, "model.loss.bins: expected 2 to 1000"),
        ({"quality": "none", "head": {"quality_on": "cls"}}, "head.quality_on: cls chooses the tower of a branch"),
        ({"detector": "retinanet", "assign": {"kind": "topk"}, "anchors": {"scales_per_octave": 3}},
         "assign.kind topk needs one anchor per cell"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        configured(**keys)


def test_configurations_without_these_keys_are_what_they_were():
    config = configured()
    assert config.loss == build(LossConfig, {}) == LossConfig()
    assert (config.loss.cls, config.box.loss, config.head.quality_on) == ("focal", "giou", "box")
