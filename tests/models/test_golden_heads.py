"""Head, assignment, loss and gradients together, against mmdetection's heads with the same weights.

mmdetection pads the images of a batch to a common size and leaves anchors outside an image's own padded
size out of assignment and loss. Here all images of a batch have one size, so each image is computed alone, on
its own grid, and the two are put together as mmdetection's divisors do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.assigners import assign
from models.config import ModelConfig, model_config
from models.criterion import criterion
from models.detector import Raw
from models.heads import Head
from models.losses import centerness
from models.points import Priors, feature_sizes, priors

STRIDES = (8, 16, 32, 64, 128)
NAMES = {"atss": "atss_cls atss_reg atss_centerness", "retinanet": "retina_cls retina_reg"}


def head_config(kind: str) -> ModelConfig:
    mapping = {
        "classes": list("abcde"),
        "detector": kind,
        "input_size_hw": [96, 160],
        "neck": {"channels": 16},
        "head": {"norm": "none" if kind == "retinanet" else "gn"},
    }
    return model_config(mapping)


def head_with_weights(data: dict, kind: str) -> Head:
    head = Head(head_config(kind), levels=5)
    names = dict(zip(NAMES[kind].split(), ("cls", "box", "quality"), strict=False))
    state = {"scales": torch.ones(5)}
    for key, value in data.items():
        if not key.startswith("sd/"):
            continue
        parts = key.removeprefix("sd/").split(".")
        if parts[0] == "scales":
            state["scales"][int(parts[1])] = float(value)
            continue
        if parts[0] in ("cls_convs", "reg_convs"):
            tower = "cls_tower" if parts[0] == "cls_convs" else "box_tower"
            parts = [tower, parts[1], "norm" if parts[2] == "gn" else parts[2], parts[3]]
        else:
            parts[0] = names[parts[0]]
        state[".".join(parts)] = torch.from_numpy(value)
    head.load_state_dict(state)
    for module in head.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = 4  # what the reference was made with; ours divides 16 channels by 16
    return head


class OneImage(NamedTuple):
    raw: Raw
    grid: Priors
    boxes: Tensor
    labels: Tensor


def images_of(data: dict, config: ModelConfig, outputs: tuple, empty: tuple[bool, bool]) -> list[OneImage]:
    """Each image with the part of the batch's outputs that its own padded size covers."""
    batch_grid = priors(feature_sizes(tuple(data["batch_input_hw"].tolist()), (3, 7)), STRIDES, config.anchors, 0.0)
    anchors = config.anchors.per_cell
    images = []
    for i in (0, 1):
        mine, all_hw = [], feature_sizes(tuple(data["batch_input_hw"].tolist()), (3, 7))
        own_hw = [tuple(-(-int(side) // stride) for side in data[f"img{i}_pad_shape_hw"]) for stride in STRIDES]
        sizes = []
        for (h, w), (own_h, own_w) in zip(all_hw, own_hw, strict=True):
            cell = (torch.arange(h)[:, None] < own_h) & (torch.arange(w) < own_w)
            mine.append(cell.reshape(-1).repeat_interleave(anchors))
            sizes.append(int(mine[-1].sum()))
        keep = torch.cat(mine)
        logits, codes, quality = outputs
        one = slice(i, i + 1)
        raw = Raw(logits[one, keep], codes[one, keep], None if quality is None else quality[one, keep])
        grid = Priors(batch_grid.boxes_xyxy[keep], batch_grid.strides[keep], tuple(sizes))
        count = 0 if empty[i] else None
        boxes = torch.from_numpy(data[f"img{i}_gt_bboxes"])[None, :count]
        images.append(OneImage(raw, grid, boxes, torch.from_numpy(data[f"img{i}_gt_labels"])[None, :count]))
    return images


def batch_losses(config: ModelConfig, images: list[OneImage]) -> dict[str, Tensor]:
    """Losses of single images, put together over the divisors of the batch."""
    cls, box, quality = [], [], []
    positives, weights = [], []
    for image in images:
        losses = criterion(config, image.raw, image.grid, image.boxes, image.labels)
        matched = assign(config.assign, image.grid, image.boxes, image.labels >= 0)[0]
        found = matched >= 0
        count = max(int(found.sum()), 1)
        weight = float(centerness(image.grid.points[found], image.boxes[0][matched[found]]).sum())
        divisor = max(weight, 1.0) if config.quality == "centerness" else count
        cls.append(losses.cls * count)
        quality.append(losses.quality * count)
        box.append(losses.box * divisor)
        positives.append(count)
        weights.append(weight)
    box_divisor = max(sum(weights), 1.0) if config.quality == "centerness" else sum(positives)
    return {
        "loss_cls": sum(cls) / sum(positives),
        "loss_bbox": sum(box) / box_divisor,
        "loss_centerness": sum(quality) / sum(positives),
    }


def close(ours: Tensor, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["atss", "retinanet"])
def test_outputs(golden, kind):
    data = golden(f"head_mmdet_{kind}")
    config, head = head_config(kind), head_with_weights(data, kind)
    logits, boxes, quality = head([torch.from_numpy(data[f"feat_l{level}"]) for level in range(5)])

    def flat(name: str, channels: int) -> np.ndarray:
        levels = [data[f"out_eval_{name}_l{level}"] for level in range(5)]
        return np.concatenate([x.transpose(0, 2, 3, 1).reshape(2, -1, channels) for x in levels], axis=1)

    close(logits, flat("cls", len(config.classes)))
    close(boxes, flat("bbox", 4))
    if kind == "atss":
        close(quality[..., None], flat("ctr", 1))
    else:
        assert quality is None


@pytest.mark.parametrize("case, empty", [("loss", (0, 0)), ("loss_img1_empty", (0, 1)), ("loss_both_empty", (1, 1))])
@pytest.mark.parametrize("kind", ["atss", "retinanet"])
def test_losses(golden, kind, case, empty):
    data = golden(f"head_mmdet_{kind}")
    config, head = head_config(kind), head_with_weights(data, kind)
    outputs = head([torch.from_numpy(data[f"feat_l{level}"]) for level in range(5)])
    losses = batch_losses(config, images_of(data, config, outputs, empty))
    for name, value in losses.items():
        if f"{case}/{name}" in data:
            close(value, data[f"{case}/{name}"])
    if case == "loss_both_empty":
        assert losses["loss_bbox"] == 0 and losses["loss_centerness"] == 0


@pytest.mark.parametrize("kind", ["atss", "retinanet"])
def test_gradients(golden, kind):
    data = golden(f"head_mmdet_{kind}")
    config, head = head_config(kind), head_with_weights(data, kind)
    features = [torch.from_numpy(data[f"feat_l{level}"]).requires_grad_() for level in range(5)]
    total = sum(batch_losses(config, images_of(data, config, head(features), (False, False))).values())
    close(total, data["loss/total"])
    total.backward()
    close(features[0].grad[1], data["grad_feat_l0"])
    for level in range(1, 5):
        close(features[level].grad, data[f"grad_feat_l{level}"])
    close(head.cls_tower[0].conv.weight.grad, data["grad/cls_convs.0.conv.weight"])
    close(head.box_tower[0].conv.weight.grad, data["grad/reg_convs.0.conv.weight"])
    close(head.cls.weight.grad, data[f"grad/{NAMES[kind].split()[0]}.weight"])
    close(head.box.weight.grad, data[f"grad/{NAMES[kind].split()[1]}.weight"])
    if kind == "atss":
        close(head.quality.weight.grad, data["grad/atss_centerness.weight"])
        close(head.scales.grad, np.array([data[f"grad/scales.{level}.scale"] for level in range(5)]))


# FCOS: every point of the batch counts in mmdetection too, so a batch is compared as a batch.


def fcos_outputs(data: dict) -> tuple[ModelConfig, Raw]:
    """Our head's outputs with the reference's weights. Its distances are relu(x), ours exp(x): log between."""
    config = head_config("fcos")
    head = Head(config, levels=5)
    for module in head.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = 4
    with torch.no_grad():
        for ours, theirs in ((head.cls_tower, "cls_convs"), (head.box_tower, "reg_convs")):
            for i, block in enumerate(ours):
                # Upstream has a convolution bias before the norm, which ours leaves out.
                block.conv.bias = nn.Parameter(torch.from_numpy(data[f"sd/{theirs}.{i}.conv.bias"]))
                block.conv.weight.copy_(torch.from_numpy(data[f"sd/{theirs}.{i}.conv.weight"]))
                block.norm.weight.copy_(torch.from_numpy(data[f"sd/{theirs}.{i}.gn.weight"]))
                block.norm.bias.copy_(torch.from_numpy(data[f"sd/{theirs}.{i}.gn.bias"]))
        for ours, theirs in ((head.cls, "conv_cls"), (head.box, "conv_reg"), (head.quality, "conv_centerness")):
            ours.weight.copy_(torch.from_numpy(data[f"sd/{theirs}.weight"]))
            ours.bias.copy_(torch.from_numpy(data[f"sd/{theirs}.bias"]))
        head.scales.copy_(torch.tensor([float(data[f"sd/scales.{level}.scale"]) for level in range(5)]))
        logits, distances, quality = head([torch.from_numpy(data[f"feat_l{level}"]) for level in range(5)])
    return config, Raw(logits, distances.clamp(min=0).log(), quality)


def test_fcos_outputs(golden):
    data = golden("head_mmdet_fcos_improved")
    _, raw = fcos_outputs(data)
    for name, ours in (("out_eval_cls", raw.logits), ("out_train_bbox", raw.boxes.exp())):
        theirs = [data[f"{name}_l{level}"] for level in range(5)]
        channels = theirs[0].shape[1]
        close(ours, np.concatenate([x.transpose(0, 2, 3, 1).reshape(2, -1, channels) for x in theirs], axis=1))


@pytest.mark.parametrize("case, empty", [("loss", (0, 0)), ("loss_img1_empty", (0, 1)), ("loss_both_empty", (1, 1))])
def test_fcos_losses(golden, case, empty):
    data = golden("head_mmdet_fcos_improved")
    config, raw = fcos_outputs(data)
    grid = priors(feature_sizes(tuple(data["batch_input_hw"].tolist()), (3, 7)), STRIDES, config.anchors)
    G = max(len(data[f"img{i}_gt_labels"]) for i in (0, 1))
    boxes, labels = torch.zeros(2, G, 4), torch.full((2, G), -1)
    for i in (0, 1):
        count = 0 if empty[i] else len(data[f"img{i}_gt_labels"])
        boxes[i, :count] = torch.from_numpy(data[f"img{i}_gt_bboxes"])[:count]
        labels[i, :count] = torch.from_numpy(data[f"img{i}_gt_labels"])[:count]
    losses = criterion(config, raw, grid, boxes, labels)
    close(losses.cls, data[f"{case}/loss_cls"])
    close(losses.box, data[f"{case}/loss_bbox"])
    close(losses.quality, data[f"{case}/loss_centerness"])
