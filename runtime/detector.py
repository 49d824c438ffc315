"""The detector: frames of any size in, judged detections in their own pixels out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from runtime.backends import Backend, BackendError, RawOutputs, load_backend
from runtime.card import Card
from runtime.detections import Detections
from runtime.image import FILL, Image, Letterbox, read_image
from runtime.stream import open_source
from runtime.suppression import suppress

Frame = Image | str | PathLike[str]
"""One picture: uint8 [H, W, 3] BGR, or the path of a picture file."""

Threshold = float | Literal["card"] | Mapping[str, float]
"""Lowest score reported: one for all classes, "card" for the card's `thresholds`, or a score for each class by name.
A class that has none is judged by the card's `threshold`."""


class FrameError(ValueError):
    """A frame that is not a picture for the detector; the message states what was expected and what came."""


class Detector:
    """Runs a model file, or a backend, on frames.

    `source`: an .onnx, .engine or .pt file, told apart by content, or a `Backend`. `device`: auto, cpu, cuda or
    cuda:N. `threshold`: lowest score reported, None for the model's recommendation over all classes, "card" for its
    recommendation for each class, or scores by class name. `threads`: CPU threads of the engine.
    `device` and `threads` concern files only: a `Backend` is already somewhere.
    Raises `CardError` for a file that is not a model of ours, `BackendError` when it cannot run here.
    """

    def __init__(
        self,
        source: str | PathLike[str] | Backend,
        device: str = "auto",
        threshold: Threshold | None = None,
        threads: int | None = None,
    ) -> None:
        self.backend: Backend
        if isinstance(source, (str, PathLike)):
            self.backend = load_backend(Path(source), device, threads)
        else:
            self.backend = source
        self._resize = self.card.resize_rule()
        self.threshold = self.card.threshold if threshold is None else self._limits(threshold)

    @property
    def card(self) -> Card:
        """What the model says of itself."""
        return self.backend.card

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of labels 0..C-1."""
        return self.card.classes

    @property
    def input_size_hw(self) -> tuple[int, int]:
        """Pixels of the network's input; of a checkpoint under the short-side rule, of the graph exported from it. What
        a graph with the letterbox inside takes is `card.source_size_hw`."""
        return self.card.input_size_hw

    def __call__(self, frames: Frame | Sequence[Frame], threshold: Threshold | None = None) -> list[Detections]:
        """Detect in each frame; one `Detections` for each, in order, boxes in that frame's pixels.

        `frames`: one uint8 [H, W, 3] BGR array, a path, a list of these (sizes may differ), or a uint8
        [B, H, W, 3] array. `threshold` replaces the detector's own for this call.
        Raises `FrameError` for anything else, `ImageError` for a picture file that cannot be read.
        """
        limits = self.threshold if threshold is None else self._limits(threshold)
        listed = _listed(frames)
        results: list[Detections] = []
        step = self.backend.max_batch
        for start in range(0, len(listed), step):  # read and letterboxed a chunk at a time, to bound memory
            chunk = [_array(frame, start + i) for i, frame in enumerate(listed[start : start + step])]
            for _, same in groupby(chunk, lambda frame: self.place(frame).size_hw):  # one size, unless short-side
                images, placements = self.preprocess(list(same))
                results += self.postprocess(self.backend(images), placements, limits)
        return results

    def place(self, frame: Image) -> Letterbox:
        """How `frame` (uint8 [H, W, 3]) lies in the network's input."""
        return self._resize.fit((frame.shape[0], frame.shape[1]))

    def stream(
        self, source: str | int | PathLike[str], threshold: Threshold | None = None
    ) -> Iterator[tuple[Image, Detections]]:
        """(frame, detections) for each frame of a picture, folder, video file, webcam number or URL.

        Raises `StreamError` at once when the source cannot be opened.
        """
        opened = open_source(source)  # outside the generator, so that the error comes from this call

        def run() -> Iterator[tuple[Image, Detections]]:
            for frame in opened:
                yield frame.image, self(frame.image, threshold)[0]

        return run()

    # -----------------------------------------------------------------------------------------
    # the three steps of a call; `runtime.bench` times them one by one

    def preprocess(self, frames: Sequence[Image]) -> tuple[NDArray[np.uint8], list[Letterbox]]:
        """Frames of one input size as uint8 [B, H, W, 3], padded to a fixed batch, and their placements."""
        size = self.backend.fixed_batch or len(frames)
        if len(frames) > size:
            raise BackendError(f"expected at most {size} frames, the graph's fixed batch, got {len(frames)}")
        placements = [self.place(frame) for frame in frames]
        images = np.empty((size, *(placements[0].size_hw if placements else self.card.frame_hw), 3), np.uint8)
        for frame, placement, out in zip(frames, placements, images, strict=False):
            placement.apply(frame, out)
        images[len(frames) :] = FILL
        return images, placements

    def postprocess(
        self, raw: RawOutputs, placements: Sequence[Letterbox], threshold: float | NDArray[np.float32]
    ) -> list[Detections]:
        """Detections with a score of at least `threshold`, or [C] of them, in frame pixels, one for each placement."""
        if raw.num_dets is None:
            raw = suppress(raw, float(self.card.nms["iou"]), int(self.card.nms["detections"]))
            assert raw.num_dets is not None
        results = []
        for i, placement in enumerate(placements):
            count = int(raw.num_dets[i, 0])
            scores = raw.scores[i, :count]
            kept = int(np.count_nonzero(scores >= np.float32(np.min(threshold))))  # they fall: the kept ones come first
            boxes = placement.to_source(raw.boxes[i, :kept])
            # A box that lies wholly in the grey border has no extent in the frame.
            inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            labels = raw.labels[i, :kept]
            if isinstance(threshold, np.ndarray):
                inside &= scores[:kept] >= threshold[labels]
            results.append(Detections(boxes[inside], scores[:kept][inside], labels[inside], self.class_names))
        return results

    def _limits(self, threshold: Threshold) -> float | NDArray[np.float32]:
        """One score, or [C] scores. Raises ValueError for anything else, and for classes that are not the model's."""
        if not isinstance(threshold, (str, Mapping)):
            return _check_threshold(threshold)
        if isinstance(threshold, str):
            if threshold != "card":
                raise ValueError(f'threshold: expected a score, scores by class name, or "card"; got {threshold!r}')
            threshold = self.card.thresholds
        unknown = sorted(set(threshold) - set(self.class_names))
        if unknown:
            raise ValueError(f"threshold: unknown class {unknown[0]!r}; known: {', '.join(self.class_names)}")
        scores = [_check_threshold(threshold.get(name, self.card.threshold)) for name in self.class_names]
        return np.array(scores, np.float32)


def _listed(frames: Frame | Sequence[Frame]) -> Sequence[Frame]:
    if isinstance(frames, (str, PathLike)):
        return [frames]
    if isinstance(frames, np.ndarray):
        # Four dimensions are a batch; any other array is one frame, and judged as such.
        return list(frames) if frames.ndim == 4 else [frames]
    if isinstance(frames, (list, tuple)):
        return frames
    raise FrameError(f"expected a uint8 [H, W, 3] NumPy array, a list of them, or a path; got {type(frames).__name__}")


def _array(frame: Frame, index: int) -> Image:
    """One frame as an array; raises `FrameError` naming its `index`."""
    if isinstance(frame, (str, PathLike)):
        return read_image(Path(frame))
    where = f"frame {index}: expected uint8 [H, W, 3] (BGR)"
    if not isinstance(frame, np.ndarray):
        raise FrameError(f"{where}, got {type(frame).__name__}")
    got = f"{frame.dtype} {list(frame.shape)}"
    if frame.ndim == 2 or (frame.ndim == 3 and frame.shape[2] == 1):
        raise FrameError(f"{where}, got {got}: a grey picture; use cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR)")
    if frame.ndim == 3 and frame.shape[2] == 4:
        raise FrameError(f"{where}, got {got}: a picture with alpha; use cv2.cvtColor(frame, cv2.COLOR_BGRA2BGR)")
    if frame.ndim != 3 or frame.shape[2] != 3:
        raise FrameError(f"{where}, got {got}")
    if frame.dtype != np.uint8:
        advice = "; scale it to 0..255 and use .astype(numpy.uint8)" if frame.dtype.kind == "f" else ""
        raise FrameError(f"{where}, got {got}{advice}")
    if frame.size == 0:
        raise FrameError(f"{where} of at least 1x1 pixel, got {got}")
    return frame


def _check_threshold(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score from 0 to 1, got {threshold!r}")
    return float(threshold)
