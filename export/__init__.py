"""From weights to artifacts, and the proof that they are the same detector.

import export
export.to_onnx("runs/demo/best.pt", options=export.OnnxOptions(batch=1), gate=export.Gate(tolerance=0.05))
export.verify(["runs/demo/best.onnx"])
export.to_engine("runs/demo/best.onnx")
"""

from typing import TYPE_CHECKING

from isodet.lazy import lazy_names
from isodet.rooms import find_rooms

find_rooms("models", "runtime")

if TYPE_CHECKING:
    from export.audit.audit import Audit as Audit
    from export.audit.audit import AuditError as AuditError
    from export.audit.audit import audit_file as audit_file
    from export.engine.options import EngineOptions as EngineOptions
    from export.engine_export import EngineExport as EngineExport
    from export.engine_export import to_engine as to_engine
    from export.int8.sensitivity import Sensitivity as Sensitivity
    from export.int8.sensitivity import sensitivity as sensitivity
    from export.onnx_export import OnnxExport as OnnxExport
    from export.onnx_export import to_onnx as to_onnx
    from export.options import CalibrationError as CalibrationError
    from export.options import ExportError as ExportError
    from export.options import Gate as Gate
    from export.options import Int8 as Int8
    from export.options import OnnxOptions as OnnxOptions
    from export.verification.bisect import BisectError as BisectError
    from export.verification.bisect import Bisection as Bisection
    from export.verification.bisect import bisect as bisect
    from export.verification.gate import GateError as GateError
    from export.verification.scores import Verification as Verification
    from export.verification.verify import VerifyError as VerifyError
    from export.verification.verify import verify as verify
    from isodet.errors import IsodetError as IsodetError

lazy_names(__name__)
