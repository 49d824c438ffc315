"""A tiny ONNX detector whose answer can be read off the picture, so that every number is known beforehand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.card.card import Card
from runtime.datasets.annotations import EVERY_CLASS, CocoDataset, ImageRecord, Problems
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.images.image import write_image
from runtime.streams.capture import DecoderName
from tests.runtime.as_found import voc_set, yolo_set
from tests.runtime.cameras import until
from tests.runtime.echo import Echo, Gate
from tests.runtime.engines import engine_file as engine_file
from tests.runtime.engines import machine as machine

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def card() -> Card:
    return make_card()


@pytest.fixture
def onnx_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes `pixel_detector` to a file and returns its path."""

    def write(name: str = "tiny.onnx", batch: int | str = "dynamic", size: tuple[int, int] = (32, 48)) -> Path:
        path = tmp_path / name
        path.write_bytes(pixel_detector(make_card(batch=batch, input_size_hw=size)).SerializeToString())
        return path

    return write


@pytest.fixture
def detector(onnx_file: Callable[..., Path]) -> Detector:
    return Detector(onnx_file(), device="cpu", threads=1)


@pytest.fixture
def coco_files(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes a COCO file of the content given, and one small PNG for each of its images."""

    def write(content: dict[str, Any], pictures: bool = True) -> tuple[Path, Path]:
        folder = tmp_path / "images"
        folder.mkdir(exist_ok=True)
        for image in content.get("images", []) if pictures else []:
            pixels = np.full((image["height"], image["width"], 3), image["id"] % 256, np.uint8)
            write_image(folder / image["file_name"], pixels)
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))  # json writes NaN and Infinity as labeling tools do
        return path, folder

    return write


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    return yolo_set(tmp_path / "yolo")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return voc_set(tmp_path / "voc")


@pytest.fixture
def gated(card: Card) -> tuple[Detector, Echo, Gate]:
    """A detector whose engine is held at its first batch."""
    gate = Gate()
    echo = Echo(card, before=gate)
    return Detector(echo, threshold=0.0), echo, gate


def random_scene(
    seed: int = 0, images: int = 12, crowds: float = 0.0, tie: bool = False, found: bool = True, objects: bool = True
) -> tuple[CocoDataset, dict[int, Detections]]:
    """Random objects, and detections that are partly right: moved, confused, doubled, missed and invented.

    Class `cat` is there but is never reported, `dog` is neither.
    """
    rng = np.random.default_rng(seed)
    names = ("ant", "bee", "cat", "dog")
    records, answers = [], {}
    for image_id in rng.permutation(np.arange(1, images + 1)).tolist():
        count = int(rng.integers(0, 7)) if objects else 0
        corner, sides = rng.integers(0, 120, (count, 2)), rng.integers(4, 80, (count, 2))
        boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32).reshape(-1, 4)
        labels = rng.integers(0, 3, count)
        rows = []
        for box, label in zip(boxes, labels, strict=True):
            for _ in range(int(rng.integers(0, 4))):
                moved = box + rng.normal(0, 3, 4)
                if (moved[2:] > moved[:2]).all():
                    rows.append((moved, rng.random(), min(int(label if rng.random() < 0.7 else rng.integers(0, 2)), 1)))
        rows += [(np.array([5.0, 5, 60, 70]) + rng.integers(0, 9), rng.random(), int(rng.integers(0, 2))) for _ in "ab"]
        rows = [(box, round(score, 1) if tie else score, label) for box, score, label in rows] if found else []
        rows.sort(key=lambda row: -row[1])
        answers[image_id] = Detections(
            np.array([r[0] for r in rows], np.float32).reshape(-1, 4), np.array([r[1] for r in rows], np.float32),
            np.array([r[2] for r in rows], np.int32), names,
        )  # fmt: skip
        area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        crowd = rng.random(count) < crowds
        labels = np.where(crowd & (rng.random(count) < 0.4), EVERY_CLASS, labels)
        records.append(ImageRecord(image_id, Path(f"{image_id}.png"), 200, 200, boxes, labels, crowd, area))
    dataset = CocoDataset(Path("scene.json"), Path("."), names, (3, 5, 7, 9), tuple(records), Problems())
    return dataset, answers


def make_card(**changes: Any) -> Card:
    values: dict[str, Any] = {
        "kind": "onnx",
        "classes": CLASSES,
        "input_size_hw": (32, 48),
        "score_threshold": 0.05,
        "nms": {"kind": "portable", "iou": 0.6, "candidates": 10, "detections": 2},
    }
    return Card(**{**values, **changes})


def pixel_detector(card: Card) -> onnx.ModelProto:
    """Reads the top left pixel (b, g, r) and answers with two detections of label min(b, 2).

    Scores g/255 and g/510; boxes [0, 0, r, r] and [r/4, r/4, r/2, r/2] in input pixels; none where g is 0.
    A picture of one color keeps it through any letterbox, so frames of every size have a known answer.
    """
    height, width = card.input_size_hw
    constants = {
        "zero": np.array([0, 0], np.int64), "one": np.array([1, 1], np.int64), "axes": np.array([1, 2], np.int64),
        "pixel_shape": np.array([-1, 3], np.int64), "boxes_shape": np.array([-1, 2, 4], np.int64),
        "boxes_w": np.array([[0] * 8, [0] * 8, [0, 0, 1, 1, 0.25, 0.25, 0.5, 0.5]], np.float32),
        "scores_w": np.array([[0, 0], [1 / 255, 1 / 510], [0, 0]], np.float32),
        "labels_w": np.array([[1, 1], [0, 0], [0, 0]], np.float32),
        "count_w": np.array([[0], [1], [0]], np.float32),
        "low": np.array(0, np.float32), "high": np.array(1, np.float32), "two": np.array(2, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Slice", ["images", "zero", "one", "axes"], ["corner"]),
        helper.make_node("Cast", ["corner"], ["corner_f"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["corner_f", "pixel_shape"], ["pixel"]),
        helper.make_node("MatMul", ["pixel", "boxes_w"], ["flat"]),
        helper.make_node("Reshape", ["flat", "boxes_shape"], ["boxes"]),
        helper.make_node("MatMul", ["pixel", "scores_w"], ["scores"]),
        helper.make_node("MatMul", ["pixel", "labels_w"], ["labels_f"]),
        helper.make_node("Clip", ["labels_f", "low", "two"], ["labels_c"]),
        helper.make_node("Cast", ["labels_c"], ["labels"], to=TensorProto.INT32),
        helper.make_node("MatMul", ["pixel", "count_w"], ["green"]),
        helper.make_node("Clip", ["green", "low", "high"], ["any"]),
        helper.make_node("Mul", ["any", "two"], ["count"]),
        helper.make_node("Cast", ["count"], ["num_dets"], to=TensorProto.INT32),
    ]
    batch = "batch" if card.batch == "dynamic" else card.batch
    graph = helper.make_graph(
        nodes, "pixel_detector",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, height, width, 3])],
        [
            helper.make_tensor_value_info("num_dets", TensorProto.INT32, [batch, 1]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [batch, 2, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 2]),
            helper.make_tensor_value_info("labels", TensorProto.INT32, [batch, 2]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"isodet": json.dumps(card.to_json()), "other": "thing"})
    onnx.checker.check_model(model)
    return model


@pytest.fixture
def no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("isodet-source")])


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """What a capture hangs at until the test sets it, or ends."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(params=["opencv", "pyav"])
def decoder(request: pytest.FixtureRequest) -> DecoderName:
    if request.param == "pyav":
        pytest.importorskip("av", reason="PyAV, the extra video, is not installed")
    return cast(DecoderName, request.param)
