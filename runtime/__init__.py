"""isodet's runtime: from a picture or a video to judged detections.

    from runtime import Detector
    detector = Detector("best.onnx")
    for detections in detector(frames):
        print(detections.boxes_xyxy, detections.scores, detections.names)

Importing it loads numpy and OpenCV only; an engine, PyTorch or pycocotools is loaded when it is used. It also keeps the
libraries from sending usage data to their makers, ONNX Runtime first (`runtime.telemetry`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtime.lazy import lazy_names
from runtime.telemetry import silence

silence()  # before any of them can be imported

try:
    import cv2  # noqa: F401  (checked here, once, because every module of this package needs it)
except ImportError as error:
    advice = "isodet needs OpenCV: pip install opencv-python-headless"
    if "libGL" in str(error) or "libgthread" in str(error) or "libX" in str(error):
        advice = (
            "opencv-python needs desktop libraries that this system does not have; swap it for the build without "
            "them: pip uninstall -y opencv-python && pip install --force-reinstall opencv-python-headless"
        )
    raise ImportError(f"cannot import cv2 ({error}). {advice}") from error

if TYPE_CHECKING:
    from runtime.artifact import read_card
    from runtime.backends.options import BackendOptions
    from runtime.batcher import Batcher
    from runtime.batcher_admission import BatcherClosed, BatcherError, DeadlineExpired, FrameDropped, QueueFull
    from runtime.batcher_metrics import BatcherMetrics
    from runtime.card import Card, CardError
    from runtime.coco import CocoError as CocoError
    from runtime.coco import read_coco
    from runtime.datasets import read_dataset
    from runtime.detections import Detection, Detections
    from runtime.detector import Detector
    from runtime.evaluate import Evaluation
    from runtime.frames import FrameError
    from runtime.image import ImageError, Letterbox, letterbox, read_image
    from runtime.records import CocoDataset, DatasetError, ImageRecord
    from runtime.stream_options import SourceState, StreamOptions
    from runtime.stream_source import SourceFrame
    from runtime.stream_url import StreamError
    from runtime.streams import Streams

_HOME = {
    "BackendOptions": "backends.options",
    "Batcher": "batcher", "BatcherMetrics": "batcher_metrics",
    "BatcherClosed": "batcher_admission", "BatcherError": "batcher_admission", "QueueFull": "batcher_admission",
    "DeadlineExpired": "batcher_admission", "FrameDropped": "batcher_admission",
    "Card": "card", "CardError": "card", "read_card": "artifact",
    "CocoError": "coco", "read_coco": "coco", "read_dataset": "datasets",
    "CocoDataset": "records", "DatasetError": "records", "ImageRecord": "records",
    "Detection": "detections", "Detections": "detections",
    "Detector": "detector", "FrameError": "frames",
    "Evaluation": "evaluate",
    "SourceFrame": "stream_source", "StreamError": "stream_url", "SourceState": "stream_options",
    "StreamOptions": "stream_options", "Streams": "streams",
    "ImageError": "image", "Letterbox": "image", "letterbox": "image", "read_image": "image",
}  # fmt: skip
# CocoError is the DatasetError of old.
# `evaluate` is not among them: the module of that name would take its place; use runtime.evaluate.evaluate.

__all__ = [
    "BackendOptions",
    "Batcher",
    "BatcherClosed",
    "BatcherError",
    "BatcherMetrics",
    "Card",
    "CardError",
    "CocoDataset",
    "DatasetError",
    "DeadlineExpired",
    "Detection",
    "Detections",
    "Detector",
    "Evaluation",
    "FrameDropped",
    "FrameError",
    "ImageError",
    "ImageRecord",
    "Letterbox",
    "QueueFull",
    "SourceFrame",
    "SourceState",
    "StreamError",
    "StreamOptions",
    "Streams",
    "letterbox",
    "read_card",
    "read_coco",
    "read_dataset",
    "read_image",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME)
