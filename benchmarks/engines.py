"""Which graphs TensorRT-RTX builds: every detector in every precision with every form of NMS, on the CPU.

    python -m benchmarks.engines [--backbone resnet18] [--size 320] [--detectors atss fcos] [--precisions fp16]
                                 [--nms auto portable] [--sm 75] [--width 0.5] [--rows runs/engines.jsonl]

Prints a table of seconds (of export and build) and megabytes, or the library's own reason for a refusal. An engine was
serialized, not run: that needs a GPU. Networks have random weights, on which neither time nor size depend,
and the statistics of a batch of noise; int8 is the network after `models.quant.quantize`, its ranges observed on the
same noise. Every graph passed the checks of `exporter onnx` but for the mAP. Rows are kept: who stops it and starts it
again with the same file gets the rest.

    python -m benchmarks.engines --backbone resnet50 --width 1 --size 640 --detectors atss --nms auto
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from tqdm import tqdm

import export
from benchmarks.untrained import card_of, noise, spread_network
from export.audit.audit import audit_network, load_graph
from export.engine.build import build
from export.options import NmsKind, Precision
from models.checkpoint import save_checkpoint
from models.config.model import model_config
from models.quant import quantize
from runtime import read_card
from runtime.backends.trt.library import Library, load_library

DETECTORS = ("atss", "retinanet", "fcos")


@dataclass(frozen=True)
class Row:
    """One cell of the matrix."""

    network: str
    """Backbone, width and size."""
    sm: tuple[int, ...]
    library: str
    detector: str
    precision: Precision
    nms: NmsKind
    export_seconds: float
    build_seconds: float
    graph_mb: float
    engine_mb: float
    outcome: str


def save_network(path: Path, detector: str, precision: Precision, arguments: argparse.Namespace) -> Path:
    """A checkpoint of random weights; of an 8-bit network for int8."""
    config = model_config({
        "classes": [f"class{i}" for i in range(80)], "detector": detector, "input_size_hw": [arguments.size] * 2,
        "backbone": {"name": arguments.backbone, "width": arguments.width, "weights": None},
        "neck": {"channels": max(32, int(256 * arguments.width))},
    })  # fmt: skip
    network = spread_network(config)
    if precision != "int8":
        save_checkpoint(path, network.state_dict(), card_of(config).to_json())
        return path
    quantized = quantize(network)
    quantized.calibrate([noise(2, config.input_size_hw)])
    save_checkpoint(path, quantized.state_dict(), card_of(config, {"kind": "qat"}).to_json())
    return path


def cell(
    checkpoint: Path, detector: str, precision: Precision, nms: NmsKind, library: Library, sm: tuple[int, ...],
    network: str,
) -> Row:  # fmt: skip
    """Export, audit and build one."""
    graph = checkpoint.with_suffix(f".{precision}.{nms}.onnx")
    options = export.OnnxOptions(nms=nms, precision=precision)
    row = Row(network, sm, library.name, detector, precision, nms, 0, 0, 0, 0, "")
    started = time.perf_counter()
    try:
        export.to_onnx(checkpoint, graph, options, export.Gate(verify=False))
    except export.ExportError as error:
        return replace(row, export_seconds=time.perf_counter() - started, outcome=f"no graph: {error}")
    row = replace(row, export_seconds=time.perf_counter() - started, graph_mb=graph.stat().st_size / 2**20)
    audit = audit_network(load_graph(graph), read_card(graph))
    started = time.perf_counter()
    try:
        plan = build(library, graph, export.EngineOptions(sm=sm), needs_plugin=nms == "plugin")
    except export.ExportError as error:
        reason = str(error).removeprefix(f"{graph}: ")
        return replace(row, build_seconds=time.perf_counter() - started, outcome=f"refused: {reason}")
    return replace(row, build_seconds=plan.seconds, engine_mb=len(plan.content) / 2**20, outcome=audit.shares())


def table(
    rows: Mapping[tuple[str, ...], Row], detectors: Sequence[str], precisions: Sequence[str], kinds: Sequence[str]
) -> str:
    """A line for each detector and precision, a column for each form of NMS, and below it every reason once."""
    lines = [f"| detector | precision | convolution FLOPs | {' | '.join(kinds)} |", f"|{'---|' * (3 + len(kinds))}"]
    reasons: list[str] = []
    for detector, precision in itertools.product(detectors, precisions):
        cells, shares = [], "-"
        for kind in kinds:
            row = rows[detector, precision, kind]
            if row.engine_mb:
                cells.append(f"{row.export_seconds:.0f} + {row.build_seconds:.1f} s, {row.engine_mb:.1f} MB")
                shares = row.outcome
                continue
            reason = re.sub(r"_\d+\b", "_N", row.outcome)  # nodes' numbers differ with the network
            if reason not in reasons:
                reasons.append(reason)
            cells.append(f"no [{reasons.index(reason) + 1}]")
        lines.append(f"| {detector} | {precision} | {shares} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"[{i}] {reason}\n" for i, reason in enumerate(reasons, 1))])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--size", type=int, default=320, help="pixels of the square input")
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=DETECTORS)
    parser.add_argument("--precisions", nargs="+", choices=get_args(Precision), default=get_args(Precision))
    parser.add_argument("--nms", nargs="+", choices=get_args(NmsKind), default=get_args(NmsKind))
    parser.add_argument("--sm", type=int, nargs="+", default=(), help="compute capabilities (default: all since SM80)")
    parser.add_argument("--rows", type=Path, default=Path("runs/engines.jsonl"), help="what was built already")
    arguments = parser.parse_args()
    library, sm = load_library("rtx"), tuple(arguments.sm)
    network = f"{arguments.backbone} at width {arguments.width:g}, {arguments.size} px"
    done: dict[tuple[str, ...], Row] = {}
    if arguments.rows.exists():
        rows = [Row(**json.loads(line)) for line in arguments.rows.read_text().splitlines()]
        done = {
            (row.detector, row.precision, row.nms): row
            for row in rows if (row.network, tuple(row.sm), row.library) == (network, sm, library.name)
        }  # fmt: skip
    arguments.rows.parent.mkdir(parents=True, exist_ok=True)
    cells = list(itertools.product(arguments.detectors, arguments.precisions, arguments.nms))
    with tempfile.TemporaryDirectory() as folder:
        for detector, precision, nms in tqdm(cells, unit="engine"):
            if (detector, precision, nms) in done:
                continue
            checkpoint = Path(folder) / f"{detector}-{'int8' if precision == 'int8' else 'float'}.pt"
            if not checkpoint.exists():
                save_network(checkpoint, detector, precision, arguments)
            row = cell(checkpoint, detector, precision, nms, library, sm, network)
            done[detector, precision, nms] = row
            with arguments.rows.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    print(f"\n{library.name}, {network}, on the CPU\n")
    print(table(done, arguments.detectors, arguments.precisions, arguments.nms))
    return 0


if __name__ == "__main__":
    sys.exit(main())
