"""isodet's runtime: from a picture or a video to judged detections.

    from runtime import Detector
    detector = Detector("best.onnx")
    for detections in detector(frames):
        print(detections.boxes_xyxy, detections.scores, detections.names)

Importing it loads numpy and OpenCV only; an engine, PyTorch or pycocotools is loaded when it is used. It also keeps the
libraries from sending usage data to their makers, ONNX Runtime first (`isodet.telemetry`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isodet.lazy import lazy_names

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
    from isodet.errors import IsodetError as IsodetError
    from runtime.artifact import read_card as read_card
    from runtime.backends.options import BackendOptions as BackendOptions
    from runtime.backends.protocol import Backend as Backend
    from runtime.backends.protocol import BackendError as BackendError
    from runtime.backends.protocol import OutOfMemory as OutOfMemory
    from runtime.backends.protocol import RawOutputs as RawOutputs
    from runtime.batcher.admission import BatcherClosed as BatcherClosed
    from runtime.batcher.admission import BatcherError as BatcherError
    from runtime.batcher.admission import DeadlineExpired as DeadlineExpired
    from runtime.batcher.admission import FrameDropped as FrameDropped
    from runtime.batcher.admission import QueueFull as QueueFull
    from runtime.batcher.batcher import Batcher as Batcher
    from runtime.batcher.metrics import BatcherMetrics as BatcherMetrics
    from runtime.card.card import Card as Card
    from runtime.card.card import CardError as CardError
    from runtime.datasets import read_dataset as read_dataset
    from runtime.datasets.annotations import CocoDataset as CocoDataset
    from runtime.datasets.annotations import DatasetError as DatasetError
    from runtime.datasets.annotations import ImageRecord as ImageRecord
    from runtime.datasets.coco import read_coco as read_coco
    from runtime.detections import Detection as Detection
    from runtime.detections import Detections as Detections
    from runtime.detector import Detector as Detector
    from runtime.detector import Threshold as Threshold
    from runtime.evaluation.coco_eval import EvaluationError as EvaluationError
    from runtime.evaluation.evaluate import Evaluation as Evaluation
    from runtime.evaluation.evaluate import evaluate as evaluate
    from runtime.images.draw import draw_detections as draw_detections
    from runtime.images.frames import FrameError as FrameError
    from runtime.images.image import ImageError as ImageError
    from runtime.images.image import Letterbox as Letterbox
    from runtime.images.image import decode_image as decode_image
    from runtime.images.image import letterbox as letterbox
    from runtime.images.image import read_image as read_image
    from runtime.images.image import write_image as write_image
    from runtime.images.region import Region as Region
    from runtime.streams.open import open_source as open_source
    from runtime.streams.options import SourceState as SourceState
    from runtime.streams.options import StreamOptions as StreamOptions
    from runtime.streams.source import SourceFrame as SourceFrame
    from runtime.streams.streams import Streams as Streams
    from runtime.streams.url import StreamError as StreamError
    from runtime.tiles import Tiles as Tiles

lazy_names(__name__)
