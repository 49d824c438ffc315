"""From weights to artifacts, and the proof that they are the same detector.

import export
export.to_onnx("runs/demo/best.pt", options=export.OnnxOptions(batch=1), gate=export.Gate(tolerance=0.05))
export.verify(["runs/demo/best.onnx"])
export.to_engine("runs/demo/best.onnx")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from isodet.errors import IsodetError

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
    from export.audit.audit import Audit, AuditError, audit_file
    from export.engine.options import EngineOptions
    from export.engine_export import EngineExport, to_engine
    from export.onnx_export import OnnxExport, to_onnx
    from export.options import ExportError, Gate, OnnxOptions
    from export.verification.verify import Verification, VerifyError, verify

_HOME = {
    "to_onnx": "onnx_export", "OnnxExport": "onnx_export",
    "ExportError": "options", "Gate": "options", "OnnxOptions": "options",
    "to_engine": "engine_export", "EngineExport": "engine_export", "EngineOptions": "engine.options",
    "audit_file": "audit.audit", "Audit": "audit.audit", "AuditError": "audit.audit",
    "verify": "verification.verify", "Verification": "verification.verify", "VerifyError": "verification.verify",
}  # fmt: skip

__all__ = [
    "Audit", "AuditError", "EngineExport", "EngineOptions", "ExportError", "Gate", "IsodetError", "OnnxExport",
    "OnnxOptions", "Verification", "VerifyError", "audit_file", "to_engine", "to_onnx", "verify",
]  # fmt: skip

__getattr__, __dir__ = lazy_names(__name__, _HOME)
