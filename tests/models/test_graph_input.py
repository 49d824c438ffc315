"""The letterbox inside the graph against the one outside, and the two forms of input against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.deploy.graph_input import FrameGeometry, GraphInput
from runtime.backends.protocol import graph_input
from runtime.card.card import Card
from runtime.images.image import FILL, Letterbox

SIZES = [((71, 97), (64, 96)), ((240, 321), (64, 96)), ((31, 20), (64, 96)), ((128, 192), (64, 96)),
         ((64, 96), (64, 96)), ((5, 300), (64, 96)), ((719, 1283), (63, 97))]  # fmt: skip


def frame_of(source_hw: tuple[int, int], size_hw: tuple[int, int]) -> tuple[FrameGeometry, Letterbox]:
    placement = Letterbox.fit(source_hw, size_hw)
    return FrameGeometry(placement.source_hw, placement.resized_hw, placement.size_hw, FILL), placement


@pytest.mark.parametrize(("source", "size"), SIZES)
@pytest.mark.parametrize("form", ["uint8-nhwc", "float-nchw"])
def test_the_letterbox_inside_is_within_one_gray_level_of_the_one_outside(source, size, form):
    frame, placement = frame_of(source, size)
    picture = np.random.default_rng(0).integers(0, 256, (2, *source, 3), dtype=np.uint8)  # the worst case: noise
    images = picture if form == "uint8-nhwc" else graph_input(a_card(form), picture)
    found = GraphInput(form, frame)(torch.from_numpy(images)).numpy().transpose(0, 2, 3, 1)
    expected = np.stack([placement.apply(p) for p in picture]).astype(np.float32)
    apart = np.abs(found - expected)
    assert found.shape == expected.shape and apart.max() <= 1 and (found == found.round()).all()
    assert apart.mean() < 0.08 and abs((found - expected).mean()) < 0.02  # rounded otherwise, and not darker
    h, w = placement.resized_hw
    assert not apart[:, h:].any() and not apart[:, :, w:].any()  # the border is the border


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_boxes_come_back_in_pixels_of_the_frame(source, size):
    frame, placement = frame_of(source, size)
    boxes = np.random.default_rng(1).uniform(-20, 120, (2, 9, 4)).astype(np.float32)
    found = GraphInput(frame=frame).to_frame(torch.from_numpy(boxes)).numpy()
    assert np.allclose(found, placement.to_source(boxes), rtol=1e-5, atol=1e-4)
    assert not GraphInput(frame=frame).to_frame(torch.zeros(1, 3, 4)).any()  # empty slots stay zero


def test_both_forms_of_input_say_the_same():
    pixels = np.random.default_rng(2).integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    floats = graph_input(a_card("float-nchw"), pixels)
    assert floats.shape == (2, 3, 8, 6) and floats.dtype == np.float32 and floats.flags.c_contiguous
    assert floats[1, 0, 3, 4] == np.float32(pixels[1, 3, 4, 2]) / np.float32(255)  # red comes first
    a, b = GraphInput()(torch.from_numpy(pixels)), GraphInput("float-nchw")(torch.from_numpy(floats))
    assert torch.allclose(a, b, rtol=0, atol=1e-4)
    assert graph_input(a_card("uint8-nhwc"), pixels) is pixels


def a_card(form: str) -> Card:
    nms = {"kind": "portable", "iou": 0.6, "candidates": 10, "detections": 5}
    color = "bgr" if form == "uint8-nhwc" else "rgb"
    return Card("onnx", ("a",), (64, 96), 0.05, nms, input=form, color=color)
