"""An imported model that trains on does so by torchvision's rules: its own losses, terms and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from isodet.strict import ConfigError
from models.config.model import model_config
from models.detector import Raw
from models.importers.torchvision import NAMES, conventions
from models.loss import Losses, detection_loss
from models.priors import feature_sizes, priors

SIZE, CLASSES = (96, 160), 4
SIZES = feature_sizes(SIZE, (3, 7))
TERMS = ("classification", "bbox_regression", "bbox_ctrness")
MANY = [[4.0, 6.0, 40.0, 50.0], [30.0, 8.0, 90.0, 60.0], [1.0, 1.0, 158.0, 94.0], [100.0, 50.0, 121.0, 77.0]]
BATCHES: dict[str, list[list[list[float]]]] = {
    "uneven": [MANY, [[60.0, 20.0, 100.0, 70.0]], MANY[:2]],
    "one image empty": [MANY[1:3], []],
    "all empty": [[], []],
}


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    """torchvision's own models, of which matching and losses are used."""
    make = {name: getattr(torchvision.models.detection, name) for name in NAMES}
    return {name: make[name](weights=None, weights_backbone=None, num_classes=CLASSES) for name in NAMES}


def leaves(count: int, fcos: bool) -> dict[str, Tensor]:
    """What a head would say of `count` images, as leaves."""
    generator = torch.Generator().manual_seed(4)
    N = sum(h * w for h, w in SIZES) * (1 if fcos else 9)
    said = {"cls_logits": torch.randn(count, N, CLASSES, generator=generator) - 2,
            "bbox_regression": torch.randn(count, N, 4, generator=generator) + (1.5 if fcos else 0.0)}  # fmt: skip
    if fcos:
        said["bbox_ctrness"] = torch.randn(count, N, 1, generator=generator)
    return {name: value.requires_grad_() for name, value in said.items()}


def their_losses(model: Any, said: dict[str, Tensor], boxes: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
    images = ImageList(torch.zeros(len(boxes), 3, *SIZE), [SIZE] * len(boxes))
    anchors = model.anchor_generator(images, [torch.zeros(len(boxes), 1, *size) for size in SIZES])
    targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
    if "bbox_ctrness" in said:
        said = {**said, "bbox_regression": said["bbox_regression"].relu()}  # which torchvision's head does
        return model.compute_loss(targets, said, anchors, [h * w for h, w in SIZES])
    return model.compute_loss(targets, said, anchors)


def our_losses(name: str, said: dict[str, Tensor], boxes: list[Tensor], labels: list[Tensor], **keys: Any) -> Losses:
    config = model_config({**conventions(name), "classes": list("abcd"), "input_size_hw": list(SIZE), **keys})
    grid = priors(SIZES, (8, 16, 32, 64, 128), config.anchors, input_hw=SIZE)
    all_boxes = torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True)
    all_labels = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-1)
    quality = said["bbox_ctrness"][..., 0] if "bbox_ctrness" in said else None
    raw = Raw(said["cls_logits"], said["bbox_regression"], quality)
    return detection_loss(config, raw, grid, all_boxes, all_labels)


def targets_of(batch: str) -> tuple[list[Tensor], list[Tensor]]:
    boxes = [torch.tensor(image).reshape(-1, 4) for image in BATCHES[batch]]
    return boxes, [torch.arange(len(image)) % CLASSES for image in boxes]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", NAMES)
def test_each_loss_and_its_gradients(theirs, name, batch):
    boxes, labels = targets_of(batch)
    said = leaves(len(boxes), fcos=name.startswith("fcos"))
    wanted = their_losses(theirs[name], said, boxes, labels)
    ours = our_losses(name, said, boxes, labels)
    assert set(wanted) == set(TERMS[: len(said)]) and ours.cls > 0
    for term, value in zip(TERMS, ours, strict=True):
        if term not in wanted:
            assert value == 0
            continue
        torch.testing.assert_close(value, wanted[term], rtol=1e-5, atol=1e-6)
        for leaf in said.values():
            mine, other = (torch.autograd.grad(x, leaf, retain_graph=True, allow_unused=True)[0]
                           for x in (value, wanted[term]))  # fmt: skip
            if other is None or not other.any():
                assert mine is None or not mine.any()
            else:
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6 * float(other.abs().amax()))


@pytest.mark.parametrize(
    "name, key, peer", [("fcos_resnet50_fpn", "box", "weighting"), ("retinanet_resnet50_fpn", "loss", "normalizer")]
)
def test_the_options_are_what_makes_them_equal(theirs, name, key, peer):
    boxes, labels = targets_of("uneven")
    said = leaves(3, fcos=name.startswith("fcos"))
    wanted = their_losses(theirs[name], said, boxes, labels)["bbox_regression"]
    rules = {k: v for k, v in conventions(name)[key].items() if k != peer}
    ours = our_losses(name, said, boxes, labels, **{key: rules}).box
    assert abs(float((ours / wanted).detach()) - 1) > 5e-3


def test_a_mean_over_images_does_not_go_with_ghm():
    with pytest.raises(ConfigError, match=r"model.loss.normalizer: ghm is a mean over the batch already"):
        model_config({"classes": ["a"], "loss": {"cls": "ghm", "normalizer": "image"}})
