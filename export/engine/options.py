"""The options of an engine's build."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from export.options import ExportError, Precision, require_choice

EngineName = Literal["auto", "tensorrt", "rtx"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The form of an engine. Raises `ExportError` for what no engine can be.

    precision: None takes what the file has: int8 of a checkpoint after QAT, float32 of any other, of an ONNX file its
        own
    engine: auto: TensorRT where it is installed and there is a GPU, else TensorRT-RTX (default)
    batch: images in a batch: least, tuned for, most (default: 1,4,16, or the graph's own number where that is fixed)
    hardware_compatible: TensorRT: runs on every GPU since Ampere (SM80), more slowly than one built for the GPU at hand
    version_compatible: TensorRT: runs on later versions with the same major number
    timing_cache: TensorRT: measured kernels of earlier builds (default: one for each GPU and version in the user's
        cache)
    workspace_gb: most GPU memory that a kernel may ask for (default: the library's choice)
    sm: TensorRT-RTX: compute capabilities to build for, as 86 for 8.6 (default: all since Ampere)
    check_hashes: refuse an ONNX file whose graph is not the one that was exported; False is for one that was edited on
        purpose
    """

    precision: Precision | None = None
    engine: EngineName = "auto"
    batch: tuple[int, int, int] | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    timing_cache: str | Path | None = None
    workspace_gb: float | None = None
    sm: tuple[int, ...] = ()
    check_hashes: bool = True

    def __post_init__(self) -> None:
        require_choice("precision", self.precision, (None, *get_args(Precision)))
        require_choice("engine", self.engine, get_args(EngineName))
        if self.batch is not None:
            numbers = len(self.batch) == 3 and all(isinstance(n, int) for n in self.batch)
            if not numbers or not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
                raise ExportError.of("batch", f"expected MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX, got {self.batch}")
        if self.workspace_gb is not None and not self.workspace_gb > 0:
            raise ExportError.of("workspace", f"expected more than 0 gigabytes, got {self.workspace_gb}")
        if any(not 50 <= sm <= 999 for sm in self.sm) or len(set(self.sm)) != len(self.sm):
            raise ExportError.of("sm", f"expected different compute capabilities such as 86 (for 8.6), got {self.sm}")

    def check_flavour(self, flavour: str) -> None:
        """Raise `ExportError` for what the library that was chosen cannot do."""
        if flavour == "rtx":
            for name, asked, instead in (
                ("hardware-compatible", self.hardware_compatible, "its engines run on every GPU since Ampere anyway"),
                ("version-compatible", self.version_compatible, "an engine runs on the version that built it"),
                ("timing-cache", self.timing_cache is not None, "it measures nothing while it builds"),
            ):
                if asked:
                    raise ExportError.of(name, f"TensorRT-RTX has no such thing: {instead}; leave it out")
        elif self.sm:
            raise ExportError.of(
                "sm",
                "TensorRT builds for the GPU that it runs on; leave it out, take --hardware-compatible for other "
                "GPUs since Ampere, or --engine rtx",
            )
