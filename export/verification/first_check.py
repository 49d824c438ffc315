"""The first check of a graph that was written: ONNX Runtime's detections against PyTorch's on the same pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.options import ExportError
from export.verification.detection_diff import DetectionDiff, compare_detections
from models.deploy.graph import Deploy
from runtime.backends.ort.library import load_onnxruntime
from runtime.backends.protocol import BackendError
from runtime.backends.torch.backend import TorchBackend
from runtime.card.card import Card
from runtime.detector import Detector


def onnxruntime_version() -> str:
    """Of the ONNX Runtime that will run the file. Raises `ExportError` where there is none."""
    try:
        return str(load_onnxruntime().__version__)
    except BackendError as error:
        raise ExportError(f"nothing is exported that did not run: {error}") from error


def run_check(
    path: Path,
    reference: Deploy,
    card: Card,
    pixels: NDArray[np.uint8],
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Run the file in ONNX Runtime and in PyTorch on pixels [2, H, W, 3]; raise `ExportError` where boxes differ.

    What float32 may differ by is fixed: a candidate on the very edge of a threshold may fall either way; a wrong graph
    moves far more. With 8 or 16 bits, a sum in another order may become the next number that they have, what follows is
    made of such steps, and NMS may then keep the neighbor of a box: there means are compared, which say whether the
    graph is right, and the gate scores the rest. A network of random weights, or one that has hardly been trained, may
    make more of such steps than these limits. So what is beyond them is compared with what the network makes of pixels
    that are hardly different: a wrong graph is farther away than that.
    """
    eager = replace(card, input="uint8-nhwc", color="bgr", nms={**card.nms, "kind": "portable"})
    network = Detector(TorchBackend(reference, eager, "cpu"), threshold=0.0)
    frames = [*pixels, pixels[0][:, ::-1].copy()]  # three frames: not the batch that was traced
    expected = dict(enumerate(network(frames)))
    apart = compare_detections(expected, dict(enumerate(Detector(path, threshold=0.0)(frames))))
    if card.precision == "fp32":
        same = apart.unmatched <= max(1, apart.boxes // 50) and apart.box_max_px <= 1.0 and apart.score_max <= 0.01
    else:
        same = _within(apart, apart.boxes // 10, 2.0, 0.02)
        if not same:
            own = compare_detections(expected, dict(enumerate(network(_nudged(frames)))))
            same = _within(apart, 1.5 * own.unmatched, 1.5 * own.box_mean_px, 1.5 * own.score_mean)
            if same:
                say(
                    f"{card.precision}: ONNX Runtime misses {apart.unmatched} of PyTorch's {apart.boxes} boxes, and "
                    f"PyTorch {own.unmatched} where one value in a hundred changes by one gray level: this network "
                    "makes much of little (is it trained?)"
                )
    if not same:
        raise ExportError(
            f"ONNX Runtime does not give PyTorch's detections: {apart.unmatched} of {apart.boxes} boxes missing, boxes "
            f"up to {apart.box_max_px:.2f} px and scores up to {apart.score_max:.4f} apart (on average "
            f"{apart.box_mean_px:.2f} px and {apart.score_mean:.4f})"
        )


def _within(apart: DetectionDiff, unmatched: float, box_px: float, score: float) -> bool:
    return (
        apart.unmatched <= max(1.0, unmatched)
        and apart.box_mean_px <= max(2.0, box_px)
        and apart.score_mean <= max(0.02, score)
    )


def _nudged(frames: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """One value in a hundred by one gray level."""
    rng = np.random.default_rng(0)
    return [np.where(rng.random(frame.shape) < 0.01, frame ^ 1, frame).astype(np.uint8) for frame in frames]
