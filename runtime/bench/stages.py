"""One batch through a detector, stage by stage, each with a clock of its own; and what share of a graph is its NMS."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.protocol import RawOutputs
from runtime.detector import Detector
from runtime.images.image import Image, decode_image
from runtime.suppression import suppress

STAGES = ("decode", "letterbox", "host to device", "engine", "NMS", "device to host", "un-letterbox")
WHOLE, BARE = "end to end", "bare engine"

HOW = {
    "decode": "an encoded picture in memory to pixels, one after the other; not part of end to end, because streams "
              "decode ahead in threads of their own",
    "letterbox": "Detector.preprocess: frames to the network's input",
    "engine": "the backend's call",
    "un-letterbox": "Detector.postprocess: threshold, boxes to frame pixels, Detections",
    WHOLE: "detector(frames): frames in memory to Detections",
    BARE: "the backend alone, on a batch that is letterboxed already, in turn with end to end",
}  # fmt: skip
"""How each stage is measured."""

PROFILED = 5
"""Batches that the share of NMS is of."""
_NMS = "EfficientNMS_TRT"  # the function in the graph; ONNX Runtime keeps its name in those of its inlined nodes


def time_turn(
    detector: Detector, frames: Sequence[Image], encoded: Sequence[bytes], nms_share: float | None
) -> dict[str, float]:
    """Seconds of every stage that can be told apart, of `WHOLE` and of `BARE`, of one batch of `frames`."""
    seconds: dict[str, float] = {}
    clock = time.perf_counter
    begun = clock()
    detector(frames)
    seconds[WHOLE] = clock() - begun

    begun = clock()
    for data in encoded:
        decode_image(data, "picture")
    seconds["decode"] = clock() - begun
    begun = clock()
    placements = [detector.place(frame) for frame in frames]
    images = detector.preprocess(frames, placements)
    seconds["letterbox"] = clock() - begun
    raw, inside = _run(detector, images)
    seconds |= inside
    if raw.num_dets is None:
        begun = clock()
        raw = suppress(raw, float(detector.card.nms["iou"]), int(detector.card.nms["detections"]))
        seconds["NMS"] = clock() - begun
    elif nms_share is not None:
        seconds["NMS"] = seconds["engine"] * nms_share
        seconds["engine"] -= seconds["NMS"]
    begun = clock()
    detector.postprocess(raw, placements, detector.threshold)
    seconds["un-letterbox"] = clock() - begun

    begun = clock()
    detector.infer(images)
    seconds[BARE] = clock() - begun
    return seconds


def _run(detector: Detector, images: NDArray[np.uint8]) -> tuple[RawOutputs, Mapping[str, float]]:
    timed = detector.backend.timed
    if timed is not None:
        return timed(images)
    begun = time.perf_counter()
    raw = detector.infer(images)
    return raw, {"engine": time.perf_counter() - begun}


def notes(detector: Detector, nms_how: str) -> dict[str, str]:
    """How each stage was measured, or why it was not."""
    if detector.backend.timed is not None:
        copies = "the backend's own clock, which waits for each copy"
    elif detector.backend.device == "cpu":
        copies = "none: the engine works in host memory"
    else:
        copies = f"within engine: {detector.backend.name} does not tell it apart"
    return {stage: {**HOW, "host to device": copies, "device to host": copies, "NMS": nms_how}[stage]
            for stage in (*STAGES, WHOLE, BARE)}  # fmt: skip


# ---------------------------------------------------------------------------------------------
# NMS is part of the graph: its share of it, found in a run that is not timed


def nms_shares(
    detector: Detector, path: Path | None, threads: int | None, batches: Sequence[NDArray[np.uint8]]
) -> tuple[list[float | None], str]:
    """For each of `batches` (uint8 [B, H, W, 3]) the share of the graph's time that is NMS, and how it was found.

    None where NMS is not in the graph, or cannot be told apart from the rest of it.
    """
    nothing: list[float | None] = [None] * len(batches)
    if detector.card.nms["kind"] == "none":
        return nothing, "runtime.suppression, after the engine: this graph has none"
    if detector.backend.device != "cpu":
        return nothing, "within engine: part of the graph, whose kernels on a GPU a host's clock cannot tell apart"
    nms = getattr(detector.backend.model, "nms", None)
    if hasattr(nms, "register_forward_hook"):
        shares = [_hooked_share(detector, nms, images) for images in batches]
        return list(shares), f"its module's share in {PROFILED} other batches, times the call"
    if path is None or detector.card.kind != "onnx":
        return nothing, f"within engine: {detector.backend.name} does not tell it apart"
    profiled = _profiled_shares(path, threads, batches)
    if not all(profiled):
        return nothing, f"within engine: no node of this graph says that it is NMS, as those of --nms auto do ({_NMS})"
    return list(profiled), f"its nodes' share in ONNX Runtime's profile of {PROFILED} other batches, times the call"


def _hooked_share(detector: Detector, nms: Any, images: NDArray[np.uint8]) -> float:
    """Of a PyTorch module on the CPU, where a call returns when the work is done."""
    entered: list[float] = []
    left: list[float] = []
    hooks = (
        nms.register_forward_pre_hook(lambda *_: entered.append(time.perf_counter())),
        nms.register_forward_hook(lambda *_: left.append(time.perf_counter())),
    )
    whole: list[float] = []
    try:
        for _ in range(PROFILED):
            begun = time.perf_counter()
            detector.backend(images)
            whole.append(time.perf_counter() - begun)
    finally:
        for hook in hooks:
            hook.remove()
    return statistics.median((b - a) / w for a, b, w in zip(entered, left, whole, strict=True))


def _profiled_shares(path: Path, threads: int | None, batches: Sequence[NDArray[np.uint8]]) -> list[float]:
    """From a profile of the file in a session of its own: profiling slows the one it looks at."""
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
