"""Task-aligned assignment against loops written from TOOD, and what the loss makes of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isodet.strict import ConfigError
from models.assigners import BACKGROUND, IGNORED, assign
from models.assigners.tal import Predictions, assign_tal, soft_targets
from models.boxes import iou as overlap_of
from models.checkpoint import build_detector
from models.coders import decode
from models.config.model import AssignConfig, ModelConfig, model_config
from models.detector import Detector, Raw
from models.loss import REGION, detection_loss
from models.losses.boxes import giou_loss
from models.losses.classification import quality_focal_loss
from models.priors import Priors
from tests.export.networks import save_network
from tests.models.small import BOXES, LABELS, SIZE, descend, grid_for, images, small
from tests.models.test_assigners import NEAR, ONE, batches, compare, iou, margin_inside, padded

CLASSES = 3
TAL = AssignConfig(kind="tal", topk=13)


def predicted(grid: Priors, gt_boxes: Tensor, seed: int = 0) -> Predictions:
    """Random scores, labels, and boxes around each point, of which a third are nearly those of an object."""
    generator, (B, G, _), N = torch.Generator().manual_seed(seed), gt_boxes.shape, len(grid.strides)
    reach = torch.rand(B, N, 4, generator=generator) * 5 * grid.strides[:, None]
    boxes = torch.cat([grid.points - reach[..., :2], grid.points + reach[..., 2:]], dim=-1)
    if G:
        pick = torch.randint(0, G, (B, N), generator=generator)
        near = gt_boxes.gather(1, pick[..., None].expand(-1, -1, 4)) + 3 * torch.rand(B, N, 4, generator=generator)
        boxes = torch.where(torch.rand(B, N, 1, generator=generator) < 0.3, near, boxes)
    logits = 2 * torch.randn(B, N, CLASSES, generator=generator)
    return Predictions(logits, boxes, torch.randint(0, CLASSES, (B, G), generator=generator))


def alignment(logit: float, overlap: float, alpha: float, beta: float) -> float:
    return (1 / (1 + math.exp(-logit))) ** alpha * overlap**beta


def loop_tal(
    grid: Priors, boxes: list[list[float]], predictions: Predictions, image: int, topk: int, alpha: float, beta: float
) -> tuple[list[int], set[int]]:
    """TOOD, section 3.2, one object and one point at a time, in float64."""
    points = grid.points.double().tolist()
    predicted_boxes = predictions.boxes_xyxy[image].double().tolist()
    matched, overlap_at, sensitive = [BACKGROUND] * len(points), [-1.0] * len(points), set()
    for g, box in enumerate(boxes):
        label, t, overlaps = int(predictions.gt_labels[image, g]), {}, {}
        for i, point in enumerate(points):
            margin = margin_inside(point, box)
            if abs(margin - 0.01) < NEAR:
                sensitive.add(i)
            overlaps[i] = iou(predicted_boxes[i], box)
            t[i] = alignment(float(predictions.logits[image, i, label]), overlaps[i], alpha, beta)
            if margin <= 0.01 or overlaps[i] == 0:
                del t[i]
        ranked = sorted(t, key=lambda i: -t[i])
        if len(ranked) > topk:
            edge = t[ranked[topk - 1]]
            near_edge = {i for i in ranked if abs(t[i] - edge) <= 1e-3 * edge}
            sensitive |= near_edge if len(near_edge) > 1 else set()
        for i in ranked[:topk]:
            if matched[i] >= 0 and abs(overlaps[i] - overlap_at[i]) < NEAR / 10:
                sensitive.add(i)
            if overlaps[i] > overlap_at[i]:
                matched[i], overlap_at[i] = g, overlaps[i]
    return matched, sensitive


@given(batches(), st.integers(0, 2**20), st.sampled_from([1, 4, 13]), st.sampled_from([(1.0, 6.0), (0.5, 6.0), (0, 1)]))
def test_the_assignment_is_the_papers(batch, seed, topk, exponents):
    size_hw, objects = batch
    grid = grid_for(size_hw, ONE)
    boxes, valid = padded(objects)
    predictions = predicted(grid, boxes, seed)
    matched = assign_tal(grid, boxes, valid, topk, *exponents, predictions=predictions)
    loops = [loop_tal(grid, rows, predictions, b, topk, *exponents) for b, rows in enumerate(objects)]
    compare(matched, loops)


@given(st.integers(0, 2**20), st.sampled_from([(1.0, 6.0), (0.5, 6.0), (0.0, 2.0)]))
def test_soft_targets_are_the_papers(seed, exponents):
    """The best of each object has the object's largest IoU, and the others their share of it by alignment."""
    generator = torch.Generator().manual_seed(seed)
    owners = torch.randint(0, 5, (30,), generator=generator)
    logits = 3 * torch.randn(30, generator=generator)
    overlaps = torch.rand(30, generator=generator).clamp(min=0.01)
    targets = soft_targets(logits, overlaps, owners, 7, *exponents)
    for g in range(5):
        mine = [i for i in range(30) if owners[i] == g]
        t = {i: alignment(float(logits[i]), float(overlaps[i]), *exponents) for i in mine}
        for i in mine:
            expected = t[i] / max(t.values()) * max(float(overlaps[j]) for j in mine)
            assert float(targets[i]) == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_an_alignment_that_is_too_small_for_a_number_still_has_its_order():
    """0.001^20 * 1e-9 is 0 in float32, and the first predictions of a training are that bad."""
    logits, overlaps = torch.tensor([-20.0, -20.0]), torch.tensor([1e-3, 2e-3])
    targets = soft_targets(logits, overlaps, torch.zeros(2, dtype=torch.int64), 1, 1.0, 20.0)
    torch.testing.assert_close(targets, torch.tensor([2e-3 / 2**20, 2e-3]))


@pytest.mark.parametrize("G", [0, 3])
def test_without_objects_everything_is_background(G):
    grid = grid_for(SIZE, ONE)
    boxes = torch.tensor([8.0, 8.0, 60.0, 60.0]).expand(2, G, 4)
    predictions = predicted(grid, boxes)._replace(gt_labels=torch.full((2, G), -1))
    valid = torch.zeros(2, G, dtype=torch.bool)
    matched = assign(TAL, grid, boxes, valid, predictions=predictions)
    assert matched.shape == (2, len(grid.strides)) and (matched == BACKGROUND).all()


@pytest.mark.parametrize("config", [TAL, AssignConfig(kind="ddod", alpha=0.8)], ids=["tal", "ddod"])
def test_each_image_is_assigned_as_if_it_were_alone_and_padding_changes_nothing(config):
    grid = grid_for((96, 128), ONE)
    objects = [[[4.0, 6, 60, 70], [30, 20, 110, 90]], [], [[50, 10, 70, 30], [60.0, 60, 60, 80]]]
    boxes, valid = padded(objects)
    predictions = predicted(grid, boxes)
    together = assign(config, grid, boxes, valid, predictions=predictions)
    assert set(together[together >= 0].tolist()) == {0, 1} and not (together[2] == 1).any()  # which has no area
    for b, rows in enumerate(objects):
        alone = Predictions(*(part[b : b + 1] for part in predictions))
        alone = alone._replace(gt_labels=alone.gt_labels[:, : len(rows)])
        assert torch.equal(together[b], assign(config, grid, *padded([rows]), predictions=alone)[0])


@pytest.mark.parametrize("over", ["background", "objects"])
def test_padding_and_ignore_regions_are_kept_out(over):
    grid = grid_for((96, 128), ONE)
    boxes = torch.tensor([[[4.0, 4, 60, 60], [30, 4, 70, 60], [90, 70, 120, 90]]])
    valid, regions = torch.tensor([[True, False, False]]), torch.tensor([[False, True, True]])
    config = AssignConfig(kind="tal", topk=200, padding="absent", ignore_over=over)
    predictions = predicted(grid, boxes)
    sizes = torch.tensor([[64, 96]])
    matched = assign(config, grid, boxes, valid, regions, sizes, predictions)[0]
    (x, y), beyond = grid.points.unbind(-1), ~grid.within(sizes)[0]
    held = (x > 30) & (x < 70) & (y > 4) & (y < 60) & ~beyond
    plain = assign(AssignConfig(kind="tal", topk=200), grid, boxes, valid, predictions=predictions)[0]
    assert (matched[beyond] == IGNORED).all() and (plain[held] == 0).any()
    expected = torch.where(held & (plain == BACKGROUND), IGNORED, plain) if over == "background" else (
        torch.where(held, IGNORED, plain)
    )  # fmt: skip
    assert torch.equal(matched[~beyond], expected[~beyond])


# ---------------------------------------------------------------------------------------------
# the loss


def tood(**keys: Any) -> ModelConfig:
    return small(detector="tood", **keys)


def outputs(config: ModelConfig) -> tuple[Raw, Priors]:
    grid, generator = grid_for(SIZE, config.anchors), torch.Generator().manual_seed(0)
    N = len(grid.strides)
    logits = torch.randn(2, N, 3, generator=generator) - 2
    boxes = torch.randn(2, N, config.box.channels, generator=generator) / 2
    return Raw(logits.requires_grad_(), boxes.requires_grad_(), None), grid


def test_both_losses_are_weighted_by_the_targets_and_divided_by_their_sum():
    """Object by object and positive by positive, as in TOOD, equations 4 to 6."""
    config = tood()
    raw, grid = outputs(config)
    boxes = decode(config.box, grid, raw.boxes)
    matched = assign(
        config.assign, grid, BOXES, LABELS >= 0, predictions=Predictions(raw.logits, boxes.detach(), LABELS)
    )
    targets, weighted = torch.zeros_like(raw.logits), torch.zeros(())
    for b in range(2):
        for g in range(2):
            mine = (matched[b] == g).nonzero()[:, 0].tolist()
            label = int(LABELS[b, g])
            overlaps = {i: float(overlap_of(boxes[b, i].detach(), BOXES[b, g])) for i in mine}
            t = {i: alignment(float(raw.logits[b, i, label].detach()), overlaps[i], 1.0, 6.0) for i in mine}
            for i in mine:
                targets[b, i, label] = t[i] / max(t.values()) * max(overlaps.values())
                weighted = weighted + targets[b, i, label] * giou_loss(boxes[b, i], BOXES[b, g])
    divisor = max(float(targets.sum()), 1.0)
    losses = detection_loss(config, raw, grid, BOXES, LABELS)
    torch.testing.assert_close(losses.box, 2.0 * weighted / divisor)
    torch.testing.assert_close(losses.cls, quality_focal_loss(raw.logits, targets).sum() / divisor)
    assert losses.quality == 0 and float(targets.sum()) > 0
    losses.total.backward()
    assert raw.boxes.grad[matched >= 0].any(dim=-1).all() and not raw.boxes.grad[matched < 0].any()
    assert raw.logits.grad.isfinite().all() and raw.logits.grad.any()


def test_each_image_may_have_its_own_divisor_and_processes_share_one():
    raw, grid = outputs(tood())
    config = tood(loss={"cls": "bce", "normalizer": "image"})
    losses = detection_loss(config, raw, grid, BOXES, LABELS)
    each = [
        detection_loss(config, Raw(raw.logits[b : b + 1], raw.boxes[b : b + 1], None), grid, BOXES[b : b + 1],
                       LABELS[b : b + 1]) for b in range(2)
    ]  # fmt: skip
    torch.testing.assert_close(losses.total, (each[0].total + each[1].total) / 2)
    plain, shared = (
        detection_loss(tood(), raw, grid, BOXES, LABELS, total=lambda part: 5 * part + 10),
        detection_loss(tood(), raw, grid, BOXES, LABELS),
    )
    assert plain.box < shared.box / 5 and plain.cls < shared.cls / 5


@pytest.mark.parametrize("G", [0, 2])
def test_empty_pictures_teach_background_only(G):
    raw, grid = outputs(tood())
    losses = detection_loss(tood(), raw, grid, torch.zeros(2, G, 4), torch.full((2, G), -1))
    losses.total.backward()
    assert losses.cls > 0 and losses.box == 0 and not raw.boxes.grad.any() and raw.logits.grad.isfinite().all()


def test_a_region_beside_an_object_takes_its_background_out_of_the_loss():
    raw, grid = outputs(tood())
    labels = torch.tensor([[0, REGION], [1, -1]])
    detection_loss(tood(), raw, grid, BOXES, labels).total.backward()
    x, y = grid.points.unbind(-1)
    held = (x > 30) & (x < 90) & (y > 8) & (y < 60)
    object_0 = (x > 4) & (x < 40) & (y > 6) & (y < 50)
    assert held.any() and not raw.logits.grad[0][held & ~object_0].any()
    assert raw.logits.grad[0][object_0].any() and raw.logits.grad[1].any(dim=-1).all()


def test_it_learns_and_finds_its_objects_again(tmp_path):
    """Thirty steps on one batch: both losses go down, and a checkpoint brings the same network back."""
    torch.manual_seed(0)
    config = tood(head={"depth": 1, "prior": 0.1})
    model = Detector(config).train()
    history = torch.tensor(descend(model, 30))[:, :2]
    assert (history[-3:].mean(0) < history[:3].mean(0)).all()
    again, _ = build_detector(save_network(tmp_path / "a.pt", model))
    assert again.config == config and again.config.assign.topk == 13
    with torch.no_grad():
        assert all(
            torch.equal(a, b) for a, b in zip(model.eval()(images())[:2], again.eval()(images())[:2], strict=True)
        )


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"quality": "centerness"}, "loss.cls: qfl makes the class score the box's quality"),
        ({"quality": "iou", "loss": {"cls": "bce"}}, "quality: assign.kind tal makes the class score .*quality: none"),
        ({"loss": {"cls": "focal"}}, "loss.cls: assign.kind tal has targets between 0 and 1.*qfl, vfl or bce"),
        ({"loss": {"cls": "ghm"}}, "loss.cls: assign.kind tal"),
        ({"loss": {"cls": "mine:loss"}}, "loss.cls: assign.kind tal"),
        ({"loss": {"cls": "bce", "smoothing": 0.1}}, "loss.smoothing: the targets of assign.kind tal are soft"),
        ({"box": {"weighting": "score"}}, "box.weighting: with assign.kind tal boxes count by their alignment"),
        ({"anchors": {"scales_per_octave": 3}}, "assign.kind tal needs one anchor per cell"),
        ({"assign": {"alpha": -1}}, "model.assign.alpha: expected 0 to 20"),
        ({"assign": {"beta": 0}}, "model.assign.beta: expected above 0"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(keys, message):
    with pytest.raises(ConfigError, match=message):
        tood(**keys)


def test_thirteen_points_wherever_it_is_asked_for():
    loss = {"classes": ["a"], "quality": "none", "loss": {"cls": "bce"}}
    assert model_config({**loss, "assign": {"kind": "tal"}}).assign.topk == 13
    assert model_config({**loss, "assign": {"kind": "tal", "topk": 10}}).assign.topk == 10
    assert model_config({**loss, "assign": {"kind": "topk"}}).assign.topk == 9
    assert tood().assign == TAL
