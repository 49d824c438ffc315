"""From weights to artifacts, and the proof that they are the same detector.

import export
export.to_onnx("runs/demo/best.pt", options=export.OnnxOptions(batch=1), gate=export.Gate(tolerance=0.05))
export.verify(["runs/demo/best.onnx"])
export.to_engine("runs/demo/best.onnx")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

try:
    from runtime.lazy import lazy_names
    from runtime.rooms import find_models
except ImportError as error:
    import runtime as found  # of this name, but without what isodet's has

    ours = Path(__file__).resolve().parents[1] / "runtime"
    raise ImportError(
        f"{found.__file__ or list(found.__path__)} hides isodet's package {ours}, which {__name__} needs; rename "
        f"yours, or take its folder off the path ({error})"
    ) from None

find_models()

if TYPE_CHECKING:
    from export.audit import Audit, AuditError, audit_file
    from export.graph import OnnxExport, to_onnx
    from export.options import ExportError, Gate, OnnxOptions
    from export.trt import EngineExport, to_engine
    from export.trt_options import EngineOptions
    from export.verification import Verification, VerifyError, verify

_HOME = {
    "to_onnx": "graph", "OnnxExport": "graph",
    "ExportError": "options", "Gate": "options", "OnnxOptions": "options",
    "to_engine": "trt", "EngineExport": "trt", "EngineOptions": "trt_options",
    "audit_file": "audit", "Audit": "audit", "AuditError": "audit",
    "verify": "verification", "Verification": "verification", "VerifyError": "verification",
}  # fmt: skip

__all__ = [
    "Audit", "AuditError", "EngineExport", "EngineOptions", "ExportError", "Gate", "OnnxExport", "OnnxOptions",
    "Verification", "VerifyError", "audit_file", "to_engine", "to_onnx", "verify",
]  # fmt: skip

__getattr__, __dir__ = lazy_names(__name__, _HOME)
