"""What 8 (and 16) bits cost and give: mAP, size and CPU time, for each checkpoint, way of getting there and engine.

    python benchmarks/int8.py CHECKPOINT... [--methods float fp16 minmax percentile mse entropy best cpu]
                              [--engines onnxruntime openvino openvino-bf16] [--count 512]
                              [--images N] [--out FOLDER]

The ranges of a checkpoint are observed once; every method after that takes them from the file. A checkpoint that was
trained as 8 bits has the rows `qat` and `cpu`, and is compared with the float checkpoint before it. mAP and its
difference from the float detector in PyTorch are of the ONNX file in that engine, on the validation data of the
checkpoint or its first N pictures. Time is one thread's CPU time from letterboxed pixels to detections, one frame at a
time; files and engines take turns, and the median is shown, so that other work on the machine moves the rows alike.
"times float" is against the float file in the first engine. The audit is the share of the
convolutions' FLOPs in the precision that was asked for.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

import export
from export.audit.audit import audit_file, audit_openvino
from export.options import Int8
from models.quant import METHODS
from runtime import BackendOptions, Card, CocoDataset, Detector, read_card
from runtime.evaluation.evaluate import evaluate
from runtime.runs import validation_data

WAYS = ("float", "fp16", *METHODS, "best", "cpu")
ENGINES = {
    "onnxruntime": BackendOptions(engine="onnxruntime"), "openvino": BackendOptions(engine="openvino"),
    "openvino-bf16": BackendOptions(engine="openvino", precision="bf16"),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One way of one checkpoint in one engine."""

    way: str
    engine: str
    path: Path
    map: float
    layers: int
    """Convolutions that were put back to float."""
    audit: float
    """Share of the convolutions' FLOPs in the precision that was asked for."""

    @property
    def megabytes(self) -> float:
        return self.path.stat().st_size / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--methods", nargs="+", choices=WAYS, default=["float", "mse", "cpu"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["onnxruntime"])
    parser.add_argument("--count", type=int, default=512, help="calibration pictures (default: 512)")
    parser.add_argument("--images", type=int, help="validation pictures (default: all)")
    parser.add_argument("--turns", type=int, default=40, help="timed frames (default: 40)")
    parser.add_argument("--out", type=Path, default=Path("runs/int8"), help="folder of the files (default: runs/int8)")
    arguments = parser.parse_args()
    print("| detector | backbone | method | engine | mAP | delta | MB | CPU ms | times float | audit |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    whole = None
    for number, checkpoint in enumerate(arguments.checkpoints):
        card = read_card(checkpoint)
        data = validation_data(card, checkpoint)
        data = replace(data, records=data.records[: arguments.images])
        if whole is None or not card.quantization:
            whole = evaluate(Detector(checkpoint, threshold=0.0), data).map
        folder = arguments.out / f"{number}-{checkpoint.parent.name}"
        rows = measured(checkpoint, card, data, arguments.methods, arguments.engines, arguments.count, folder)
        times = timed(rows, card.input_size_hw, arguments.turns)
        base = next((ms for row, ms in zip(rows, times, strict=True) if row.way == "float"), None)
        for row, ms in zip(rows, times, strict=True):
            shown = f"{row.way} ({row.layers} float)" if row.layers else row.way
            faster = "-" if base is None else f"{base / ms:.2f}"
            print(
                f"| {card.model['detector']} | {card.model['backbone']['name']} | {shown} | {row.engine} "
                f"| {row.map:.2f} | {row.map - whole:+.2f} | {row.megabytes:.1f} | {ms:.1f} | {faster} "
                f"| {100 * row.audit:.1f} % |", flush=True,
            )  # fmt: skip
    return 0


def measured(
    checkpoint: Path, card: Card, data: CocoDataset, ways: list[str], engines: list[str], count: int, folder: Path
) -> list[Row]:
    """Exports of `checkpoint` in these ways, scored on `data` in each engine."""
    trained = bool(card.quantization)
    ranges: Path | None = None
    rows = []
    wanted = ["qat", *(way for way in ways if way == "cpu")] if trained else ways
    for way in tqdm(wanted, desc=checkpoint.parent.name, leave=False):
        out = folder / f"{way}.onnx"
        options = export.OnnxOptions()
        if way == "qat":
            options = export.OnnxOptions(precision="int8")
        elif way == "fp16":
            options = export.OnnxOptions(precision="fp16")
        elif way != "float":
            given = Int8(pictures=count) if ranges is None else Int8(ranges=ranges)
            int8 = replace(given, cpu=True) if way == "cpu" else replace(given, calibrate=way)
            options = export.OnnxOptions(precision="int8", int8=int8)
        # Scored below, on the pictures that were chosen; `best` needs the validation data while it exports.
        gate = export.Gate(verify=False, annotations=data.annotations, images=data.images_dir)
        made = export.to_onnx(checkpoint, out, options, gate)
        if options.int8 is not None:
            ranges = out.with_suffix(".ranges.json")
        layers = len(made.card.quantization.get("float_layers", ()))
        for engine in engines:
            how = ENGINES[engine]
            found = evaluate(Detector(out, device="cpu", threshold=0.0, threads=1, options=how), data).map
            audit = audit_file(out) if engine == "onnxruntime" else audit_openvino(out, "cpu", how.precision)
            rows.append(Row(way, engine, out, found, layers, audit.share(audit.asked)))
    return rows


def timed(rows: list[Row], size_hw: tuple[int, int], turns: int) -> list[float]:
    """Median CPU milliseconds of a frame, from its letterboxed pixels to detections above the model's threshold."""
    detectors = [Detector(row.path, "cpu", threads=1, options=ENGINES[row.engine]) for row in rows]
    frame = np.random.default_rng(0).integers(0, 256, (1, *size_hw, 3), dtype=np.uint8)
    taken: list[list[float]] = [[] for _ in rows]
    for turn in range(turns + 3):
        for detector, times in zip(detectors, taken, strict=True):
            started = time.process_time()
            detector.suppress(detector.infer(frame), detector.threshold)
            if turn >= 3:
                times.append(time.process_time() - started)
    return [1000 * statistics.median(values) for values in taken]


if __name__ == "__main__":
    sys.exit(main())
