"""`exporter onnx`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from export.commands.gate import CANDIDATES, NO_VERIFY, OF_ONNX, Bar, Gated, print_refusal, print_reports
from export.commands.int8 import INT8, require_int8
from export.options import Gate, Int8, OnnxOptions
from runtime.commands.arguments import count, flag


def _batch(text: str) -> int | None:
    return None if text == "dynamic" else count(text)


@dataclass(frozen=True, kw_only=True)
class Onnx(Gated):
    """Write one ONNX graph, from pixels to detections.

    A checkpoint is folded, traced, checked, run and scored; it is written only if it came through all of that.

    out: the file (default: beside the checkpoint, with its name)
    int8: short for --precision int8
    """

    out: Annotated[Path | None, flag(metavar="FILE.onnx")] = None
    form: Annotated[OnnxOptions, {
        "simplify": flag(), "nms": flag(), "candidates": CANDIDATES, "certificate": flag(), "precision": flag(),
        "batch": flag(metavar="dynamic|N", type=_batch), "source_size_hw": flag("--source-size", metavar="H,W"),
        "input": flag(), "opset": flag(),
    }] = OnnxOptions(simplify=False)  # fmt: skip
    int8: bool = False
    gate: Annotated[Gate, {"verify": NO_VERIFY, **OF_ONNX}] = Gate()
    calibration: Annotated[Int8, INT8, "8 bits, with --int8"] = Int8()

    def __post_init__(self) -> None:
        if self._options.int8 is None:
            require_int8(self.calibration, Int8())

    @property
    def _options(self) -> OnnxOptions:
        wanted = self.int8 or self.form.precision == "int8"
        return replace(self.form, precision="int8", int8=self.calibration) if wanted else self.form

    def run(self) -> int:
        from export.onnx_export import to_onnx
        from export.verification.gate import GateError

        checkpoint = self.chosen()
        with Bar(self.quiet) as bar:
            try:
                result = to_onnx(checkpoint, self.out, self._options, self.gate, bar.say, bar.progress)
            except GateError as error:
                print_refusal(error)
                raise
        if result.verification is not None:
            print_reports(result.verification, result.path)
        print(f"wrote {result.path} ({result.megabytes:.1f} MB, {result.nodes} nodes)")
        return 0
