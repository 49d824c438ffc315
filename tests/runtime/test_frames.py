"""What an application may hand over as a frame, and through which region it is looked at."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isodet.errors import ArgumentError
from runtime import Detections, Detector, FrameError
from runtime.backends.protocol import BackendError
from runtime.backends.torch.backend import TorchBackend, wait_for
from runtime.card.card import Card
from runtime.images.device_frames import LEGACY_STREAM, device_frames
from runtime.images.encoded import MAX_PIXELS
from runtime.images.frames import as_list, load_frame
from runtime.images.image import FixedSize, write_image
from runtime.images.region import Region
from tests.at_fault import raises
from tests.runtime.echo import Echo, frame, number
from tests.runtime.engines import frames, pixels_as_boxes
from tests.runtime.test_torch_backend import PixelDetector
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


# From here on: regions
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


# From here on: frames on a GPU, which are refused or whose pixels arrive
class OnGpu:
    """An array of CuPy, PyTorch or Numba: memory that nobody may read from the host. `stream` None: it names none."""

    def __init__(self, array: np.ndarray, stream: int | None = None, device: int | None = 0, **wrong: Any) -> None:
        self.array = array
        described = {"shape": array.shape, "typestr": array.dtype.str, "data": (array.ctypes.data, False), "version": 3,
                     "strides": None if array.flags.c_contiguous else array.strides}  # fmt: skip
        named = {} if stream is None else {"stream": stream}
        self.__cuda_array_interface__ = {**described, **named, **wrong}
        if device is not None:
            self.__dlpack_device__ = lambda: (2, device)

    def __dlpack__(self, **_: Any) -> object:
        raise AssertionError("nothing may be copied from a device in silence")


class OnlyDlpack:
    """An array that shows nothing but the kind of its device: 2 is CUDA, 10 is ROCm."""

    def __init__(self, kind: int) -> None:
        self.__dlpack_device__ = lambda: (kind, 0)

    __dlpack__ = OnGpu.__dlpack__


class EchoOnGpu(Echo):
    """The echo, which reads the frames' memory as a GPU would."""

    device = "cuda:0"

    takes_device_frames = True  # type: ignore[assignment]

    def __call__(self, given: Any) -> Any:
        if isinstance(given, np.ndarray):
            return super().__call__(given)
        images = []
        for one in given:
            h, w, _ = one.shape
            size = (h - 1) * one.pitch + 3 * w
            memory = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(one.pointer))
            images.append(np.lib.stride_tricks.as_strided(memory, one.shape, (one.pitch, 3, 1)))
        batch = np.stack(images)
        assert (batch == batch[:, :1, :1]).all(), "not the frame's own rows"
        return super().__call__(batch)


@pytest.fixture
def on_gpu(card: Card) -> Detector:
    return Detector(EchoOnGpu(card, max_batch=4), threshold=0.0)


def surface(number: int) -> np.ndarray:
    """A frame whose rows are apart, as a decoder gives it."""
    memory = np.full((32, 64, 3), 255, np.uint8)
    memory[:, :48] = frame(number)
    return memory[:, :48]


def test_frames_batches_and_surfaces_arrive(on_gpu: Detector) -> None:
    batch = np.stack([frame(i) for i in range(6)])
    assert [number(d) for d in on_gpu(OnGpu(batch))] == list(range(6))  # type: ignore[arg-type]
    assert [len(b) for b in on_gpu.backend.batches] == [4, 2]  # type: ignore[attr-defined]
    several = [OnGpu(frame(70000)), OnGpu(surface(9)), OnGpu(batch[3], device=None), OnGpu(batch[::2][1])]
    assert [number(d) for d in on_gpu(several)] == [70000, 9, 3, 2]  # type: ignore[arg-type]
    assert number(on_gpu(OnGpu(surface(5)))[0]) == 5  # type: ignore[arg-type]
    assert on_gpu(OnGpu(batch[:0])) == []  # type: ignore[arg-type]


def test_a_region_is_a_view_whose_boxes_are_the_frames(on_gpu: Detector) -> None:
    whole = np.zeros((100, 200, 3), np.uint8)
    whole[10:42, 20:68] = frame(1234)
    given = OnGpu(whole)
    (found,) = on_gpu(given, roi=(20, 10, 68, 42))  # type: ignore[arg-type]
    (expected,) = Detector(Echo(on_gpu.card), threshold=0.0)(whole, roi=(20, 10, 68, 42))
    assert number(found) == 1234 and np.array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    with pytest.raises(FrameError, match=r"frame 0: on a device, expected the graph's own size 32x48 .* got 32x49"):
        on_gpu(given, roi=(20, 10, 69, 42))  # type: ignore[arg-type]
    with pytest.raises(FrameError, match="frame 0: roi: .* outside"):
        on_gpu(given, roi=(220, 10, 268, 42))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (OnGpu(np.zeros((720, 1280, 3), np.uint8)), r"exporter onnx --source-size 720,1280\).*\.cpu\(\)\.numpy"),
        ([OnGpu(frame(1)), OnGpu(frame(1, (32, 47)))], "frame 1: on a device, expected the graph's own size 32x48"),
        ([OnGpu(frame(1)), frame(1)], "frame 1: in host memory, and others are on a device"),
        ([frame(1), OnGpu(frame(1))], "frame 0: in host memory"),
        ([OnGpu(frame(1)[None])], r"frame 0: expected uint8 .H, W, 3. .BGR. on the device, got uint8 \[1, 32, 48, 3\]"),
        (OnGpu(frame(1), device=1), "frame 0: on cuda:1, and the model is on cuda:0"),
        (OnGpu(frame(1).astype(np.float32)), r"frames: expected uint8 .* on the device, got float32 \[32, 48, 3\]"),
        (OnGpu(frame(1).transpose(2, 0, 1)), r"frames: expected uint8 .* got uint8 \[3, 32, 48\]"),
        (OnGpu(frame(1)[:, :, ::-1]), "frames: expected rows of whole pixels, one after the other; got strides"),
        (OnGpu(frame(1)[::-1]), "got strides"),
        (OnGpu(np.zeros((0, 48, 3), np.uint8)), "frames: expected a frame of at least 1x1 pixel"),
    ],
)
def test_what_is_refused_says_what_to_do(on_gpu: Detector, given: Any, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        on_gpu(given)


def test_colors_are_not_turned_in_silence(on_gpu: Detector) -> None:
    with raises(FrameError, key="color"):
        on_gpu(OnGpu(frame(1)), color="rgb")  # type: ignore[arg-type]


def test_an_array_that_does_not_show_its_memory(on_gpu: Detector) -> None:
    """PyTorch's tensor that wants a gradient, and arrays that only know DLPack."""
    with pytest.raises(FrameError, match="frames: this OnlyDlpack does not give its memory"):
        on_gpu(OnlyDlpack(2))  # type: ignore[arg-type]


def test_whose_stream_is_waited_for() -> None:
    def streams(given: OnGpu) -> list[int | None]:
        return [one.stream for one in device_frames(given, "frames")]

    assert streams(OnGpu(frame(1))) == [1]  # none named, as by PyTorch: the default stream
    assert streams(OnGpu(frame(1), stream=77)) == [77]
    given = OnGpu(frame(1))
    given.__cuda_array_interface__["stream"] = None  # as the interface says it: nothing to wait for
    assert streams(given) == [None]
    again = device_frames(device_frames(given, "x")[0], "x")
    assert again[0].owner is given and as_list(given)[0].owner is given  # type: ignore[union-attr]  # it is kept alive


def test_a_tensors_stream_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch names none in its interface."""

    class Tensor(torch.Tensor):
        device = torch.device("cuda:0")  # type: ignore[assignment]
        __cuda_array_interface__ = OnGpu(frame(1)).__cuda_array_interface__  # type: ignore[assignment]

    for handle, expected in ((77, 77), (0, LEGACY_STREAM)):
        stream = SimpleNamespace(cuda_stream=handle)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device, stream=stream: stream)
        (given,) = device_frames(torch.empty(0).as_subclass(Tensor), "frames")
        assert given.stream == expected
    waited: list[object] = []
    monkeypatch.setattr(
        torch.cuda, "default_stream", lambda device: SimpleNamespace(synchronize=lambda: waited.append("default"))
    )
    monkeypatch.setattr(
        torch.cuda, "ExternalStream",
        lambda handle, device: SimpleNamespace(synchronize=lambda: waited.append(handle)),
    )  # fmt: skip
    wait_for([77, LEGACY_STREAM], torch.device("cpu"))
    assert waited == [77, "default"]


NOT_COPIED = r"(on cpu takes none|on a device|not give its memory).*; copy it: frame\.cpu\(\)\.numpy\(\)"


@pytest.mark.parametrize("given", [OnGpu(frame(1)), OnGpu(frame(1), device=None), OnlyDlpack(2), OnlyDlpack(10)])
def test_elsewhere_than_on_a_gpu_nothing_is_copied(card: Card, given: Any) -> None:
    for backend in (Echo(card), TorchBackend(PixelDetector(), card, "cpu")):
        for frames_given in (given, [given]):
            with pytest.raises(FrameError, match=NOT_COPIED):
                Detector(backend)(frames_given)
    with Detector(Echo(card)).batcher() as batcher, pytest.raises(FrameError, match="a batcher takes none"):
        batcher.submit(given)


def test_an_engine_reads_them_where_they_are(engine_file: Callable[..., Path], machine: Callable[..., Any]) -> None:
    machine()
    on_gpu = Detector(engine_file(), threshold=0.5)
    counts = (1, 0, 2, 1, 2)
    given = [OnGpu(picture, stream=40 + i // 2) for i, picture in enumerate(frames(*counts))]
    assert [len(d) for d in on_gpu(given)] == list(counts)  # type: ignore[arg-type]
    cuda = sys.modules["cuda.bindings.runtime"]
    assert {40, 41, 42} <= set(cuda.waits)
    cuda.memory.device = 1  # the array did not say, its memory does
    with pytest.raises(BackendError, match="expected a frame on cuda:0, where the model is; got cuda:1"):
        on_gpu([OnGpu(frames(1)[0], device=None)])  # type: ignore[list-item]
    cuda.memory.type = 0
    with pytest.raises(BackendError, match=r"this pointer is none of CUDA's"):
        on_gpu([OnGpu(frames(1)[0])])  # type: ignore[list-item]
    assert pixels_as_boxes(np.stack(frames(2)))["num_dets"].tolist() == [[2]]
