"""The time of each stage of a detector for one batch, and the share of NMS in the time of a graph."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.protocol import Stages
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.images.image import Image, Letterbox, decode_image

STAGES = ("decode", "letterbox", "host to device", "engine", "NMS", "device to host", "un-letterbox")
MERGE = "merge"
"""The stage that only a detector with tiles has."""
WHOLE, BARE = "end to end", "bare engine"

HOW = {
    "decode": "an encoded picture in memory to pixels, one after the other; not part of end to end, because streams "
              "decode ahead in threads of their own",
    "letterbox": "Detector.preprocess: frames to the network's input",
    "engine": "the backend's call",
    "un-letterbox": "Detector.postprocess: threshold, boxes to frame pixels, Detections",
    MERGE: "Detector.join: the detections of a frame from those of its tiles",
    WHOLE: "detector(frames): frames in memory to Detections",
    BARE: "the backend alone, on a batch that is letterboxed already, in turn with end to end",
}  # fmt: skip
"""How each stage is measured."""

PROFILED = 5
"""The number of batches that the share of NMS is measured on."""
_NMS = "EfficientNMS_TRT"  # a function in the graph; the names of its inlined nodes contain this name


def time_turn(
    detector: Detector, frames: Sequence[Image], encoded: Sequence[bytes], nms_share: float | None
) -> dict[str, float]:
    """Seconds of `WHOLE`, of `BARE`, and of every stage that can be timed by itself, for one batch of `frames`."""
    clock = Stages()
    detector(frames)
    clock.lap(WHOLE)
    for data in encoded:
        decode_image(data, "picture")
    clock.lap("decode")
    grids = [detector.grid(frame) for frame in frames]
    batches = inputs(detector, frames)
    clock.lap("letterbox")
    seconds, timed = defaultdict(float, clock.seconds), detector.backend.timed
    limits = detector.view_limits(detector.threshold)
    parts: list[Detections] = []
    for images, placements in batches:
        clock = Stages()
        if timed is None:
            raw = detector.infer(images)
            clock.lap("engine")
        else:
            raw, inside = timed(images)
            _add(seconds, inside)
            clock = Stages()
        if raw.num_dets is None:
            raw = detector.suppress(raw, limits)
            clock.lap("NMS")
        parts += detector.postprocess(raw, placements, limits)
        clock.lap("un-letterbox")
        _add(seconds, clock.seconds)
    if nms_share is not None and "NMS" not in seconds:
        seconds["NMS"] = seconds["engine"] * nms_share
        seconds["engine"] -= seconds["NMS"]
    clock = Stages()
    if detector.tiles is not None:
        of_frames = iter(parts)
        for grid in grids:
            detector.join(list(islice(of_frames, len(grid.windows))), grid, detector.threshold)
        clock.lap(MERGE)
    for images, _ in batches:
        detector.infer(images)
    clock.lap(BARE)
    return {**seconds, **clock.seconds}


def _add(total: defaultdict[str, float], seconds: Mapping[str, float]) -> None:
    for stage, value in seconds.items():
        total[stage] += value


def inputs(detector: Detector, frames: Sequence[Image]) -> list[tuple[NDArray[np.uint8], list[Letterbox]]]:
    """Batches [B, H, W, 3] of the inputs that `detector` makes of frames of one size, and how each one lies in them."""
    views = [frame[y1:y2, x1:x2] for frame in frames for x1, y1, x2, y2 in detector.grid(frame).windows]
    batches = []
    for start in range(0, len(views), detector.backend.max_batch):
        batch = views[start : start + detector.backend.max_batch]
        placements = [detector.place(view) for view in batch]
        batches.append((detector.preprocess(batch, placements), placements))
    return batches


def notes(detector: Detector, nms_how: str) -> dict[str, str]:
    """How each stage was measured, or why it was not."""
    if detector.backend.timed is not None:
        copies = "the backend's own clock, which waits for each copy"
    elif detector.backend.device == "cpu":
        copies = "none: the engine works in host memory"
    else:
        copies = f"within engine: {detector.backend.name} does not tell it apart"
    how = {**HOW, "host to device": copies, "device to host": copies, "NMS": nms_how}
    stages = STAGES if detector.tiles is None else (*STAGES, MERGE)
    return {stage: how[stage] for stage in (*stages, WHOLE, BARE)}


# ---------------------------------------------------------------------------------------------
# the share of NMS in the time of a graph that contains it, measured in other runs than those that are timed


def nms_shares(
    detector: Detector, path: Path | None, threads: int | None, batches: Sequence[NDArray[np.uint8]]
) -> tuple[list[float | None], str]:
    """For each of `batches` (uint8 [B, H, W, 3]) the share of NMS in the graph's time, and how it was measured.

    A share is None where NMS is not in the graph, or cannot be timed apart from the rest of it.
    """
    unknown: list[float | None] = [None] * len(batches)
    if detector.infer(batches[0]).num_dets is None:
        return unknown, "runtime.suppression, after the engine, which leaves it to the host"
    if detector.backend.device != "cpu":
        return unknown, "within engine: part of the graph, whose kernels on a GPU a host's clock cannot tell apart"
    nms = getattr(detector.backend.model, "nms", None)
    if hasattr(nms, "register_forward_hook"):
        shares = [_hooked_share(detector, nms, images) for images in batches]
        return list(shares), f"its module's share in {PROFILED} other batches, times the call"
    if path is None or not detector.backend.name.startswith("ONNX Runtime"):
        return unknown, f"within engine: {detector.backend.name} does not tell it apart"
    profiled = _profiled_shares(path, threads, batches)
    if not all(profiled):
        return unknown, f"within engine: no node of this graph says that it is NMS, as those of --nms auto do ({_NMS})"
    return list(profiled), f"its nodes' share in ONNX Runtime's profile of {PROFILED} other batches, times the call"


def _hooked_share(detector: Detector, nms: Any, images: NDArray[np.uint8]) -> float:
    """The share of a PyTorch module on the CPU, where a call returns when its work is done."""
    times: list[float] = []

    def note(*_: object) -> None:
        times.append(time.perf_counter())

    hooks = nms.register_forward_pre_hook(note), nms.register_forward_hook(note)
    shares = []
    try:
        for _ in range(PROFILED):
            times.clear()
            note()
            detector.backend(images)
            note()
            begun, nms_begun, nms_ended, ended = times
            shares.append((nms_ended - nms_begun) / (ended - begun))
    finally:
        for hook in hooks:
            hook.remove()
    return statistics.median(shares)


def _profiled_shares(path: Path, threads: int | None, batches: Sequence[NDArray[np.uint8]]) -> list[float]:
    """The shares by a profile of the file, in a session of its own, because profiling makes a session slower."""
    import onnxruntime  # only for a file that it runs

    from runtime.artifact import read_card
    from runtime.backends.protocol import graph_input

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    if threads is not None:
        options.intra_op_num_threads = threads
    card = read_card(path)
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        for number, images in enumerate(batches):
            options.profile_file_prefix = str(Path(folder) / str(number))
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            feed = {session.get_inputs()[0].name: graph_input(card, images)}
            for _ in range(PROFILED):
                session.run(None, feed)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            shares.append(_share_of(events))
    return shares


def _share_of(events: Sequence[Mapping[str, Any]]) -> float:
    nodes = [e for e in events if e.get("cat") == "Node" and str(e["name"]).endswith("_kernel_time")]
    total = sum(e["dur"] for e in nodes)
    return sum(e["dur"] for e in nodes if _NMS in e["name"]) / total if total else 0.0
