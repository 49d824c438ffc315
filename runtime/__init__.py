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

from isodet.errors import IsodetError
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
    from runtime.batcher.admission import BatcherClosed, BatcherError, DeadlineExpired, FrameDropped, QueueFull
    from runtime.batcher.batcher import Batcher
    from runtime.batcher.metrics import BatcherMetrics
    from runtime.card.card import Card, CardError
    from runtime.datasets import read_dataset
    from runtime.datasets.annotations import CocoDataset, DatasetError, ImageRecord
    from runtime.datasets.coco import CocoError as CocoError
    from runtime.datasets.coco import read_coco
    from runtime.detections import Detection, Detections
    from runtime.detector import Detector
    from runtime.evaluation.evaluate import Evaluation
    from runtime.images.frames import FrameError
    from runtime.images.image import ImageError, Letterbox, letterbox, read_image
    from runtime.streams.options import SourceState, StreamOptions
    from runtime.streams.source import SourceFrame
    from runtime.streams.streams import Streams
    from runtime.streams.url import StreamError

_HOME = {
    "BackendOptions": "backends.options",
    "Batcher": "batcher.batcher", "BatcherMetrics": "batcher.metrics",
    "BatcherClosed": "batcher.admission", "BatcherError": "batcher.admission", "QueueFull": "batcher.admission",
    "DeadlineExpired": "batcher.admission", "FrameDropped": "batcher.admission",
    "Card": "card.card", "CardError": "card.card", "read_card": "artifact",
    "CocoError": "datasets.coco", "read_coco": "datasets.coco", "read_dataset": "datasets",
    "CocoDataset": "datasets.annotations", "DatasetError": "datasets.annotations",
    "ImageRecord": "datasets.annotations",
    "Detection": "detections", "Detections": "detections",
    "Detector": "detector", "FrameError": "images.frames",
    "Evaluation": "evaluation.evaluate",
    "SourceFrame": "streams.source", "StreamError": "streams.url", "SourceState": "streams.options",
    "StreamOptions": "streams.options", "Streams": "streams.streams",
    "ImageError": "images.image", "Letterbox": "images.image", "letterbox": "images.image",
    "read_image": "images.image",
}  # fmt: skip
# CocoError is the DatasetError of old.
# `evaluate` is not among them: the module of that name would take its place; use runtime.evaluation.evaluate.evaluate.

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
    "IsodetError",
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
