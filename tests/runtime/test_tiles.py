"""Frames in tiles: where tiles lie, how what they show is merged, and that every way in gives the same answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import CaptureFixture

from isodet.errors import ArgumentError
from runtime import Detections, Detector, Tiles
from runtime.__main__ import main
from runtime.backends.protocol import Backend, RawOutputs
from runtime.commands.detect_outputs import DetectError
from runtime.commands.detect_run import DetectOptions, detect
from runtime.images.encoded import MAX_PIXELS
from runtime.images.frames import FrameError
from runtime.images.image import write_image
from runtime.tiles import Grid, Window
from tests.at_fault import raises
from tests.runtime.cameras import video
from tests.runtime.conftest import make_card

CLASSES = ("ant", "bee", "cat")


class Spots(Backend):
    """Finds the bright rectangles of a picture of gray: label and score are the green and red of their centers."""

    name, device = "spots", "cpu"

    def __init__(self, max_batch: int = 16, fixed_batch: int | None = None, **card: Any) -> None:
        nms = {"kind": "portable", "iou": 0.6, "candidates": 900, "detections": 900}
        self.card = make_card(**({"input_size_hw": (64, 64), "nms": nms} | card))
        self.max_batch, self.fixed_batch = max_batch, fixed_batch
        self.batches: list[int] = []

    def __call__(self, images: Any) -> RawOutputs:
        self.batches.append(len(images))
        size = self.card.nms["detections"]
        count, boxes = np.zeros((len(images), 1), np.int32), np.zeros((len(images), size, 4), np.float32)
        scores, labels = np.zeros((len(images), size), np.float32), np.zeros((len(images), size), np.int32)
        for i, image in enumerate(images):
            _, _, spots, _ = cv2.connectedComponentsWithStats((image[..., 0] > 200).astype(np.uint8))
            rows = []
            for x, y, width, height, _ in spots[1:].tolist():
                _, green, red = image[y + height // 2, x + width // 2].tolist()
                rows.append((red / 255, [x, y, x + width, y + height], min(green, 2)))
            rows.sort(key=lambda row: -row[0])
            count[i] = len(rows)
            for k, (score, box, label) in enumerate(rows):
                scores[i, k], boxes[i, k], labels[i, k] = score, box, label
        return RawOutputs(count, boxes, scores, labels)

    def context(self) -> Backend:
        return self


def picture(hw: tuple[int, int], *spots: tuple[int, int, int, int, int, int]) -> np.ndarray:
    """Gray, with spots (x1, y1, x2, y2, label, score of 255)."""
    image = np.full((*hw, 3), 100, np.uint8)
    for x1, y1, x2, y2, label, score in spots:
        image[y1:y2, x1:x2] = (255, label, score)
    return image


def scattered(hw: tuple[int, int], seed: int = 0, side: int = 9) -> np.ndarray:
    """Spots of random sides up to `side`, each in a cell of its own, so that none touches another."""
    rng, cell, spots = np.random.default_rng(seed), side + 4, []
    for y in range(1, hw[0] - cell, cell):
        for x in range(1, hw[1] - cell, cell):
            if rng.random() < 0.4:
                width, height = (int(v) for v in rng.integers(3, side + 1, 2))
                spots.append((x, y, x + width, y + height, int(rng.integers(0, 3)), int(rng.integers(60, 256))))
    return picture(hw, *spots)


def same(one: Detections, other: Detections) -> bool:
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in ("boxes_xyxy", "scores", "labels"))


def sorted_boxes(found: Detections) -> list[list[float]]:
    return sorted(found.boxes_xyxy.tolist())


# From here on: where tiles lie
@given(
    frame_hw=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    tile_hw=st.tuples(st.integers(32, 200), st.integers(32, 200)),
    overlap=st.floats(0, 0.9),
    whole=st.booleans(),
)
def test_tiles_cover_the_frame_with_the_overlap(
    frame_hw: tuple[int, int], tile_hw: tuple[int, int], overlap: float, whole: bool
) -> None:
    *tiles, last = Tiles(overlap=overlap, whole=whole).grid(frame_hw, tile_hw).windows
    everything = Window(0, 0, frame_hw[1], frame_hw[0])
    if not tiles:
        assert last == everything
        assert (frame_hw[0] <= tile_hw[0]) and (frame_hw[1] <= tile_hw[1])
        return
    if whole:
        assert last == everything
    else:
        tiles.append(last)
    sides = [min(frame, tile) for frame, tile in zip(frame_hw, tile_hw, strict=True)]
    assert all([w.y2 - w.y1, w.x2 - w.x1] == sides for w in tiles)
    rows, columns = sorted({(w.y1, w.y2) for w in tiles}), sorted({(w.x1, w.x2) for w in tiles})
    assert tiles == [Window(x1, y1, x2, y2) for y1, y2 in rows for x1, x2 in columns]  # row by row, each once
    for axis, length, side in ((rows, frame_hw[0], sides[0]), (columns, frame_hw[1], sides[1])):
        assert axis[0][0] == 0 and axis[-1][1] == length
        shared = [before[1] - after[0] for before, after in zip(axis, axis[1:], strict=False)]
        wanted = min(round(overlap * side), side - 1)
        assert all(s == wanted for s in shared[:-1]) and all(s >= wanted for s in shared)


def test_the_last_tile_is_moved_back() -> None:
    windows = Tiles(overlap=0.25, whole=False).grid((64, 150), (64, 64)).windows
    assert windows == (Window(0, 0, 64, 64), Window(48, 0, 112, 64), Window(86, 0, 150, 64))


# From here on: the merge
def merged_by_loops(parts: list[Detections], grid: Grid, threshold: float) -> Detections:
    """The rule of `Grid.merge`, pair by pair in Python."""
    height, width = grid.frame_hw
    rows = []
    for number, (part, w) in enumerate(zip(parts, grid.windows, strict=True)):
        near_x, near_y = max(1.0, 0.01 * (w.x2 - w.x1)), max(1.0, 0.01 * (w.y2 - w.y1))
        for box, score, label in zip(part.boxes_xyxy, part.scores.tolist(), part.labels.tolist(), strict=True):
            x1, y1, x2, y2 = (box + np.float32([w.x1, w.y1, w.x1, w.y1])).tolist()
            cut = (
                (w.x1 > 0 and x1 - w.x1 <= near_x) or (w.y1 > 0 and y1 - w.y1 <= near_y)
                or (w.x2 < width and w.x2 - x2 <= near_x) or (w.y2 < height and w.y2 - y2 <= near_y)
            )  # fmt: skip
            rows.append((score / 2 if cut else score, number, cut, score, label, (x1, y1, x2, y2)))
    kept: list[Any] = []
    for row in sorted(rows, key=lambda row: -row[0]):
        if not any(suppresses(other, row, threshold) or are_one(other, row, rows) for other in kept):
            kept.append(row)
    kept.sort(key=lambda row: (-row[3], rows.index(row)))
    boxes = np.array([row[5] for row in kept], np.float32).reshape(-1, 4)
    return Detections(
        boxes, np.array([row[3] for row in kept], np.float32), np.array([row[4] for row in kept], np.int32), CLASSES
    )


def suppresses(one: Any, other: Any, threshold: float) -> bool:
    (_, number, cut, _, label, a), (_, other_number, other_cut, _, other_label, b) = one, other
    if label != other_label or number == other_number:
        return False
    shared, union, smaller = areas_of(a, b)
    return bool(shared > threshold * (smaller if cut or other_cut else union))


def areas_of(a: Any, b: Any) -> tuple[float, float, float]:
    """The intersection, the union, and the smaller of two boxes."""
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared, sum(areas) - shared, min(areas)


def iou_of(one: Any, other: Any) -> float:
    shared, union, _ = areas_of(one[5], other[5])
    return shared / union if union else 0.0


def are_one(one: Any, other: Any, rows: list[Any]) -> bool:
    """Whether two boxes that no border cut are each other's nearest, and overlap by more than a half."""
    if one[4] != other[4] or one[1] == other[1] or one[2] or other[2] or iou_of(one, other) <= 0.5:
        return False
    return all(
        iou_of(this, row) <= iou_of(one, other)
        for this, that in ((one, other), (other, one))
        for row in rows
        if row[1] == that[1] and row[4] == that[4]
    )


@settings(max_examples=300)
@given(seed=st.integers(0, 10**6), threshold=st.sampled_from([0.0, 0.3, 0.45, 0.6, 0.8, 1.0]), whole=st.booleans())
def test_the_merge_is_that_of_plain_loops(seed: int, threshold: float, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    frame_hw = tuple(int(v) for v in rng.integers(40, 180, 2))
    grid = Tiles(overlap=float(rng.choice([0.0, 0.2, 0.5])), whole=whole).grid(frame_hw, (64, 64))  # type: ignore[arg-type]
    if len(grid.windows) == 1:
        return
    objects = rng.integers(0, max(frame_hw), (6, 2)).astype(np.float32)
    objects = np.concatenate([objects, objects + rng.integers(3, 70, (6, 2))], axis=1).astype(np.float32)
    parts = []
    for w in grid.windows:
        seen = objects[rng.random(6) < 0.8]
        seen = seen + rng.normal(0, rng.choice([0.0, 1.5, 6.0]), seen.shape).astype(np.float32)
        seen = np.clip(seen - np.float32([w.x1, w.y1] * 2), 0, np.float32([w.x2 - w.x1, w.y2 - w.y1] * 2))
        seen = seen[(seen[:, 2:] > seen[:, :2]).all(1)].astype(np.float32)
        scores = np.sort(rng.choice([0.1, 0.2, 0.4, 0.5, 0.8, 1.0], len(seen)))[::-1].astype(np.float32)  # with ties
        parts.append(Detections(seen, scores, rng.integers(0, 2, len(seen)).astype(np.int32), CLASSES))
    assert same(grid.merge(parts, threshold), merged_by_loops(parts, grid, threshold))


def of(*rows: tuple[list[float], float], label: int = 0) -> Detections:
    boxes = np.array([box for box, _ in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([s for _, s in rows], np.float32), np.full(len(rows), label, np.int32), CLASSES)


def test_a_part_of_an_object_does_not_come_before_the_object() -> None:
    grid = Tiles(overlap=0.25).grid((64, 112), (64, 64))  # two tiles, 0..64 and 48..112, and the frame
    halves = of(([20, 10, 64, 50], 0.9)), of(([0, 10, 50, 50], 0.8))
    car = of(([20, 10, 98, 50], 0.6))
    merged = grid.merge([*halves, car], 0.6)
    assert merged.boxes_xyxy.tolist() == [[20, 10, 98, 50]] and merged.scores.tolist() == pytest.approx([0.6])
    unsure = of(([20, 10, 98, 50], 0.3))  # not half as sure as the parts, which stay
    assert sorted_boxes(grid.merge([*halves, unsure], 0.6)) == [[20, 10, 64, 50], [48, 10, 98, 50]]
    other_class = of(([20, 10, 98, 50], 0.6), label=1)
    assert len(grid.merge([*halves, other_class], 0.6)) == 3


def test_the_nearest_box_of_another_window_is_of_the_same_object() -> None:
    """A tile and the whole frame show an object with an IoU of 0.54; so may two windows show two neighbors."""
    grid = Tiles(overlap=0.25).grid((64, 112), (64, 64))  # two tiles, 0..64 and 48..112, and the frame
    one, other = [10, 10, 40, 40], [19, 10, 49, 40]
    assert grid.merge([of((one, 0.9)), of(), of((other, 0.8))], 0.6).boxes_xyxy.tolist() == [one]
    assert len(grid.merge([of((one, 0.9)), of(), of(([20, 10, 50, 40], 0.8))], 0.6)) == 2  # an IoU of 0.5
    both = of((one, 0.9), (other, 0.7)), of(), of((one, 0.8), (other, 0.75))
    assert sorted_boxes(grid.merge([*both], 0.6)) == [one, other]  # each is nearest to itself
    assert len(grid.merge([of((one, 0.9)), of(), of((one, 0.8), (other, 0.7))], 0.6)) == 2
    cut = of(([25, 10, 64, 40], 0.9)), of(), of(([40, 10, 70, 40], 0.8))
    assert len(grid.merge([*cut], 0.85)) == 2  # by the smaller area, and the threshold itself


def test_boxes_of_one_window_are_not_compared_again() -> None:
    grid = Tiles(overlap=0.25, whole=False).grid((64, 112), (64, 64))
    pair = of(([1, 1, 20, 20], 0.9), ([1, 1, 20, 20], 0.8))
    assert len(grid.merge([pair, of()], 0.6)) == 2
    assert len(grid.merge([of(), of()], 0.6)) == 0


def test_boxes_without_area_suppress_nothing() -> None:
    grid = Tiles(overlap=0.25, whole=False).grid((64, 112), (64, 64))
    assert len(grid.merge([of(([50, 5, 50, 9], 0.9)), of(([2, 5, 2, 9], 0.8))], 0.6)) == 2


# From here on: the detector
def test_every_object_is_found_once_in_frame_pixels() -> None:
    image = scattered((300, 410))
    (everything,) = Detector(Spots(input_size_hw=(300, 410)))(image)
    for whole in (False, True):
        (found,) = Detector(Spots(), tiles=Tiles(whole=whole))(image)
        assert len(found) > 200
        if not whole:  # of small things the look at the whole frame has boxes of its own
            assert sorted_boxes(found) == sorted_boxes(everything)
            assert sorted(found.scores.tolist()) == sorted(everything.scores.tolist())
        assert (np.diff(found.scores) <= 0).all()


def test_the_whole_frame_finds_what_is_larger_than_a_tile() -> None:
    image = picture((128, 256), (20, 20, 236, 108, 1, 200))
    box = [20, 20, 236, 108]
    assert sorted_boxes(Detector(Spots(), tiles=Tiles())(image)[0]) == [pytest.approx(box, abs=4)]
    assert len(Detector(Spots(), tiles=Tiles(whole=False))(image)[0]) > 1


@pytest.mark.parametrize("size", [None, 64, (64, 64), (80, 200)])
def test_a_frame_that_fits_into_a_tile_is_not_cut(size: Any) -> None:
    image = scattered((60, 50))
    backend = Spots()
    (found,) = Detector(backend, tiles=Tiles(size=size))(image)
    assert backend.batches == [1] and same(found, Detector(Spots())(image)[0])


def test_a_smaller_tile_is_enlarged() -> None:
    image = picture((128, 128), (40, 44, 48, 50, 2, 250))
    (found,) = Detector(Spots(), tiles=Tiles(size=32, whole=False))(image)
    assert found.labels.tolist() == [2] and found.boxes_xyxy[0] == pytest.approx([40, 44, 48, 50], abs=0.6)


@pytest.mark.parametrize("tiles", [Tiles(), Tiles(size=(40, 64), overlap=0.5, whole=False)])
def test_batches_change_nothing_and_bound_the_memory(tiles: Tiles) -> None:
    frames = [scattered((150, 200), 1), scattered((40, 300), 2), scattered((30, 30), 3), scattered((201, 64), 4)]
    expected = [Detector(Spots(max_batch=16), tiles=tiles)(frame, threshold=0.0)[0] for frame in frames]
    for most, fixed in ((1, None), (3, None), (64, None), (4, 4)):
        backend = Spots(most, fixed)
        together = Detector(backend, tiles=tiles)(frames, threshold=0.0)
        assert all(same(a, b) for a, b in zip(together, expected, strict=True))
        assert max(backend.batches) <= most and (fixed is None or set(backend.batches) == {fixed})
        assert set(backend.batches[:-1]) <= {most}  # batches go on over the frames
    assert Detector(Spots(), tiles=tiles)([]) == []


def test_tiles_and_the_frame_may_have_inputs_of_several_sizes() -> None:
    """Under the short-side rule: 64x64 for a tile, 64x96 for this frame."""
    rule = {"short": 64, "long": 96, "multiple": 32, "floor": False, "fill_bgr": [0, 0, 0]}
    image = scattered((100, 150), 8)
    answers = []
    for most in (1, 5, 16):
        detector = Detector(Spots(most, kind="checkpoint", resize=rule), tiles=Tiles())
        answers += detector([image, image])
        with detector.batcher() as batcher:
            answers.append(batcher.submit(image).result())
    assert len(answers[0]) > 10 and all(same(answer, answers[0]) for answer in answers)


def test_a_threshold_takes_from_the_same_detections() -> None:
    detector, image = Detector(Spots(), tiles=Tiles()), scattered((150, 200), 5)
    (everything,) = detector(image, threshold=0.0)
    for threshold in (0.4, 0.9, {"ant": 0.3, "bee": 0.8, "cat": 1.0}):
        (found,) = detector(image, threshold=threshold)
        assert same(found, everything.filter(threshold)) and 0 < len(found) < len(everything)


def test_tiles_of_a_region_lie_in_it() -> None:
    image, detector = scattered((200, 300), 6), Detector(Spots(), tiles=Tiles())
    (found,) = detector(image, roi=(31, 17, 220, 180))
    (alone,) = detector(image[17:180, 31:220])
    assert same(found, Detections(alone.boxes_xyxy + np.float32([31, 17] * 2), alone.scores, alone.labels, CLASSES))
    polygon = [(31, 17), (220, 17), (220, 180)]
    centers = found.boxes_xyxy.reshape(-1, 2, 2).mean(1)
    inside = (centers[:, 0] - 31) * 163 > (centers[:, 1] - 17) * 189
    assert same(detector(image, roi=polygon)[0], found[inside])


def test_frames_of_any_size_may_be_cut() -> None:
    long = np.broadcast_to(np.full((1, 1, 3), 100, np.uint8), (MAX_PIXELS // 16384 + 1, 16384, 3))
    detector = Detector(Spots(), tiles=Tiles(size=9000, overlap=0.0, whole=False))
    assert len(detector(long)[0]) == 0
    assert len(detector.backend.batches) == 1  # type: ignore[attr-defined]
    with pytest.raises(FrameError, match=r"detect in tiles \(Detector\(..., tiles=Tiles\(\)\)\)"):
        Detector(Spots())(long)


def test_frames_on_a_device_are_refused() -> None:
    described = {"data": (64, False), "shape": (64, 64, 3), "typestr": "|u1", "strides": None, "version": 3}
    backend = type("OnDevice", (Spots,), {"takes_device_frames": True, "device": "cuda:0"})()
    with pytest.raises(FrameError, match="frame 0: tiles are cut in host memory, got an array on a device; copy it"):
        Detector(backend, tiles=Tiles())(SimpleNamespace(__cuda_array_interface__=described))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("size", [31, 0, -64, (64, 31), (64,), (64, 64, 64), 64.0, True, "auto", [64, 64]]),
        ("overlap", [-0.1, 0.91, float("nan"), True]),
    ],
)
def test_impossible_tiles_are_refused_by_key(key: str, values: list[Any]) -> None:
    for value in values:
        with raises(ArgumentError, key=f"Tiles.{key}"):
            Tiles(**{key: value})


def test_tiles_smaller_than_a_cell_are_refused() -> None:
    backend = Spots(model={"neck": {"levels": [3, 7]}})
    with raises(ArgumentError, key="Tiles.size"):
        Detector(backend, tiles=Tiles(size=(640, 127)))
    assert Detector(backend, tiles=Tiles(size=128)).tiles == Tiles(size=128)
    assert Detector(backend, tiles=Tiles()).tiles == Tiles()  # the model's own size is what it was made for


def test_tiles_have_the_size_that_the_graph_takes() -> None:
    backend = Spots(source_size_hw=(96, 128))
    assert backend.card.tile_hw(Tiles()) == (96, 128)


# From here on: the other ways in
@pytest.mark.parametrize("max_batch", [1, 5, 16])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_batcher_answers_each_frame_once_and_as_the_detector(max_batch: int, workers: int) -> None:
    backend = Spots()
    detector = Detector(backend, tiles=Tiles())
    frames = [scattered((150 + 20 * i, 200), i) for i in range(6)] + [scattered((30, 30), 7)]
    regions = [None, (10, 10, 150, 120), None, [(0, 0), (200, 0), (200, 170)], None, None, None]
    expected = [detector(f, threshold=0.4, roi=roi)[0] for f, roi in zip(frames, regions, strict=True)]
    backend.batches.clear()
    with detector.batcher(max_batch=max_batch, workers=workers) as batcher:
        pairs = enumerate(zip(frames, regions, strict=True))
        futures = [batcher.submit(frame, i % 2, threshold=0.4, roi=roi) for i, (frame, roi) in pairs]
        answers = [future.result() for future in futures]
    assert all(same(a, b) for a, b in zip(answers, expected, strict=True))
    assert max(backend.batches) <= max_batch and batcher.metrics().answered == len(frames)


def test_a_batch_that_fails_fails_the_frames_with_a_tile_in_it() -> None:
    class Failing(Spots):
        def __call__(self, images: Any) -> RawOutputs:
            if (images[:, 0, 0, 0] == 7).any():
                raise RuntimeError("seven")
            return super().__call__(images)

    bad = picture((64, 300))
    bad[:, 200:] = 7
    with Detector(Failing(), tiles=Tiles(whole=False)).batcher(max_batch=2) as batcher:
        futures = [batcher.submit(frame) for frame in (scattered((64, 300)), bad, scattered((100, 64), 1))]
        assert len(futures[0].result()) and len(futures[2].result())
        with pytest.raises(RuntimeError, match="seven"):
            futures[1].result()


def test_a_stream_is_cut_too(tmp_path: Path) -> None:
    clip = video(tmp_path / "clip.avi", [scattered((150, 200), i) for i in range(4)])
    detector = Detector(Spots(), tiles=Tiles())
    seen = [(frame, found) for frame, found in detector.stream(clip, batch=2)]
    assert len(seen) == 4 and all(same(found, detector(frame)[0]) and len(found) for frame, found in seen)


# From here on: the commands, on a model that answers with the color of its top left pixel
def test_detect_takes_tiles(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    model, image = onnx_file(size=(64, 96)), np.full((64, 96 * 3, 3), 30, np.uint8)
    image[:, 96:192], image[:, 192:] = (1, 250, 20), (2, 200, 30)
    write_image(tmp_path / "wide.png", image)
    source, out = str(tmp_path / "wide.png"), tmp_path / "out.jsonl"
    command = ["detect", source, "--model", str(model), "--no-save", "--threshold", "0.7", "--quiet"]
    for options, tiles in (
        ([], None),
        (["--tiles", "auto"], Tiles()),
        (["--tiles", "64", "--tile-overlap", "0.5"], Tiles(size=64, overlap=0.5)),
        (["--tiles", "64,96", "--tile-overlap", "0", "--no-tile-whole"], Tiles(size=(64, 96), overlap=0, whole=False)),
    ):
        assert main([*command, "--json", str(out), *options]) == 0
        (line,) = out.read_text().splitlines()
        (found,) = Detector(model, threshold=0.7, tiles=tiles)(image)
        assert json.loads(line)["detections"] == found.to_json()
    assert found.boxes_xyxy.tolist() == [[96, 0, 116, 20], [192, 0, 222, 30]]
    with raises(DetectError, key="tiles"):
        detect(source, Detector(model), DetectOptions(out=tmp_path / "out", tiles="auto"))


@pytest.mark.parametrize(
    ("options", "at_fault"),
    [
        (["--tiles", "31"], "--tiles"), (["--tiles", "some"], "--tiles"), (["--tiles", "64,64,64"], "--tiles"),
        (["--tiles", "64", "--tile-overlap", "1"], "--tile-overlap"), (["--tile-overlap", "0.3"], "--tile-overlap"),
        (["--no-tile-whole"], "--no-tile-whole"),
    ],
)  # fmt: skip
def test_impossible_tiles_are_wrong_usage(options: list[str], at_fault: str, capsys: CaptureFixture[str]) -> None:
    for command in (["detect", "a.jpg"], ["eval", "a.onnx"]):
        with pytest.raises(SystemExit) as exit_:
            main([*command, *options])
        assert exit_.value.code == 2 and f"argument {at_fault}: " in capsys.readouterr().err


def test_eval_takes_tiles(
    onnx_file: Callable[..., Path], coco_files: Callable[..., tuple[Path, Path]], capsys: CaptureFixture[str]
) -> None:
    """The right half of the picture has the objects, and the model looks at the top left pixel only."""
    content = {
        "images": [{"id": 1, "file_name": "wide.png", "width": 192, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2, "bbox": [96, 0, 30, 30], "area": 900, "iscrowd": 0}],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    annotations, images = coco_files(content)
    image = np.zeros((64, 192, 3), np.uint8)
    image[:, 96:] = (1, 250, 30)
    write_image(images / "wide.png", image)
    out = annotations.parent / "out.json"
    command = ["eval", str(onnx_file(size=(64, 96))), "--annotations", str(annotations), "--images", str(images)]
    scores = []
    for options in ([], ["--tiles", "auto", "--tile-overlap", "0"]):
        assert main([*command, "--json", str(out), "--quiet", *options]) == 0
        scores.append(json.loads(out.read_text())["map"])
    assert scores == [0, 100]
    with pytest.raises(SystemExit):
        main(["eval", "--detections", "a.json", "--annotations", "b.json", "--tiles", "auto"])
    assert "argument --tiles: " in capsys.readouterr().err
