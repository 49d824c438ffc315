"""What an application may hand over as a frame, and through which region it is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isodet.errors import ArgumentError
from runtime import Detections, Detector, FrameError
from runtime.card.card import Card
from runtime.images.encoded import MAX_PIXELS
from runtime.images.frames import as_list, load_frame
from runtime.images.image import FixedSize, write_image
from runtime.images.region import Region
from tests.at_fault import raises
from tests.runtime.echo import Echo, frame, number
from trainer.augment import resized_placement


def noise(h: int, w: int) -> np.ndarray:
    return np.random.default_rng(h * 1000 + w).integers(0, 256, (h, w, 3), dtype=np.uint8)


@pytest.fixture
def detector(card: Card) -> Detector:
    return Detector(Echo(card), threshold=0.0)


def test_rgb_is_bgr_the_other_way_round_and_files_are_what_they_are(detector: Detector, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", frame(1234567))
    rgb = np.ascontiguousarray(frame(1234567)[..., ::-1])
    found = detector([rgb, str(tmp_path / "a.png"), rgb[::2]], color="rgb")
    assert [number(d) for d in found] == [1234567] * 3 and number(detector(rgb)[0]) != 1234567
    with raises(ArgumentError, key="color"):
        detector(rgb, color="gray")  # type: ignore[arg-type]


def test_any_layout_in_memory(detector: Detector) -> None:
    base = noise(90, 70)
    views = [base[:, ::-1], base[::-1], base[10:50, 5:65], base[::2, ::3], base.transpose(1, 0, 2), base[..., ::-1]]
    for view in views:
        pixels = detector.preprocess([view], [detector.place(view)])
        expected = detector.preprocess([np.ascontiguousarray(view)], [detector.place(view)])
        assert np.array_equal(pixels, expected)


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300))
def test_deployment_sees_the_pixels_that_training_saw(h: int, w: int) -> None:
    rule, image = FixedSize((64, 96)), noise(h, w)
    assert np.array_equal(rule.fit((h, w)).apply(image), resized_placement((h, w), rule).apply(image))


def test_arrays_of_other_libraries_in_host_memory(detector: Detector) -> None:
    tensor = torch.from_numpy(frame(77).copy())
    assert np.shares_memory(load_frame(tensor, 0).image, tensor.numpy())  # type: ignore[arg-type]
    batch = torch.stack([tensor, tensor + 1])
    assert [number(d) for d in detector(batch)] == [77, 77 + 0x010101]  # type: ignore[arg-type]
    for wrong, message in (
        (tensor.permute(2, 0, 1), r"frame 1: expected uint8 \[H, W, 3\] \(BGR\), got uint8 \[3, 32, 48\]: planes"),
        (tensor.float(), "frame 1: .*got float32 .*scale it"),
        (tensor.float().requires_grad_(), "frame 1: this Tensor cannot be read"),
    ):
        with pytest.raises(FrameError, match=message):
            detector([tensor, wrong])  # type: ignore[list-item]


def test_what_looks_like_a_frame(detector: Detector) -> None:
    picture = type("Image", (), {"__module__": "PIL.Image"})()
    with pytest.raises(FrameError, match=r"frame 0: .* got Image; numpy.asarray\(frame\), with color='rgb'"):
        detector([picture])
    with pytest.raises(FrameError, match="expected a uint8 .* got set"):
        as_list({1})


def test_huge_frames_want_a_region(detector: Detector) -> None:
    huge = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (MAX_PIXELS // 16384 + 1, 16384, 3))
    with pytest.raises(FrameError, match=r"frame 1: expected at most 268435456 pixels, got 16384x16385 .*roi="):
        detector([frame(1), huge])
    assert len(detector(huge, roi=(100, 100, 400, 300))[0]) == 1


# regions


def test_a_rectangle_is_a_frame_of_its_own_in_whole_frame_pixels(detector: Detector) -> None:
    frames = [noise(80, 100), noise(70, 160)]
    boxes = [(20, 10, 80, 60), (20.4, 10.2, 79.1, 59.5), (-30, 10, 80, 900)]
    for roi, (x1, y1, x2, y2) in zip(boxes, [boxes[0], boxes[0], (0, 10, 80, 1000)], strict=True):
        for whole, d in zip(frames, detector(frames, roi=roi), strict=True):
            (alone,) = detector(whole[y1:y2, x1:x2])
            np.testing.assert_array_equal(d.boxes_xyxy, alone.boxes_xyxy + np.float32([x1, y1, x1, y1]))
            assert number(d) == number(alone)


def test_a_region_outside_names_the_frame(detector: Detector) -> None:
    with pytest.raises(FrameError, match=r"frame 1: roi: .* lies outside of this frame of 50x40 \(width x height\)"):
        detector([noise(80, 100), noise(40, 50)], roi=(60, 50, 90, 70))


@pytest.mark.parametrize(
    "roi",
    [
        (1, 2, 3), (5, 2, 3, 9), [(0, 0), (4, 4)], [(0, 0), (4, 0), (9, 0)], (0, 0, float("nan"), 4), "left",
        [(0, 0), (1, 2, 3)], None,
    ],
)  # fmt: skip
def test_what_is_no_region(roi: Any) -> None:
    with raises(ArgumentError, key="roi"):
        Region.of(roi)


corner = st.tuples(st.integers(0, 40), st.integers(0, 40))


@given(st.lists(corner, min_size=3, max_size=8), st.lists(corner, max_size=12))
def test_a_polygon_keeps_the_centers_inside(corners: list[tuple[int, int]], points: list[tuple[int, int]]) -> None:
    """Against OpenCV's own test; half pixels keep centers off corners, and what is on an edge may go either way."""
    if len({x for x, _ in corners}) == 1 or len({y for _, y in corners}) == 1:
        return
    region = Region.of(corners)
    x1, y1, _, _ = region.window((64, 64))
    centers = np.float32(points).reshape(-1, 2) + np.float32([0.26, 0.37])
    boxes = np.concatenate([centers - 1, centers + 1], axis=1) - np.float32([x1, y1, x1, y1])
    n = len(points)
    found = Detections(boxes, np.linspace(1, 0.5, n, dtype=np.float32), np.zeros(n, np.int32), ("a",))
    kept = region.to_frame(found, (64, 64))
    contour = np.float32(corners).reshape(-1, 1, 2)
    where = [cv2.pointPolygonTest(contour, tuple(map(float, c)), False) for c in centers]
    got = {tuple(b) for b in kept.boxes_xyxy.tolist()}
    whole = found.boxes_xyxy + np.float32([x1, y1, x1, y1])
    for box, side in zip(whole.tolist(), where, strict=True):
        assert side == 0 or (tuple(box) in got) == (side > 0)


def test_a_polygon_in_a_call(detector: Detector) -> None:
    """The echo finds one box near the top left of what it sees: the bounding rectangle's corner."""
    image = frame(5, (64, 64))
    assert len(detector(image, roi=[(10, 10), (60, 10), (10, 60)])[0]) == 1
    assert len(detector(image, roi=[(60, 10), (60, 60), (10, 60)])[0]) == 0
