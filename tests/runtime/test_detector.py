from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from isodet.errors import ArgumentError
from runtime.__main__ import main
from runtime.backends.cuda.devices import cuda_device_count
from runtime.backends.load import load_backend
from runtime.backends.ort.backend import OrtBackend
from runtime.backends.protocol import Backend, BackendError, RawOutputs
from runtime.card.card import Card, CardError
from runtime.detections import Detection, Detections
from runtime.detector import Detector
from runtime.images.frames import FrameError
from runtime.images.image import ImageError, write_image
from tests.at_fault import raises
from tests.runtime.conftest import make_card, pixel_detector

OnnxFile = Callable[..., Path]


def frame(label: int, score: int, side: int, hw: tuple[int, int] = (32, 48)) -> np.ndarray:
    """A frame whose answer from the pixel detector is known: color (label, score * 255, box side)."""
    return np.full((*hw, 3), (label, score, side), np.uint8)


def test_one_frame(detector: Detector, card: Card) -> None:
    (found,) = detector(frame(1, 204, 20))
    assert found.boxes_xyxy.tolist() == [[0, 0, 20, 20], [5, 5, 10, 10]]
    np.testing.assert_allclose(found.scores, [0.8, 0.4], rtol=1e-6)
    assert found.names == ["bee", "bee"]
    assert (detector.card, detector.class_names, detector.input_size_hw) == (card, ("ant", "bee", "cat"), (32, 48))
    assert detector.backend.device == "cpu" and detector.backend.name.startswith("ONNX Runtime")
    assert detector.threshold == 0.3


def test_thresholds(detector: Detector, onnx_file: OnnxFile) -> None:
    assert [len(detector(frame(1, 204, 20), threshold=t)[0]) for t in (0.0, 0.5, 0.9)] == [2, 1, 0]
    assert len(Detector(onnx_file(), threshold=0.5)(frame(1, 204, 20))[0]) == 1
    assert len(detector(frame(1, 0, 20), threshold=0.0)[0]) == 0  # num_dets is 0, the slots are not
    for bad in (-0.1, 1.1, float("nan")):
        with raises(ArgumentError, key="threshold"):
            detector(frame(1, 204, 20), threshold=bad)


def test_boxes_are_in_the_frames_own_pixels(detector: Detector) -> None:
    big = frame(2, 255, 24, hw=(320, 240))  # fits 32x48 at a tenth: 32x24
    (found,) = detector(big)
    assert found.boxes_xyxy.tolist() == [[0, 0, 240, 240], [60, 60, 120, 120]]
    wide = frame(2, 255, 48, hw=(10, 96))  # fits at a half: 5x48; the box hangs over the frame's bottom
    # The second box, 12..24, lies below the 5 rows of the frame: in the gray border, so it is no detection.
    assert detector(wide)[0].boxes_xyxy.tolist() == [[0, 0, 96, 10]]


@pytest.mark.parametrize("batch", ["dynamic", 1, 3])
def test_order_survives_chunks_sizes_and_fixed_batches(onnx_file: OnnxFile, batch: int | str) -> None:
    detector = Detector(onnx_file(batch=batch))
    assert detector.backend.fixed_batch == (None if batch == "dynamic" else batch)
    detector.backend.max_batch = 4 if batch == "dynamic" else int(batch)
    rng = np.random.default_rng(0)
    frames = [frame(i % 3, 100 + i, 8, hw=tuple(rng.integers(20, 90, 2))) for i in range(11)]
    results = detector(frames, threshold=0.0)
    assert [r.labels[0] for r in results] == [i % 3 for i in range(11)]
    np.testing.assert_allclose([r.scores[0] for r in results], [(100 + i) / 255 for i in range(11)], rtol=1e-6)
    alone = [detector(f, threshold=0.0)[0] for f in frames]
    assert all((a.boxes_xyxy == b.boxes_xyxy).all() for a, b in zip(results, alone, strict=True))


def test_the_forms_of_input(detector: Detector, tmp_path: Path) -> None:
    a, b = frame(0, 200, 10), frame(1, 150, 10)
    write_image(tmp_path / "a.png", a)
    assert [r.names[0] for r in detector([a, b])] == ["ant", "bee"]
    assert [r.names[0] for r in detector((a, b))] == ["ant", "bee"]
    assert [r.names[0] for r in detector(np.stack([a, b]))] == ["ant", "bee"]
    assert detector(str(tmp_path / "a.png"))[0].names[0] == "ant"
    assert [r.names[0] for r in detector([b, tmp_path / "a.png"])] == ["bee", "ant"]
    assert detector([]) == [] and detector(np.zeros((0, 4, 4, 3), np.uint8)) == []
    assert detector(a[:, ::-1])[0].names[0] == "ant"
    with raises(ImageError, path=tmp_path / "gone.jpg", image="gone.jpg"):
        detector(tmp_path / "gone.jpg")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"frame 1: expected uint8 \[H, W, 3\] .*got float32 .*scale it to 0..255"),
        (np.zeros((4, 4, 3), np.int64), r"frame 1: .* got int64 \[4, 4, 3\]$"),
        (np.zeros((4, 4), np.uint8), "frame 1: .*a gray picture; use cv2.cvtColor.*GRAY2BGR"),
        (np.zeros((4, 4, 1), np.uint8), "frame 1: .*a gray picture"),
        (np.zeros((4, 4, 4), np.uint8), "frame 1: .*alpha; use cv2.cvtColor.*BGRA2BGR"),
        (np.zeros((3, 4, 5), np.uint8), r"frame 1: .* got uint8 \[3, 4, 5\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"frame 1: .* got uint8 \[1, 4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), r"frame 1: .* at least 1x1 pixel, got uint8 \[0, 4, 3\]"),
        (None, "frame 1: .* got NoneType"),
        ([[0]], "frame 1: .* got list"),
    ],
)
def test_bad_frames_are_named(detector: Detector, bad: Any, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        detector([frame(0, 1, 1), bad])


def test_bad_inputs_as_a_whole(detector: Detector) -> None:
    with pytest.raises(FrameError, match="got int"):
        detector(3)  # type: ignore[arg-type]
    with pytest.raises(FrameError, match=r"frame 0: .*got uint8 \[2, 2, 2, 2, 2\]"):
        detector(np.zeros((2, 2, 2, 2, 2), np.uint8))
    with pytest.raises(FrameError, match="frame 0: .*gray"):
        detector(np.zeros((5, 5), np.uint8))


def test_a_model_that_is_not_what_its_card_says(tmp_path: Path) -> None:
    def file(model: onnx.ModelProto, **changes: Any) -> Path:
        onnx.helper.set_model_props(model, {"isodet": json.dumps(make_card(**changes).to_json())})
        onnx.save(model, tmp_path / "a.onnx")
        return tmp_path / "a.onnx"

    with pytest.raises(CardError, match=r"a\.onnx: expected one input, uint8 \[B, 64, 64, 3\]"):
        Detector(file(pixel_detector(make_card()), input_size_hw=(64, 64)))
    with raises(CardError, key="batch", path=tmp_path / "a.onnx"):
        Detector(file(pixel_detector(make_card()), batch=2))
    with raises(CardError, key="batch", path=tmp_path / "a.onnx"):
        Detector(file(pixel_detector(make_card(batch=2))))
    model = pixel_detector(make_card())
    model.graph.output.pop()
    with pytest.raises(CardError, match="expected the outputs num_dets .* labels"):
        Detector(file(model))


def test_files_that_are_no_models(onnx_file: OnnxFile, tmp_path: Path) -> None:
    path = onnx_file()
    model = onnx.load(path)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, path)
    with raises(BackendError, path=path):
        Detector(path, device="cpu")
    with raises(CardError, path=tmp_path / "gone.onnx"):
        Detector(tmp_path / "gone.onnx")


def test_models_are_told_apart_by_content(onnx_file: OnnxFile, tmp_path: Path) -> None:
    odd = onnx_file().rename(tmp_path / "model.pt")
    assert isinstance(load_backend(odd), OrtBackend)


def test_devices(onnx_file: OnnxFile) -> None:
    for bad in ("gpu", "cuda:", "cuda:x", "tpu:0", ""):
        with raises(BackendError, key="device"):
            Detector(onnx_file(), device=bad)
    with raises(BackendError, key="threads"):
        Detector(onnx_file(), threads=0)
    if cuda_device_count() == 0:  # asked for and absent is an error, never the CPU in silence
        with raises(BackendError, key="device"):
            Detector(onnx_file(), device="cuda")


class FixedBackend(Backend):
    """Answers with whatever it is given."""

    name, device, max_batch, fixed_batch = "fixed", "cpu", 8, None

    def __init__(self, card: Card, raw: RawOutputs) -> None:
        self.card, self.raw = card, raw

    def __call__(self, images: np.ndarray) -> RawOutputs:
        return self.raw


def test_a_backend_that_gives_nonsense_is_found_out(card: Card) -> None:
    def raw(**changes: Any) -> RawOutputs:
        good = RawOutputs(
            np.array([[2]], np.int32), np.array([[[0, 0, 9, 9], [1, 1, 5, 5]]], np.float32),
            np.array([[0.9, 0.8]], np.float32), np.array([[0, 1]], np.int32),
        )  # fmt: skip
        return good._replace(**changes)

    assert len(Detector(FixedBackend(card, raw()))(frame(0, 0, 0))[0]) == 2
    for changes, message in (
        ({"labels": np.array([[0, 3]], np.int32)}, "labels"),
        ({"scores": np.array([[0.8, 0.9]], np.float32)}, "descending"),
        ({"scores": np.array([[1.9, 0.9]], np.float32)}, "scores"),
    ):
        with pytest.raises(ValueError, match=message):
            Detector(FixedBackend(card, raw(**changes)))(frame(0, 0, 0))


# From here on: thresholds of single classes
SCORES = (0.9, 0.7, 0.6, 0.5, 0.35, 0.2)
LABELS = (0, 1, 0, 1, 2, 2)


def six_found(card: Card) -> Backend:
    """A backend that always finds the same six, in one image."""
    boxes = np.tile(np.array([[2, 2, 20, 20]], np.float32), (1, 6, 1))
    boxes[:, 2] = [30, 40, 31, 41]  # in the gray border: never reported
    scores, labels = np.array([SCORES], np.float32), np.array([LABELS], np.int32)
    return FixedBackend(card, RawOutputs(np.array([[6]], np.int32), boxes, scores, labels))


def kept(detector: Detector, **keywords: object) -> list[float]:
    (found,) = detector(np.zeros((28, 48, 3), np.uint8), **keywords)  # type: ignore[arg-type]
    return [round(float(s), 2) for s in found.scores]


def test_each_class_has_its_own() -> None:
    detector = Detector(six_found(make_card(threshold=0.3, thresholds={"ant": 0.95, "cat": 0.2})))
    assert kept(detector) == [0.9, 0.7, 0.5, 0.35]  # as ever: one for all, the card's
    assert kept(detector, threshold="card") == [0.7, 0.5, 0.35, 0.2]  # bee has none of its own: 0.3
    assert kept(detector, threshold={"bee": 0.6}) == [0.9, 0.7, 0.35]
    assert kept(detector, threshold={}) == kept(detector)
    by_card = Detector(detector.backend, threshold="card")
    assert kept(by_card) == [0.7, 0.5, 0.35, 0.2] and kept(by_card, threshold=0.6) == [0.9, 0.7]
    assert [len(f) for _, f in zip("ab", (by_card(np.zeros((28, 48, 3), np.uint8))[0],) * 2, strict=True)] == [4, 4]


def test_what_is_no_threshold() -> None:
    detector = Detector(six_found(make_card()))
    with raises(ArgumentError, key="threshold") as error:
        kept(detector, threshold={"wasp": 0.5})
    assert "known: ant, bee, cat" in str(error.value)
    for bad in ({"ant": 1.5}, {"ant": float("nan")}, "model"):
        with raises(ArgumentError, key="threshold"):
            kept(detector, threshold=bad)


def test_the_card_carries_them() -> None:
    plain = make_card()
    assert "thresholds" not in plain.to_json() and Card.from_json(plain.to_json(), "old") == plain
    card = replace(plain, thresholds={"ant": 0.25, "bee": 1})
    assert Card.from_json(card.to_json(), "new").thresholds == {"ant": 0.25, "bee": 1}
    for bad in ({"wasp": 0.5}, {"ant": 2}, {"ant": True}, {"ant": "0.5"}, [0.5]):
        with pytest.raises(CardError, match=r"thresholds(\.wasp|\.ant)?: (expected|there is no)"):
            replace(plain, thresholds=bad)


def test_the_command_takes_the_cards(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((32, 48, 3), (1, 204, 20), np.uint8))
    assert main(["detect", str(tmp_path / "a.png"), "--model", str(onnx_file()), "--out", str(tmp_path / "o"),
                 "--threshold", "card", "--quiet"]) == 0  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(["detect", str(tmp_path / "a.png"), "--threshold", "cards"])
    assert stop.value.code == 2


# From here on: detections
NAMES = ("ant", "bee", "cat")


def three(**changes: Any) -> Detections:
    values: dict[str, Any] = {
        "boxes_xyxy": np.array([[0, 1, 10, 11], [2, 2, 4, 8], [5.128, 5, 5, 5]], np.float32),
        "scores": np.array([0.9, 0.5, 0.1], np.float32),
        "labels": np.array([2, 0, 1], np.int32),
        "class_names": NAMES,
    }
    values["boxes_xyxy"][2, 2] = 6
    return Detections(**{**values, **changes})


def test_reading() -> None:
    d = three()
    assert len(d) == 3 and d.names == ["cat", "ant", "bee"]
    assert d[0] == next(iter(d)) == Detection((0.0, 1.0, 10.0, 11.0), pytest.approx(0.9), 2, "cat")
    assert d[-1].name == "bee"
    assert d[np.array([True, False, True])].labels.tolist() == [2, 1]
    assert d[1:].names == ["ant", "bee"] and d[[False] * 3].names == [] and d[np.array([0, 2])].names == ["cat", "bee"]
    with pytest.raises(IndexError):
        d[3]
    with raises(ArgumentError, key="Detections.scores"):
        d[np.array([2, 0])]


def test_filter() -> None:
    d = three()
    assert d.filter(threshold=0.5).names == ["cat", "ant"]  # a score equal to the threshold stays
    assert d.filter(threshold=0.1).names == d.names  # compared in float32, the scores' own precision
    assert d.filter(classes=["bee", 2]).names == ["cat", "bee"] and d.filter(classes=[]).names == []
    assert d.filter(0.2, ["bee"]).names == [] and d.filter(0.6, classes=["cat", "ant"]).names == ["cat"]
    assert d.filter({"cat": 0.95, "bee": 0.1}).names == ["ant", "bee"]  # ant has no limit of its own
    with raises(ArgumentError, key="classes"):
        d.filter({"dog": 0.5})
    for bad in (["dog"], [3], [-1]):
        with raises(ArgumentError, key="classes") as error:
            d.filter(classes=bad)
        assert "known: ant, bee, cat" in str(error.value)
    with raises(ArgumentError, key="classes"):
        d.filter(classes="bee")


def test_empty() -> None:
    d = Detections.empty(list(NAMES))
    assert len(d) == 0 and d.names == [] and list(d) == [] and d.to_json() == [] and d.to_coco(1, [1, 2, 3]) == []
    assert d.filter(0.5).boxes_xyxy.shape == (0, 4) and d.class_names == NAMES and d[[]].names == []


def test_merge() -> None:
    a, b = three(), three(scores=np.array([0.95, 0.5, 0.05], np.float32))
    both = Detections.merge([a, b, Detections.empty(NAMES)])
    assert both.scores.tolist() == sorted([*a.scores.tolist(), *b.scores.tolist()], reverse=True)
    assert {tuple(box) for box in both.boxes_xyxy.tolist()} == {tuple(box) for box in a.boxes_xyxy.tolist()}
    assert both.labels.tolist() == [2, 2, 0, 0, 1, 1] and len(Detections.merge([both])) == 6
    with raises(ArgumentError, key="parts"):
        Detections.merge([a, Detections.empty(["x"])])
    with raises(ArgumentError, key="parts"):
        Detections.merge([])


def test_supervision_gets_arrays_of_its_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)  # as where it is not installed
    with pytest.raises(ImportError, match=r"pip install 'isodet\[track\]'"):
        three().to_supervision()

    @dataclass
    class TheirDetections:
        xyxy: np.ndarray
        confidence: np.ndarray
        class_id: np.ndarray
        data: dict[str, np.ndarray]

    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=TheirDetections))
    theirs = three().to_supervision()
    assert theirs.xyxy.tolist() == three().boxes_xyxy.tolist() and theirs.class_id.tolist() == [2, 0, 1]
    assert theirs.class_id.dtype.kind == "i" and theirs.data["class_name"].tolist() == ["cat", "ant", "bee"]
    assert Detections.empty(NAMES).to_supervision().data["class_name"].shape == (0,)


def test_json_and_coco() -> None:
    d = three()
    assert d.to_json()[2] == {"box_xyxy": [5.13, 5.0, 6.0, 5.0], "score": 0.1, "label": 1, "name": "bee"}
    assert d.to_coco(7, [10, 20, 30])[1] == {"image_id": 7, "category_id": 10, "bbox": [2, 2, 2, 6], "score": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.array([0.9, 0.5, 0.1])}, r"scores: expected a NumPy array float32 \[3\], got float64 \[3\]"),
        ({"scores": [0.9, 0.5, 0.1]}, r"scores: expected a NumPy array float32 \[D\], got list"),
        ({"boxes_xyxy": np.zeros((2, 4), np.float32)}, r"boxes_xyxy: expected .* \[3, 4\], got float32 \[2, 4\]"),
        ({"boxes_xyxy": np.zeros((3, 5), np.float32)}, r"boxes_xyxy: expected .* \[3, 4\], got float32 \[3, 5\]"),
        ({"labels": np.zeros(3, np.int64)}, r"labels: expected a NumPy array int32 \[3\], got int64"),
        ({"labels": np.array([0, 3, 0], np.int32)}, r"labels: expected 0 to 2, got 3 \(row 1\)"),
        ({"labels": np.array([0, 0, -1], np.int32)}, r"labels: expected 0 to 2, got -1 \(row 2\)"),
        ({"scores": np.array([0.1, 0.5, 0.9], np.float32)}, "expected descending"),
        ({"scores": np.array([1.5, 0.5, 0.1], np.float32)}, r"expected 0 to 1, got 1.5 \(row 0\)"),
        ({"scores": np.array([0.9, np.nan, 0.1], np.float32)}, r"expected 0 to 1, got nan \(row 1\)"),
        ({"boxes_xyxy": np.full((3, 4), np.nan, np.float32)}, "expected finite pixels"),
        ({"boxes_xyxy": np.array([[5, 0, 4, 1]] * 3, np.float32)}, r"expected x1 <= x2 and y1 <= y2, got \[5.0"),
    ],
)
def test_what_is_wrong_is_refused_at_birth(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        three(**change)
