"""Every loss against the values and gradients that mmdetection and torchvision give (tests/golden/README.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses import boxes as losses
from models.losses.classification import bce_loss, focal_loss, quality_focal_loss
from tests.models.small import close

BOX = {
    "iou_log": losses.iou_log_loss,
    "iou_linear": losses.iou_linear_loss,
    "giou": losses.giou_loss,
    "tv_giou": losses.giou_loss,
    "diou": losses.diou_loss,
    "tv_diou": losses.diou_loss,
    "tv_ciou": losses.ciou_loss,
    "derived_eiou_focalpaper": losses.eiou_loss,
}


def check(data: dict, name: str, loss: Tensor, pred: Tensor, weight: Tensor) -> None:
    """Values, reductions and gradients that the file has under `name`; mmdetection's divisor has an epsilon."""
    weight = weight.reshape(weight.shape + (1,) * (loss.dim() - weight.dim()))
    average = (loss * weight).sum() / (float(data["avg_factor"]) + 1.19e-7)
    for suffix, value in (("none", loss), ("sum", loss.sum()), ("mean", loss.mean()), ("weighted_avg", average)):
        if f"{name}_{suffix}" in data:
            close(value, data[f"{name}_{suffix}"])
    close(torch.autograd.grad(loss.sum(), pred, retain_graph=True)[0], data[f"{name}_grad_of_sum"])
    if f"{name}_weighted_avg_grad" in data:
        close(torch.autograd.grad(average, pred)[0], data[f"{name}_weighted_avg_grad"])


@pytest.mark.parametrize("name", BOX)
def test_box_losses(golden, name):
    data = golden("losses")
    pred, target = torch.from_numpy(data["box_pred"]).requires_grad_(), torch.from_numpy(data["box_target"])
    check(data, name, BOX[name](pred, target), pred, torch.from_numpy(data["box_weight"]))


@pytest.mark.parametrize("name", ["iou_log", "iou_linear", "giou", "diou", "ciou"])
def test_degenerate_boxes(golden, name):
    """Without area, identical, disjoint, huge and tiny, identical. For CIoU, what the next test does not cover."""
    data = golden("losses")
    function = losses.ciou_loss if name == "ciou" else BOX[name]
    ours = function(torch.from_numpy(data["edge_pred"]), torch.from_numpy(data["edge_target"]))
    theirs = data[f"edge_{name}_none"]
    assert torch.isfinite(ours).all()
    if name == "ciou":  # mmdetection: NaN for identical boxes, alpha 0 where the overlap is small
        assert np.isnan(theirs[1]) and ours[1] == 0
        assert (ours[[0, 2]].numpy() > theirs[[0, 2]]).all()
        ours, theirs = ours[3:], theirs[3:]
    close(ours, theirs)


def test_where_ciou_differs_from_mmdetection_its_gate_is_shut(golden):
    """mmdetection takes alpha as 0 at IoU <= 0.5; above, the two agree, and below, ours adds alpha * v >= 0."""
    data = golden("losses")
    pred, target = torch.from_numpy(data["box_pred"]), torch.from_numpy(data["box_target"])
    ours, theirs = losses.ciou_loss(pred, target).numpy(), data["ciou_none"]
    gate = data["overlap_iou"] > 0.5
    assert gate.any() and not gate.all()
    close(torch.from_numpy(ours[gate]), theirs[gate])
    assert (ours[~gate] - theirs[~gate] > -1e-4).all() and (ours[~gate] - theirs[~gate]).max() > 1e-3


@pytest.mark.parametrize(
    "name, function, options",
    [("smoothl1_beta1", losses.smooth_l1_loss, {"beta": 1.0}), ("l1", losses.l1_loss, {}),
     ("smoothl1_beta0.11", losses.smooth_l1_loss, {"beta": 0.11})],
)  # fmt: skip
def test_code_losses(golden, name, function, options):
    data = golden("losses")
    pred = torch.from_numpy(data["reg_pred"]).requires_grad_()
    loss = function(pred, torch.from_numpy(data["reg_target"]), **options)
    check(data, name, loss, pred, torch.from_numpy(data["reg_weight"]))


@pytest.mark.parametrize(
    "name, alpha, gamma", [("focal_g2_a0.25", 0.25, 2.0), ("focal_g1.5_a0.4", 0.4, 1.5), ("tv_focal", 0.25, 2.0)]
)
def test_focal_loss(golden, name, alpha, gamma):
    data = golden("losses")
    logits, targets = torch.from_numpy(data["cls_logits"]).requires_grad_(), one_hot(data)
    check(data, name, focal_loss(logits, targets, alpha, gamma), logits, torch.from_numpy(data["cls_weight"]))


def test_quality_focal_loss(golden):
    data = golden("losses")
    logits = torch.from_numpy(data["cls_logits"]).requires_grad_()
    targets = one_hot(data) * torch.from_numpy(data["qfl_scores"])[:, None]
    loss = quality_focal_loss(logits, targets, gamma=2.0).sum(dim=-1)  # the reference adds the classes up
    check(data, "qfl_beta2", loss, logits, torch.from_numpy(data["cls_weight"]))


def test_cross_entropy_of_the_quality_branch(golden):
    data = golden("losses")
    logits = torch.from_numpy(data["ctr_logits"]).requires_grad_()
    loss = bce_loss(logits, torch.from_numpy(data["ctr_target"]))
    check(data, "centerness_bce", loss, logits, torch.from_numpy(data["ctr_weight"]))


def one_hot(data: dict) -> Tensor:
    classes = int(data["num_classes"])
    return F.one_hot(torch.from_numpy(data["cls_labels"]), classes + 1)[:, :classes].float()
