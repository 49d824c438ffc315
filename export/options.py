"""What an exported graph should be, and what it must pass before it is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from export.int8_options import Int8


class ExportError(RuntimeError):
    """An artifact that was not written; the message says which step refused it and what to do."""


@dataclass(frozen=True)
class OnnxOptions:
    """The form of an ONNX file. Raises `ExportError` for what no graph can be."""

    simplify: bool = True
    """Remove redundant nodes with onnxslim."""
    opset: int = 20
    batch: int | None = None
    """A fixed batch size; None leaves it free."""
    int8: Int8 | None = None
    """8 bits, and how a float checkpoint gets there."""

    def __post_init__(self) -> None:
        if not 18 <= self.opset <= 23:
            raise ExportError(f"opset: expected 18 to 23, got {self.opset}; 20 is read by every supported backend")
        if self.batch is not None and self.batch < 1:
            raise ExportError(f"batch: expected 1 or more, or none for a free batch, got {self.batch}")


@dataclass(frozen=True)
class Gate:
    """The data that an artifact is scored on, and the mAP that it may lose."""

    verify: bool = True
    """Score it against PyTorch."""
    tolerance: float | None = None
    """mAP points that may be lost; None takes the default of the artifact's precision."""
    annotations: str | Path | None = None
    """Of any format; None takes the validation data that the checkpoint names."""
    images: str | Path | None = None
