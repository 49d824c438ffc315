"""How a float checkpoint becomes 8 bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.options import ExportError
from models.quant.ranges import METHODS, Method


class CalibrationError(ExportError):
    """Pictures or ranges that 8 bits cannot be made from; the message says what to give."""


@dataclass(frozen=True)
class Int8:
    """Options of post-training quantisation. Raises `CalibrationError` for what cannot be."""

    calibrate: Method | Literal["best"] = "mse"
    """How ranges follow from what was observed; best: the one with the highest validation mAP."""
    pictures: int = 512
    """How many are observed."""
    calibration: Path | None = None
    """Annotations, of any format, of the pictures to observe; None: the training set that the checkpoint names."""
    calibration_images: Path | None = None
    """The folder of those pictures; alone, all pictures in it are observed."""
    ranges: Path | None = None
    """A file of ranges to take instead of observing pictures."""
    cpu: bool = False
    """Write the form that is fast on a CPU (`models.quant.cpu`) instead of the one for TensorRT."""
    half: bool = False
    """What stays float is float16, as engines on a GPU like it."""
    keep_map: float | None = None
    """Put the layers that suffer most back to float, one by one, until no more mAP points than this are lost."""
    float_layers: tuple[str, ...] = ()
    """Convolutions that stay in float besides the last predictions."""

    def __post_init__(self) -> None:
        if self.calibrate not in (*METHODS, "best"):
            raise CalibrationError(f"calibrate: expected {', '.join(METHODS)} or best, got {self.calibrate!r}")
        if self.pictures < 1:
            raise CalibrationError(f"calibration: expected 1 or more pictures, got {self.pictures}")
        if self.cpu and self.half:
            raise CalibrationError("half: a CPU computes in float32 what is not 8 bits; leave out one of cpu and half")
        if self.keep_map is not None and not 0 <= self.keep_map < math.inf:
            raise CalibrationError(f"keep-mAP: expected 0 or more mAP points, got {self.keep_map}")
        if self.ranges is not None and (self.calibration is not None or self.calibration_images is not None):
            raise CalibrationError("ranges: a file of ranges needs no calibration pictures; name one of the two")
