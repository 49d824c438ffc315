"""Which graphs TensorRT-RTX builds: every detector in every precision with every form of NMS, on the CPU.

    python benchmarks/engines.py [--backbone resnet18] [--size 320] [--detectors atss fcos] [--precisions fp16]
                                 [--nms auto portable] [--sm 75] [--width 0.5]

Prints a table of seconds and megabytes, or the library's own reason for a refusal. "built" says that an engine was
serialised, not that it was run: that needs a GPU. Networks have random weights, on which neither time nor size depend;
int8 is the network after `models.quant.quantise`, its ranges observed on noise.

    python benchmarks/engines.py --backbone resnet50 --width 1 --size 640 --detectors atss --nms auto
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from tqdm import tqdm

import export
from export.audit import audit_network, load_graph
from export.options import NmsKind, Precision
from export.trt_build import build
from models.checkpoint import save_checkpoint
from models.config import model_config
from models.detector import Detector
from models.quant import quantise
from models.typed import to_mapping
from runtime import Card, read_card
from runtime.backends.trt_library import Library, load_library

DETECTORS = ("atss", "retinanet", "fcos")


@dataclass(frozen=True)
class Row:
    """One cell of the matrix."""

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
    torch.manual_seed(0)
    config = model_config({
        "classes": [f"class{i}" for i in range(80)], "detector": detector, "input_size_hw": [arguments.size] * 2,
        "backbone": {"name": arguments.backbone, "width": arguments.width, "weights": None},
        "neck": {"channels": max(32, int(256 * arguments.width))},
    })  # fmt: skip
    network = Detector(config).eval()
    quantization: dict[str, object] = {}
    if precision == "int8":
        network, quantization = quantise(network), {"kind": "qat"}
        network.calibrate([torch.randint(0, 256, (1, arguments.size, arguments.size, 3), dtype=torch.uint8)])
    post = config.postprocess
    nms = {"kind": "portable", "iou": post.nms_iou, "candidates": post.candidates, "detections": post.detections}
    card = Card(
        kind="checkpoint", classes=config.classes, input_size_hw=config.input_size_hw, nms=nms,
        score_threshold=post.score_threshold, model=to_mapping(config), quantization=quantization,
        precision="int8" if quantization else "fp32",
    )  # fmt: skip
    save_checkpoint(path, network.state_dict(), card.to_json())
    return path


def cell(
    checkpoint: Path, detector: str, precision: Precision, nms: NmsKind, library: Library, sm: tuple[int, ...]
) -> Row:
    """Export, audit and build one."""
    graph = checkpoint.with_suffix(f".{precision}.{nms}.onnx")
    options = export.OnnxOptions(nms=nms, precision=precision)
    started = time.perf_counter()
    try:
        export.to_onnx(checkpoint, graph, options, export.Gate(verify=False))
    except export.ExportError as error:
        return Row(detector, precision, nms, time.perf_counter() - started, 0, 0, 0, f"no graph: {error}")
    exported, size = time.perf_counter() - started, graph.stat().st_size / 2**20
    audit = audit_network(load_graph(graph), read_card(graph))
    started = time.perf_counter()
    try:
        plan = build(library, graph, export.EngineOptions(sm=sm), needs_plugin=nms == "plugin")
    except export.ExportError as error:
        reason = str(error).partition(f"{library.name} ")[2] or str(error)
        return Row(detector, precision, nms, exported, time.perf_counter() - started, size, 0, f"refused: {reason}")
    return Row(detector, precision, nms, exported, plan.seconds, size, len(plan.content) / 2**20,
               f"built, not run; {audit.shares()}")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--size", type=int, default=320, help="pixels of the square input")
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=DETECTORS)
    parser.add_argument("--precisions", nargs="+", choices=get_args(Precision), default=get_args(Precision))
    parser.add_argument("--nms", nargs="+", choices=get_args(NmsKind), default=get_args(NmsKind))
    parser.add_argument("--sm", type=int, nargs="+", default=(), help="compute capabilities (default: all since SM80)")
    arguments = parser.parse_args()
    library, rows = load_library("rtx"), []
    with tempfile.TemporaryDirectory() as folder:
        cells = list(itertools.product(arguments.detectors, arguments.precisions, arguments.nms))
        for detector, precision, nms in tqdm(cells, unit="engine"):
            checkpoint = Path(folder) / f"{detector}-{'int8' if precision == 'int8' else 'float'}.pt"
            if not checkpoint.exists():
                save_network(checkpoint, detector, precision, arguments)
            rows.append(cell(checkpoint, detector, precision, nms, library, tuple(arguments.sm)))
    print(f"\n{library.name}, {arguments.backbone} at width {arguments.width:g}, {arguments.size} px, on the CPU\n")
    print(f"{'detector':<10} {'prec':<5} {'nms':<9} {'export s':>8} {'build s':>8} {'ONNX MB':>8} {'MB':>7}  outcome")
    for row in rows:
        print(
            f"{row.detector:<10} {row.precision:<5} {row.nms:<9} {row.export_seconds:>8.1f} {row.build_seconds:>8.1f} "
            f"{row.graph_mb:>8.1f} {row.engine_mb:>7.1f}  {row.outcome}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
