"""Options of quantization, and `exporter sensitivity`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

from export.commands.gate import Bar
from export.options import Calibrate, CalibrationError, Int8
from runtime.commands.arguments import flag
from runtime.commands.shared import Data, OfRun, Quiet

CALIBRATION = {
    "calibrate": flag(),
    "calibration": flag(metavar="DATA"),
    "calibration_images": flag(metavar="FOLDER"),
    "pictures": flag("--calibration-count", metavar="N"),
    "ranges": flag(metavar="FILE"),
}
ENGINE_INT8 = CALIBRATION | {
    "bias_correction": flag(help="leave biases as they are, though rounding shifts the means of channels"),
    "keep_map": flag("--keep-mAP", metavar="POINTS"),
    "float_layers": flag(
        "--float-layer", metavar="NAME", action="append", help="a convolution that stays in float; may be repeated"
    ),
}
INT8 = ENGINE_INT8 | {"cpu": flag(), "half": flag()}
"""Options of `exporter onnx` alone: an engine has no form for CPUs, and its float layers are always float16."""
_ONE_METHOD = CALIBRATION | {
    "calibrate": flag(choices=get_args(Calibrate)[:-1], help="how ranges follow from what was observed")
}


def require_int8(options: Int8, default: Int8) -> None:
    """Raise `CalibrationError` for options of 8 bits where 8 bits were not asked for."""
    if options != default:
        raise CalibrationError.of("int8", "options of 8 bits were given, and 8 bits were not asked for; add --int8")


@dataclass(frozen=True, kw_only=True)
class Sensitivity(OfRun, Data, Quiet):
    """Rank layers by what 8 bits cost them.

    It is what each costs when it alone is 8 bits. All layers are ranked by how far they move the network's outputs,
    which is fast; the mAP is measured for the worst. `exporter onnx --int8 --keep-mAP 0.5` uses the same ranking to put
    layers back to float.

    count: pictures for the output error
    map_count: pictures for the mAP
    map_layers: how many get a mAP
    out: folder of the table and the plot (default: the checkpoint's)
    """

    count: Annotated[int, flag(metavar="N")] = 32
    map_count: Annotated[int, flag(metavar="N")] = 100
    map_layers: Annotated[int, flag(metavar="N")] = 8
    out: Annotated[Path | None, flag(metavar="FOLDER")] = None
    calibration: Annotated[Int8, _ONE_METHOD, "8 bits"] = Int8()

    def run(self) -> int:
        from export.int8.sensitivity import sensitivity, write_sensitivity

        checkpoint = self.chosen()
        with Bar(self.quiet) as bar:
            result = sensitivity(
                checkpoint, self.calibration, images=self.count, map_images=self.map_count, map_layers=self.map_layers,
                annotations=self.annotations, pictures_of=self.images, say=bar.say, progress=bar.progress,
            )  # fmt: skip
        print(result.table())
        for path in write_sensitivity(result, self.out or checkpoint.parent, f"{checkpoint.stem}.sensitivity"):
            print(f"wrote {path}")
        return 0
