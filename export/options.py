"""What an exported graph should be, and what it must pass before it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from isodet.errors import IsodetError
from runtime.backends.options import OpenVinoPrecision

Progress = Callable[[str, int, int], None]
"""Called with the name of the task, how many pictures, layers or steps are done, and how many there are."""
Say = Callable[[str], None]
"""Called with a line of text for the user."""

NmsKind = Literal["auto", "portable", "loop", "onnx", "plugin", "none"]
"""See `export.graph.nms`."""
Precision = Literal["fp32", "fp16", "int8"]
InputForm = Literal["uint8-nhwc", "float-nchw"]
"""uint8 [B, H, W, 3], BGR, 0 to 255; or float32 [B, 3, H, W], RGB, 0 to 1."""

Candidates = int | Literal["auto", "config"]
"""How many candidates enter NMS: see `OnnxOptions`."""

Calibrate = Literal["minmax", "percentile", "mse", "entropy", "best"]
"""The methods of `models.quant.ranges`, and best, which tries them all."""


class ExportError(IsodetError, RuntimeError):
    """An artifact that was not written; the message says which step refused it and what to do."""


class CalibrationError(ExportError):
    """Pictures, ranges or options that cannot be used for quantization; the message says what to give instead."""


@dataclass(frozen=True, kw_only=True)
class Int8:
    """Options of post-training quantization. Raises `CalibrationError` for what cannot be.

    calibrate: how ranges follow from what was observed; best: the one with the highest validation mAP (default: mse)
    pictures: how many are observed
    calibration: annotations, of any format, of the pictures to observe (default: the checkpoint's training set)
    calibration_images: the folder of those pictures; alone: every picture in it is observed
    ranges: a file of ranges, of an earlier export, to take instead of observing pictures
    cpu: the form that is fast on a CPU (`models.quant.cpu`), a file of its own, instead of the one for TensorRT
    half: what stays float is float16, as engines on a GPU like it
    keep_map: put the layers that suffer most back to float, one by one, until no more mAP points than this are lost
    float_layers: convolutions that stay in float besides the last predictions
    bias_correction: rounding shifts the means of channels: give biases what brings them back, by some of the pictures
    """

    calibrate: Calibrate = "mse"
    pictures: int = 512
    calibration: Path | None = None
    calibration_images: Path | None = None
    ranges: Path | None = None
    cpu: bool = False
    half: bool = False
    keep_map: float | None = None
    float_layers: tuple[str, ...] = ()
    bias_correction: bool = True

    def __post_init__(self) -> None:
        if self.calibrate not in get_args(Calibrate):
            *names, last = get_args(Calibrate)
            raise CalibrationError.of("calibrate", f"expected {', '.join(names)} or {last}, got {self.calibrate!r}")
        if self.pictures < 1:
            raise CalibrationError.of("pictures", f"expected 1 or more to calibrate with, got {self.pictures}")
        if self.cpu and self.half:
            raise CalibrationError.of(
                "half", "a CPU computes in float32 what is not 8 bits; leave out one of cpu and half"
            )
        if self.keep_map is not None and not 0 <= self.keep_map < math.inf:
            raise CalibrationError.of("keep-mAP", f"expected 0 or more mAP points, got {self.keep_map}")
        if self.ranges is not None and (self.calibration is not None or self.calibration_images is not None):
            raise CalibrationError.of("ranges", "a file of ranges needs no calibration pictures; name one of the two")


@dataclass(frozen=True, kw_only=True)
class OnnxOptions:
    """The form of an ONNX file. Raises `ExportError` for what no graph can be.

    simplify: remove redundant nodes with onnxslim
    opset: ONNX operator set
    batch: images in a batch (default: any number)
    nms: auto: TensorRT's plugin where there is one, else standard operators, in one file (default); portable: standard
        operators; loop: the same in a loop, exact always; plugin: TensorRT only; onnx: NonMaxSuppression, which
        TensorRT-RTX cannot build; none: candidates, the runtime suppresses
    candidates: boxes that enter NMS; auto: the fewest of 100, 150, 200, 300, 500, 700 and 1000 that lose at most 0.05
        mAP points on the validation data, without such data as config (default); config: as many as the model's
        configuration says; N: so many
    certificate: with portable NMS: a fifth output `nms_exact`, bool [B, 1], says that NMS has settled and is greedy's
    precision: of the network (default: int8 after QAT, else fp32); int8: a float checkpoint is calibrated on pictures
    source_size_hw: take a camera's raw frames of this size: the letterbox is in the graph, boxes are in frame pixels
    input: uint8 [B,H,W,3] BGR as cameras give it (default), or float32 [B,3,H,W] RGB from 0 to 1
    int8: how a float checkpoint becomes 8 bits; None, where `precision` is int8, is the defaults
    """

    simplify: bool = True
    opset: int = 20
    batch: int | None = None
    nms: NmsKind = "auto"
    candidates: Candidates = "auto"
    certificate: bool = False
    precision: Precision | None = None
    source_size_hw: tuple[int, int] | None = None
    input: InputForm = "uint8-nhwc"
    int8: Int8 | None = None

    def __post_init__(self) -> None:
        require_choice("nms", self.nms, get_args(NmsKind))
        is_count = isinstance(self.candidates, int) and 1 <= self.candidates <= 3840
        if not is_count and self.candidates not in ("auto", "config"):
            reason = f"expected auto, config or 1 to 3840 (TensorRT's TopK limit), got {self.candidates!r}"
            raise ExportError.of("candidates", reason)
        require_choice("precision", self.precision, (None, *get_args(Precision)))
        require_choice("input", self.input, get_args(InputForm))
        if not 18 <= self.opset <= 23:
            raise ExportError.of("opset", f"expected 18 to 23, got {self.opset}; 20 is read by every supported backend")
        if self.batch is not None and self.batch < 1:
            raise ExportError.of("batch", f"expected 1 or more, or none for a free batch, got {self.batch}")
        if self.certificate and self.nms != "portable":
            raise ExportError.of(
                "certificate",
                f"only the portable NMS has one, this graph's is {self.nms}: loop and onnx are exact "
                "always, and TensorRT's plugin has no such output",
            )
        if self.int8 is not None and self.precision != "int8":
            raise ExportError.of("int8", f"options of 8 bits, and the precision is {self.precision}; expected int8")
        size = self.source_size_hw
        if size is not None and not (len(size) == 2 and all(isinstance(side, int) and side >= 1 for side in size)):
            raise ExportError.of("source-size", f"expected H,W in pixels, got {size}")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """The data that an artifact is scored on, and the mAP that it may lose. Raises `ExportError` for no such number.

    verify: score it against PyTorch
    tolerance: mAP points that may be lost (default: fp32 0.1, fp16 0.2, int8 1.0)
    annotations: of any format (default: the validation data that the checkpoint names)
    images: folder of its pictures
    openvino_precision: also score an ONNX file in OpenVINO, in float32 and in this precision; the card of an export has
        the results (default: OpenVINO is not asked)
    """

    verify: bool = True
    tolerance: float | None = None
    annotations: str | Path | None = None
    images: str | Path | None = None
    openvino_precision: OpenVinoPrecision | None = None

    def __post_init__(self) -> None:
        if self.tolerance is not None and not 0 <= self.tolerance < math.inf:
            raise ExportError.of("tolerance", f"expected 0 or more mAP points, got {self.tolerance}")

    @property
    def names_data(self) -> bool:
        """Whether the data to score on is given, and not the checkpoint's own."""
        return self.annotations is not None or self.images is not None

    def for_int8(self, int8: Int8 | None) -> Gate:
        """This gate with `Int8.keep_map` as its tolerance, unless it has one."""
        if int8 is None or int8.keep_map is None or self.tolerance is not None:
            return self
        return replace(self, tolerance=int8.keep_map)


def require_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise `ExportError` where `value`, of the option `name`, is none of `choices`."""
    if value not in choices:
        raise ExportError.of(name, f"expected one of {', '.join(map(str, choices))}, got {value!r}")
