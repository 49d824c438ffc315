"""Transforms of torchvision and albumentations: boxes on their pixels, draws from our generator, mistakes named."""

from __future__ import annotations

import importlib.util
import random
from typing import Any

import numpy as np
import pytest
import torch

from isodet.strict import ConfigError, build
from tests.trainer.pixels import extent
from trainer.augment.geometry import Picture
from trainer.augment.transforms import AlbumentationsTransforms, TorchvisionTransforms, make_transforms
from trainer.config.augment import AugmentConfig

installed = importlib.util.find_spec("albumentations") is not None
needs_albumentations = pytest.mark.skipif(not installed, reason="albumentations is not installed (an extra)")
BOTH = [
    pytest.param(TorchvisionTransforms, id="torchvision"),
    pytest.param(AlbumentationsTransforms, id="albumentations", marks=needs_albumentations),
]
SHIFT: dict[Any, dict[str, Any]] = {
    TorchvisionTransforms: {"RandomAffine": {"degrees": 0, "translate": [0.3, 0.3]}},
    AlbumentationsTransforms: {"Affine": {"translate_percent": [-0.3, 0.3], "p": 1}},
}


def blue_rectangle() -> Picture:
    image = np.zeros((60, 90, 3), np.uint8)
    image[20:40, 30:50] = (255, 0, 0)
    boxes = np.array([[30, 20, 50, 40], [0, 0, 90, 60]], np.float32)
    return Picture(image, boxes, np.array([7, -2]))


@pytest.mark.parametrize("kind", BOTH)
def test_boxes_follow_the_pixels_and_colors_keep_their_order(kind):
    picture = blue_rectangle()
    before = picture.image.copy()
    moved = set()
    for seed in range(8):
        out = kind(({"RandomHorizontalFlip" if kind is TorchvisionTransforms else "HorizontalFlip": {"p": 0.5}},
                    SHIFT[kind]))(picture, np.random.default_rng(seed))  # fmt: skip
        assert out.image.shape == picture.image.shape and out.boxes_xyxy.dtype == np.float32
        blue = out.image[:, :, 0] > 127
        assert (out.image[:, :, 1:] == 0).all()
        found = extent(blue)
        mine = out.boxes_xyxy[out.labels == 7]
        assert len(mine) == 1 and np.abs(np.clip(mine[0], 0, [90, 60, 90, 60]) - found).max() <= 1
        moved.add(tuple(found))
    assert len(moved) > 4 and np.array_equal(picture.image, before)


@pytest.mark.parametrize("kind", BOTH)
def test_one_generator_gives_one_view_and_no_other_generator_moves(kind):
    transform = kind((SHIFT[kind],))
    torch.manual_seed(3)
    random.seed(3)
    state, python = torch.get_rng_state(), random.getstate()
    first = transform(blue_rectangle(), np.random.default_rng(5))
    again = kind((SHIFT[kind],))(blue_rectangle(), np.random.default_rng(5))
    other = transform(blue_rectangle(), np.random.default_rng(6))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.image, other.image)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python


@pytest.mark.parametrize("kind", BOTH)
def test_without_boxes(kind):
    empty = Picture(blue_rectangle().image, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    out = kind((SHIFT[kind],))(empty, np.random.default_rng(0))
    assert out.boxes_xyxy.shape == (0, 4) and out.labels.shape == (0,) and out.labels.dtype == np.int64


@pytest.mark.parametrize("kind", BOTH)
def test_mistakes_are_named(kind):
    key = "torchvision" if kind is TorchvisionTransforms else "albumentations"
    known = "RandomRotation" if kind is TorchvisionTransforms else "RandomRotate90"
    with pytest.raises(ConfigError, match=f"augment.{key}: .* no transform '{known}s'; did you mean '{known}'"):
        kind(({f"{known}s": {}},))
    with pytest.raises(ConfigError, match=f"augment.{key}: {known} does not take"):
        kind(({known: {"nonsense": 3}},))
    to_tensor = {"ToDtype": {"dtype": torch.float32}} if kind is TorchvisionTransforms else {"ToFloat": {"p": 1}}
    with pytest.raises(ConfigError, match=f"augment.{key}: expected a uint8 picture"):
        kind((to_tensor,))(blue_rectangle(), np.random.default_rng(0))


def test_dropped_boxes_take_their_labels_along():
    steps = ({"CenterCrop": {"size": [20, 90]}}, {"SanitizeBoundingBoxes": {"min_size": 25}})
    out = TorchvisionTransforms(steps)(blue_rectangle(), np.random.default_rng(0))
    assert out.image.shape == (20, 90, 3) and out.labels.tolist() == []
    sixty = TorchvisionTransforms((steps[1],))(blue_rectangle(), np.random.default_rng(0))
    assert sixty.labels.tolist() == [-2]


@pytest.mark.skipif(installed, reason="albumentations is installed")
def test_what_is_not_installed_is_said_before_training():
    config = build(AugmentConfig, {"albumentations": [{"Blur": {}}]})
    with pytest.raises(ConfigError, match=r"pip install 'isodet\[albumentations\]'"):
        make_transforms(config)
