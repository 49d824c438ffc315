"""`exporter trt` and `exporter audit`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from export.commands.gate import CANDIDATES, Bar, Gated, print_refusal, print_reports
from export.commands.int8 import ENGINE_INT8, require_int8
from export.engine.options import EngineOptions
from export.options import Int8, OnnxOptions
from isodet.errors import ArgumentError
from runtime.backends.options import OpenVinoPrecision
from runtime.commands.arguments import flag
from runtime.commands.shared import chosen


def _batch(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 3):
        raise ValueError(f"expected MIN,OPT,MAX or one number, got {text!r}")
    return numbers * 3 if len(numbers) == 1 else numbers


@dataclass(frozen=True, kw_only=True)
class Allow:
    """allow: layers that may be of another precision, by name or pattern ('neck.*'; '*' allows all)"""

    allow: Annotated[tuple[str, ...], flag(nargs="+", metavar="LAYER")] = ()


@dataclass(frozen=True, kw_only=True)
class Trt(Gated, Allow):
    """Build a TensorRT or TensorRT-RTX engine.

    It is made from a checkpoint, or from an ONNX file of `exporter onnx`. Precision is what the graph says: a
    checkpoint becomes a graph of the precision asked for, an ONNX file has to have it already. The graph is audited,
    the engine is built, audited and scored, and only what came through is written: a plain engine that trtexec, Triton
    and DeepStream read, and its card beside it (best.engine.json).

    TensorRT (pip install 'isodet[trt]') builds for the GPU that it runs on. TensorRT-RTX (pip install 'isodet[rtx]')
    builds without a GPU, for GeForce and RTX cards. What this machine cannot run is built, not scored, and the card
    says so.

    checkpoint: a checkpoint or an ONNX file (default: the newest run's best.pt)
    out: the file (default: beside the source, with its name)
    """

    checkpoint: Annotated[Path | None, flag("source")] = None
    out: Annotated[Path | None, flag(metavar="FILE.engine")] = None
    options: Annotated[EngineOptions, {
        "precision": flag(either={
            "--fp16": ("fp16", "half precision, with boxes and scores in float32"),
            "--int8": ("int8", "8 bits; calibrates a checkpoint that is float"),
        }),
        "engine": flag(), "batch": flag(metavar="MIN,OPT,MAX", type=_batch), "hardware_compatible": flag(),
        "version_compatible": flag(), "timing_cache": flag(metavar="FILE"),
        "workspace_gb": flag("--workspace", metavar="GB"), "sm": flag(metavar="86[,89]"),
        "check_hashes": flag("--skip-hashes", help="take an ONNX file that was edited after its export"),
    }] = EngineOptions()  # fmt: skip
    graph: Annotated[OnnxOptions, {"nms": flag(), "candidates": CANDIDATES}] = OnnxOptions()
    calibration: Annotated[Int8, ENGINE_INT8, "8 bits, with --int8"] = Int8(half=True)

    def __post_init__(self) -> None:
        if self.options.precision != "int8":
            require_int8(self.calibration, Int8(half=True))

    def run(self) -> int:
        from export.audit.audit import AuditError
        from export.engine_export import to_engine
        from export.verification.gate import GateError

        precision = self.options.precision
        graph = replace(self.graph, precision=precision, int8=self.calibration if precision == "int8" else None)
        source = chosen(self.checkpoint, "best.pt", runs=self.runs, kind="checkpoint")
        with Bar(self.quiet) as bar:
            try:
                result = to_engine(
                    source, self.out, self.options, self.gate, graph, allow=self.allow, say=bar.say,
                    progress=bar.progress,
                )  # fmt: skip
            except GateError as error:
                print_refusal(error)
                raise
            except AuditError as error:
                print(error.audit.table(self.allow))
                raise
        print(result.audit.table(self.allow))
        if result.verification is not None:
            print_reports(result.verification, result.path)
        else:
            print(result.card.verification["why"])
            scores = result.card.verification["graph"]
            if scores.get("scored"):
                print(f"its graph was scored: {scores['map']:.2f} mAP, PyTorch {scores['reference_map']:.2f}")
        print(f"run it with NVIDIA's tool: {result.trtexec}")
        print(f"wrote {result.path} ({result.megabytes:.1f} MB, built in {result.seconds:.1f} s)")
        print(f"wrote {result.sidecar}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Audit(Allow):
    """Say what precision a file really computes in.

    It is that of the convolutions of an ONNX file or an engine, by FLOPs. An engine is asked itself where a GPU can
    load it; elsewhere the types of the network that it was built from stand in its card. Layers that are not what was
    asked for are listed and make the exit status 1, unless --allow names them.

    file: an .onnx file or an engine
    device: auto, cuda or cuda:N; cpu reads what is in the card; with --engine openvino, one of its devices
    engine: openvino: what OpenVINO really runs of an .onnx file, on this machine
    engine_precision: what OpenVINO is asked to compute in
    """

    file: Annotated[Path, flag("file", metavar="ENGINE|ONNX")]
    device: str = "auto"
    engine: Literal["auto", "openvino"] = "auto"
    engine_precision: OpenVinoPrecision = "float32"

    def run(self) -> int:
        from export.audit.audit import audit_file, audit_openvino

        if self.engine == "openvino":
            result = audit_openvino(self.file, self.device, self.engine_precision)
        elif self.engine_precision != "float32":
            raise ArgumentError.of("engine_precision", "a choice of OpenVINO: add --engine openvino")
        else:
            result = audit_file(self.file, self.device)
        print(result.table(self.allow))
        if result.why:
            print(f"the engine itself was not asked: {result.why}")
        result.require(str(self.file), self.allow)
        return 0
