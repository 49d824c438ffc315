"""Frames on a GPU: what is taken, what is refused with what to do, and that the pixels arrive."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from runtime import Detector, FrameError
from runtime.backends.protocol import BackendError
from runtime.backends.torch.backend import TorchBackend, wait_for
from runtime.card.card import Card
from runtime.images.device_frames import LEGACY_STREAM, device_frames
from runtime.images.frames import as_list
from tests.at_fault import raises
from tests.runtime.echo import Echo, frame, number
from tests.runtime.engines import frames, pixels_as_boxes
from tests.runtime.test_torch_backend import PixelDetector


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
def detector(card: Card) -> Detector:
    return Detector(EchoOnGpu(card, max_batch=4), threshold=0.0)


def surface(number: int) -> np.ndarray:
    """A frame whose rows are apart, as a decoder gives it."""
    memory = np.full((32, 64, 3), 255, np.uint8)
    memory[:, :48] = frame(number)
    return memory[:, :48]


def test_frames_batches_and_surfaces_arrive(detector: Detector) -> None:
    batch = np.stack([frame(i) for i in range(6)])
    assert [number(d) for d in detector(OnGpu(batch))] == list(range(6))  # type: ignore[arg-type]
    assert [len(b) for b in detector.backend.batches] == [4, 2]  # type: ignore[attr-defined]
    several = [OnGpu(frame(70000)), OnGpu(surface(9)), OnGpu(batch[3], device=None), OnGpu(batch[::2][1])]
    assert [number(d) for d in detector(several)] == [70000, 9, 3, 2]  # type: ignore[arg-type]
    assert number(detector(OnGpu(surface(5)))[0]) == 5  # type: ignore[arg-type]
    assert detector(OnGpu(batch[:0])) == []  # type: ignore[arg-type]


def test_a_region_is_a_view_whose_boxes_are_the_frames(detector: Detector) -> None:
    whole = np.zeros((100, 200, 3), np.uint8)
    whole[10:42, 20:68] = frame(1234)
    given = OnGpu(whole)
    (found,) = detector(given, roi=(20, 10, 68, 42))  # type: ignore[arg-type]
    (expected,) = Detector(Echo(detector.card), threshold=0.0)(whole, roi=(20, 10, 68, 42))
    assert number(found) == 1234 and np.array_equal(found.boxes_xyxy, expected.boxes_xyxy)
    with pytest.raises(FrameError, match=r"frame 0: on a device, expected the graph's own size 32x48 .* got 32x49"):
        detector(given, roi=(20, 10, 69, 42))  # type: ignore[arg-type]
    with pytest.raises(FrameError, match="frame 0: roi: .* outside"):
        detector(given, roi=(220, 10, 268, 42))  # type: ignore[arg-type]


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
def test_what_is_refused_says_what_to_do(detector: Detector, given: Any, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        detector(given)


def test_colors_are_not_turned_in_silence(detector: Detector) -> None:
    with raises(FrameError, key="color"):
        detector(OnGpu(frame(1)), color="rgb")  # type: ignore[arg-type]


def test_an_array_that_does_not_show_its_memory(detector: Detector) -> None:
    """PyTorch's tensor that wants a gradient, and arrays that only know DLPack."""
    with pytest.raises(FrameError, match="frames: this OnlyDlpack does not give its memory"):
        detector(OnlyDlpack(2))  # type: ignore[arg-type]


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
    detector = Detector(engine_file(), threshold=0.5)
    counts = (1, 0, 2, 1, 2)
    given = [OnGpu(picture, stream=40 + i // 2) for i, picture in enumerate(frames(*counts))]
    assert [len(d) for d in detector(given)] == list(counts)  # type: ignore[arg-type]
    cuda = sys.modules["cuda.bindings.runtime"]
    assert {40, 41, 42} <= set(cuda.waits)
    cuda.memory.device = 1  # the array did not say, its memory does
    with pytest.raises(BackendError, match="expected a frame on cuda:0, where the model is; got cuda:1"):
        detector([OnGpu(frames(1)[0], device=None)])  # type: ignore[list-item]
    cuda.memory.type = 0
    with pytest.raises(BackendError, match=r"this pointer is none of CUDA's"):
        detector([OnGpu(frames(1)[0])])  # type: ignore[list-item]
    assert pixels_as_boxes(np.stack(frames(2)))["num_dets"].tolist() == [[2]]
