"""The detector: frames of any size in, judged detections in their own pixels out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isodet.errors import ArgumentError
from runtime.backends.load import load_backend
from runtime.backends.protocol import Backend, BackendError, Images, RawOutputs
from runtime.batch_splitter import BatchSplitter
from runtime.card.card import Card
from runtime.detections import Detections
from runtime.images.device_frames import COPY, DeviceFrame, take_on_device
from runtime.images.frames import Color, Frame, FrameError, as_list, load_frame, on_device
from runtime.images.image import FILL, Image, Letterbox
from runtime.images.region import Region, Roi
from runtime.streams.open import open_source
from runtime.streams.options import StreamOptions
from runtime.streams.streams import Streams
from runtime.suppression import suppress
from runtime.tiles import Grid, Tiles

if TYPE_CHECKING:
    from runtime.backends.options import BackendOptions
    from runtime.batcher.batcher import Batcher, Policy

Threshold = float | Literal["card"] | Mapping[str, float]
"""Lowest score reported: one for all classes, "card" for the card's `thresholds`, or a score for each class by name.
A class without one gets the card's `threshold`."""


class _Source(NamedTuple):
    """Where a view comes from."""

    number: int
    """That of its frame in the call."""
    frame_hw: tuple[int, int]
    """The whole frame, pixels."""
    grid: Grid
    """The tiles of the frame, or of its part in a region."""


class _View(NamedTuple):
    """What the network sees at once: a frame, its part in a region, or a tile of these; and how it goes in."""

    image: Image | DeviceFrame
    placement: Letterbox
    source: _Source


class Detector:
    """Runs a model file, or a backend, on frames.

    >>> detector = Detector("best.onnx", threshold=0.5)
    >>> (found,) = detector("street.png")  # or a uint8 BGR [H, W, 3] array, or a list of frames
    >>> found.names, found.boxes_xyxy.tolist()  # pixels of the frame
    (['car'], [[0.0, 0.0, 30.0, 30.0]])
    >>> sum(len(found) for frame, found in detector.stream("street.avi"))  # or a webcam's number, a URL, a folder
    6

    `source`: an .onnx, .engine or .pt file, told apart by content, or a `Backend`. `device`: auto, cpu, cuda or
    cuda:N. `threshold`: lowest score reported, None for the model's recommendation over all classes, "card" for its
    recommendation for each class, or scores by class name. `threads`: CPU threads of the engine.
    `options`: other ways to run it than the default, such as CUDA graphs. `tiles`: cut large frames into tiles, for
    small objects; "card": as the pictures of its training were cut, most often not at all; None: never.
    `device`, `threads` and `options` are for files only: a `Backend` already has its own.
    Raises `CardError` for a file that is not a model of isodet, `BackendError` when it cannot run here.
    """

    def __init__(
        self,
        source: str | PathLike[str] | Backend,
        device: str = "auto",
        threshold: Threshold | None = None,
        threads: int | None = None,
        options: BackendOptions | None = None,
        tiles: Tiles | Literal["card"] | None = "card",
    ) -> None:
        self.backend: Backend
        if isinstance(source, (str, PathLike)):
            self.backend = load_backend(Path(source), device, threads, options)
        elif isinstance(source, Backend):
            self.backend = source
        else:
            raise ArgumentError.of(
                "source",
                f"expected a model file or a runtime.Backend, which your own derives from; got {type(source).__name__}",
            )
        self._splitter = BatchSplitter(self.backend)
        self._resize = self.card.resize_rule()
        if not isinstance(tiles, (Tiles, type(None))) and tiles != "card":
            raise ArgumentError.of("tiles", f'expected runtime.Tiles(...), "card" or None, got {tiles!r}')
        self.tiles = self.card.tiling() if tiles == "card" else tiles
        self._tile_hw = None if self.tiles is None else self.card.tile_hw(self.tiles)
        self.threshold = self.card.threshold if threshold is None else self.limits(threshold)

    @property
    def card(self) -> Card:
        """The model's card."""
        return self.backend.card

    @property
    def runs_on(self) -> str:
        """Engine and device, and why this one: 'ONNX Runtime 1.31.1 on cpu (CUDA finds no device here)'."""
        return self.backend.runs_on

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of labels 0..C-1."""
        return self.card.classes

    @property
    def input_size_hw(self) -> tuple[int, int]:
        """Pixels of the network's input; for a checkpoint under the short-side rule, of the graph that is exported from
        it. A graph with the letterbox inside takes frames of `card.source_size_hw`."""
        return self.card.input_size_hw

    def __call__(
        self,
        frames: Frame | Sequence[Frame],
        threshold: Threshold | None = None,
        color: Color = "bgr",
        roi: Roi | None = None,
    ) -> list[Detections]:
        """Detect in each frame; one `Detections` for each, in order, boxes in that frame's pixels.

        `frames`: one uint8 [H, W, 3] array, a path, a list of these (sizes may differ), or a uint8 [B, H, W, 3] array;
        or such arrays on the GPU that the model is on, of the size that its graph takes
        (`runtime.images.device_frames`). `color`: order of the arrays' channels. `threshold` replaces the detector's
        own for this call. `roi` looks at a part of every frame (`runtime.images.region.Region`). Raises `FrameError`
        for anything else, `ImageError` for a picture file that cannot be read.
        """
        limits = self.threshold if threshold is None else self.limits(threshold)
        region = None if roi is None else Region.of(roi)
        frames = as_list(frames)
        load = self._load_device_frame if any(map(on_device, frames)) else self._load
        # Views are made when they are taken: so frames are read, and tiles letterboxed, a batch at a time.
        views = chain.from_iterable(load(frame, i, color, region) for i, frame in enumerate(frames))
        parts: list[tuple[_Source, Detections]] = []
        while batch := list(islice(views, self.backend.max_batch)):
            for _, same_size in groupby(batch, lambda view: view.placement.size_hw):  # one, unless short-side
                images, placements, sources = zip(*same_size, strict=True)
                parts += zip(sources, self._detect(images, placements, self.view_limits(limits)), strict=True)
        detections: list[Detections] = []
        for (_, frame_hw, grid), of_frame in groupby(parts, lambda part: part[0]):
            joined = self.join([part for _, part in of_frame], grid, limits)
            detections.append(joined if region is None else region.to_frame(joined, frame_hw))
        return detections

    def _load(self, frame: Any, index: int, color: Color, region: Region | None) -> Iterator[_View]:
        taken = load_frame(frame, index, color, region, in_tiles=self.tiles is not None)
        grid = self.grid(taken.image)
        source = _Source(index, taken.frame_hw, grid)
        for x1, y1, x2, y2 in grid.windows:
            image = taken.image[y1:y2, x1:x2]
            yield _View(image, self.place(image), source)

    def _load_device_frame(self, frame: Any, index: int, color: Color, region: Region | None) -> Iterator[_View]:
        if self.tiles is not None:
            raise FrameError(f"frame {index}: tiles are cut in host memory, got an array on a device; copy it: {COPY}")
        if not self.backend.takes_device_frames:
            backend = f"{self.backend.name} on {self.backend.device}"
            raise FrameError(
                f"expected frames in host memory, got an array on a device: {backend} takes none; copy it: {COPY}"
            )
        taken, frame_hw = take_on_device(frame, index, color, region, self.backend.device)
        size, placement = self.card.frame_hw, self._resize.fit(taken.size_hw)
        if not taken.size_hw == size == placement.size_hw == placement.resized_hw:
            height, width = taken.size_hw
            raise FrameError(
                f"frame {index}: on a device, expected the graph's own size {size[0]}x{size[1]} (height x width), got "
                f"{height}x{width}: export the model for this size (exporter onnx --source-size {height},{width}), "
                f"which puts the letterbox into the graph; or copy it: {COPY}"
            )
        yield _View(taken, placement, _Source(index, frame_hw, Grid.of_one(taken.size_hw)))

    def _detect(
        self, images: Sequence[Any], placements: Sequence[Letterbox], limits: float | NDArray[np.float32]
    ) -> list[Detections]:
        """The detections of images of one input size that fit a batch: all in host memory, or all `DeviceFrame`s.

        Boxes are in the pixels of each image.
        """
        batch = images if isinstance(images[0], DeviceFrame) else self.preprocess(images, placements)
        return self.postprocess(self.infer(batch), placements, limits)

    def place(self, frame: Image) -> Letterbox:
        """How `frame` (uint8 [H, W, 3]) lies in the network's input."""
        return self._resize.fit((frame.shape[0], frame.shape[1]))

    def grid(self, frame: Image) -> Grid:
        """The tiles of `frame` (uint8 [H, W, 3]); one window, the frame, where it is not cut."""
        size_hw = (frame.shape[0], frame.shape[1])
        if self.tiles is None or self._tile_hw is None:
            return Grid.of_one(size_hw)
        return self.tiles.grid(size_hw, self._tile_hw)

    def view_limits(self, limits: float | NDArray[np.float32]) -> float | NDArray[np.float32]:
        """The lowest scores to take from each window of a frame, where `limits` apply to the frame: 0 for tiles, so
        that the merge, and with it a detection, does not depend on the threshold."""
        return limits if self.tiles is None else 0.0

    def join(self, parts: Sequence[Detections], grid: Grid, limits: float | NDArray[np.float32]) -> Detections:
        """The detections of a frame from those of its windows, with scores of at least `limits` (or [C] of them)."""
        if self.tiles is None:
            return parts[0]
        merged = grid.merge(parts, float(self.card.nms["iou"]))
        lowest = np.asarray(limits, np.float32)
        return merged[merged.scores >= (lowest[merged.labels] if lowest.ndim else lowest)]

    def stream(
        self,
        source: str | int | PathLike[str],
        threshold: Threshold | None = None,
        options: StreamOptions | None = None,
        batch: int = 1,
    ) -> Iterator[tuple[Image, Detections]]:
        """(frame, detections) for each frame of a picture, folder or glob, video file, webcam number or URL.

        Frames are decoded ahead in a thread. Of a live source the newest is taken, and it is connected again when it
        goes; of all others every frame comes, in order, up to `batch` at once. `runtime.Streams` has times and numbers
        of frames, and many sources. Raises `StreamError` at once when the source cannot be opened.
        """
        options = options or StreamOptions()
        # Outside the generator, so that the error comes from this call.
        opened = open_source(source, decoder=options.decoder, every=options.every, timeout_s=options.stall_s)

        def run() -> Iterator[tuple[Image, Detections]]:
            with Streams([opened], options) as streams:
                for frame, detections in streams.detect(lambda images: self(images, threshold), batch):
                    yield frame.image, detections

        return run()

    def batcher(
        self,
        max_batch: int = 16,
        max_wait_ms: float = 4.0,
        queue: int = 64,
        policy: Policy = "block",
        workers: int = 1,
    ) -> Batcher:
        """Batches of frames that come one by one, from many threads or coroutines: see `runtime.Batcher`."""
        from runtime.batcher.batcher import Batcher

        return Batcher(self, max_batch, max_wait_ms, queue, policy, workers)

    # -----------------------------------------------------------------------------------------
    # the three steps of a call; `runtime.bench.bench` times them one by one

    def preprocess(self, frames: Sequence[Image], placements: Sequence[Letterbox]) -> NDArray[np.uint8]:
        """Frames of one input size as uint8 [B, H, W, 3] where `place` puts them, padded to a fixed batch."""
        size = self.backend.fixed_batch or len(frames)
        if len(frames) > size:
            raise BackendError(f"expected at most {size} frames, the graph's fixed batch, got {len(frames)}")
        images = np.empty((size, *(placements[0].size_hw if placements else self.card.frame_hw), 3), np.uint8)
        for frame, placement, out in zip(frames, placements, images, strict=False):
            placement.apply(frame, out)
        images[len(frames) :] = FILL
        return images

    def infer(self, images: Images, context: Backend | None = None) -> RawOutputs:
        """The graph's outputs for `images`, in smaller batches where the device's memory is short.

        `context`: another of this backend's contexts (`Backend.context`), for a second thread.
        """
        return self._splitter.run(images, context)

    def suppress(self, raw: RawOutputs, threshold: float | NDArray[np.float32] = 0.0) -> RawOutputs:
        """`raw` after NMS. Where the graph or its backend leaves NMS to the host, only what can reach `threshold`."""
        if raw.num_dets is not None:
            return raw
        return suppress(raw, float(self.card.nms["iou"]), int(self.card.nms["detections"]), _lowest(threshold))

    def postprocess(
        self, raw: RawOutputs, placements: Sequence[Letterbox], threshold: float | NDArray[np.float32]
    ) -> list[Detections]:
        """The `Detections` of each placement, in frame pixels, with scores of at least `threshold` (or [C] of them)."""
        raw = self.suppress(raw, threshold)
        assert raw.num_dets is not None
        names, lowest = self.class_names, np.float32(_lowest(threshold))
        results = []
        for i, placement in enumerate(placements):
            count = int(raw.num_dets[i, 0])
            scores = raw.scores[i, :count]
            kept = int(np.count_nonzero(scores >= lowest))  # they fall: the kept ones come first
            if not kept:
                results.append(Detections.empty(names))
                continue
            boxes = placement.to_source(raw.boxes[i, :kept])
            # A box that lies wholly in the gray border has no extent in the frame.
            inside = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            labels = raw.labels[i, :kept]
            if isinstance(threshold, np.ndarray):
                inside &= scores[:kept] >= threshold[labels]
            results.append(Detections(boxes[inside], scores[:kept][inside], labels[inside], names))
        return results

    def limits(self, threshold: Threshold) -> float | NDArray[np.float32]:
        """One score, or [C] scores. Raises ValueError for anything else, and for classes that are not the model's."""
        if not isinstance(threshold, (str, Mapping)):
            return _check_threshold(threshold)
        if isinstance(threshold, str):
            if threshold != "card":
                raise ArgumentError.of(
                    "threshold", f'expected a score, scores by class name, or "card"; got {threshold!r}'
                )
            threshold = self.card.thresholds
        unknown = sorted(set(threshold) - set(self.class_names))
        if unknown:
            raise ArgumentError.of("threshold", f"unknown class {unknown[0]!r}; known: {', '.join(self.class_names)}")
        scores = [_check_threshold(threshold.get(name, self.card.threshold)) for name in self.class_names]
        return np.array(scores, np.float32)


def _lowest(threshold: float | NDArray[np.float32]) -> float:
    return float(threshold.min()) if isinstance(threshold, np.ndarray) else threshold


def _check_threshold(threshold: float) -> float:
    if not 0 <= threshold <= 1:
        raise ArgumentError.of("threshold", f"expected a score from 0 to 1, got {threshold!r}")
    return float(threshold)
