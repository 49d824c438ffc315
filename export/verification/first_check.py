"""The first check of a new graph: ONNX Runtime's detections compared with PyTorch's on the same pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.options import ExportError, Say
from export.verification.detection_diff import DetectionDiff, compare_detections
from models.deploy.graph import Deploy
from runtime.backends.ort.library import load_onnxruntime
from runtime.backends.protocol import BackendError
from runtime.backends.torch.backend import TorchBackend
from runtime.card.card import Card
from runtime.detector import Detector


def onnxruntime_version() -> str:
    """The version of the ONNX Runtime that will run the file. Raises `ExportError` where there is none."""
    try:
        return str(load_onnxruntime().__version__)
    except BackendError as error:
        raise ExportError(f"nothing is exported that did not run: {error}") from error


def run_check(
    path: Path, reference: Deploy, card: Card, pixels: NDArray[np.uint8], say: Say = lambda line: None
) -> None:
    """Run the file in ONNX Runtime and in PyTorch on pixels [2, H, W, 3]; raise `ExportError` if detections differ.

    For float32 the limits are fixed and small. They allow a candidate exactly at a threshold to go either way; a wrong
    graph differs far more.

    For 8 or 16 bits, a sum in another order may be rounded to another number, such differences grow from layer to
    layer, and NMS may keep a neighbor of a box. So means are compared, which show whether the graph is right, and the
    gate scores the rest. A network with random weights, or one that has hardly been trained, may exceed these limits,
    too.
    Then the difference is compared with that of PyTorch itself on almost equal pixels: a wrong graph differs more.
    """
    eager = replace(card, input="uint8-nhwc", color="bgr", nms={**card.nms, "kind": "portable"})
    network = Detector(TorchBackend(reference, eager, "cpu"), threshold=0.0)
    frames = [*pixels, pixels[0][:, ::-1].copy()]  # three frames: not the batch that was traced
    expected = dict(enumerate(network(frames)))
    diff = compare_detections(expected, dict(enumerate(Detector(path, threshold=0.0)(frames))))
    if card.precision == "fp32":
        same = diff.unmatched <= max(1, diff.boxes // 50) and diff.box_max_px <= 1.0 and diff.score_max <= 0.01
    else:
        same = _within(diff, diff.boxes // 10, 2.0, 0.02)
        if not same:
            noise = compare_detections(expected, dict(enumerate(network(_with_noise(frames)))))
            same = _within(diff, 1.5 * noise.unmatched, 1.5 * noise.box_mean_px, 1.5 * noise.score_mean)
            if same:
                say(
                    f"{card.precision}: ONNX Runtime misses {diff.unmatched} of PyTorch's {diff.boxes} boxes, and "
                    f"PyTorch {noise.unmatched} where one value in a hundred changes by one gray level: this network "
                    "makes much of little (is it trained?)"
                )
    if not same:
        raise ExportError(
            f"ONNX Runtime does not give PyTorch's detections: {diff.unmatched} of {diff.boxes} boxes missing, boxes "
            f"up to {diff.box_max_px:.2f} px and scores up to {diff.score_max:.4f} apart (on average "
            f"{diff.box_mean_px:.2f} px and {diff.score_mean:.4f})"
        )


def _within(diff: DetectionDiff, unmatched: float, box_px: float, score: float) -> bool:
    few = diff.unmatched <= max(1.0, unmatched)
    return few and diff.box_mean_px <= max(2.0, box_px) and diff.score_mean <= max(0.02, score)


def _with_noise(frames: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """`frames` with one value in a hundred changed by one gray level."""
    rng = np.random.default_rng(0)
    return [np.where(rng.random(frame.shape) < 0.01, frame ^ 1, frame).astype(np.uint8) for frame in frames]
