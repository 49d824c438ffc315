"""From weights to artifacts, and the proof that they are the same detector.

import export
export.to_onnx("runs/demo/best.pt", simplify=True)
export.verify(["runs/demo/best.onnx"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.graph import ExportError, OnnxExport, to_onnx
    from export.verification import Verification, VerifyError, verify

_HOME = {
    "to_onnx": "graph", "OnnxExport": "graph", "ExportError": "graph",
    "verify": "verification", "Verification": "verification", "VerifyError": "verification",
}  # fmt: skip

__all__ = ["ExportError", "OnnxExport", "Verification", "VerifyError", "to_onnx", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"export.{_HOME[name]}"), name)
