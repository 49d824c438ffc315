"""What NMS costs in the whole graph, in each of its forms, on the CPU in ONNX Runtime.

    python -m benchmarks.nms [CHECKPOINT] [--candidates 300] [--turns 8] [--threads 1] [--out runs/nms]
    python -m benchmarks.nms --backbone resnet50 --width 1 --kinds auto portable

Exports the checkpoint (default: the digits recipe's detector with random weights, 320 px) in every form, with K
candidates, and runs the files on noise and, with --pictures, on pictures, one frame at a time in a bare session. The
forms take turns of one run that is not looked at and three that are, so that a slow moment of the machine hits all of
them; in ten sessions of each, because where a session's memory happens to lie makes its convolutions some per cent
faster or slower, which is what NMS costs. That is, for a session, the median of a form's time minus that of the form
without NMS in the same turn; the table has the mean over the sessions, its standard error, and the share of the whole.
The time without NMS holds candidates and decoding.

    python -m benchmarks.nms --export-time

times `to_onnx` of an untrained ResNet-50 detector at 640 px from end to end, verification aside.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import torch

import export
from benchmarks.untrained import untrained
from export.options import NmsKind
from models.checkpoint import read_checkpoint, save_checkpoint
from models.config.model import model_config
from runtime.images.image import letterbox, read_image

SESSIONS = 10
KINDS = tuple(kind for kind in get_args(NmsKind) if kind not in ("plugin", "none"))  # TensorRT's, which has no CPU


def with_candidates(checkpoint: Path, candidates: int, out: Path) -> Path:
    """The same detector with another number of candidates."""
    content = read_checkpoint(checkpoint)
    card = content["card"]
    card["model"]["postprocess"]["candidates"] = card["nms"]["candidates"] = candidates
    save_checkpoint(out, content["model"], card)
    return out


def frames(pictures: Path | None, size_hw: tuple[int, int], count: int = 50) -> list[np.ndarray]:
    if pictures is None:
        return list(np.random.default_rng(0).integers(0, 256, (8, 1, *size_hw, 3), dtype=np.uint8))
    return [letterbox(read_image(path), size_hw)[0][None] for path in sorted(pictures.glob("*.jpg"))[:count]]


def milliseconds(
    files: dict[str, Path], images: list[np.ndarray], turns: int, threads: int
) -> dict[str, list[list[float]]]:
    """Of each file, for each of `SESSIONS` sessions, three for each turn."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    names = tuple(files)
    times: dict[str, list[list[float]]] = {name: [] for name in names}
    # One thread: what it computes, whoever else wants the core meanwhile.
    clock = time.thread_time if threads == 1 else time.perf_counter
    for _ in range(SESSIONS):
        sessions = {
            name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for name, path in files.items()
        }
        for values in times.values():
            values.append([])
        for turn in range(-1, turns):
            for name in names:
                feed = {"images": images[turn % len(images)]}
                sessions[name].run(None, feed)  # what the others left in the caches goes
                for _ in range(3):
                    started = clock()
                    sessions[name].run(None, feed)
                    if turn >= 0:
                        times[name][-1].append((clock() - started) * 1000)
    return times


def table(
    checkpoint: Path, candidates: int, kinds: list[NmsKind], pictures: Path | None, turns: int, threads: int, out: Path
) -> str:
    source = with_candidates(checkpoint, candidates, out / f"k{candidates}.pt")
    forms = {f"{kind} fp32": export.OnnxOptions(nms=kind, batch=1) for kind in (*kinds, "none")}
    if "auto" in kinds:
        forms |= {f"{kind} fp16": export.OnnxOptions(nms=kind, batch=1, precision="fp16") for kind in ("auto", "none")}
    files = {name: out / f"k{candidates}.{name.replace(' ', '.')}.onnx" for name in forms}
    for name, form in forms.items():
        export.to_onnx(source, files[name], form, export.Gate(verify=False))
    times = milliseconds(files, frames(pictures, card_size(source), 50), turns, threads)
    lines = ["| NMS | precision | ms | NMS ms | share |", "|---|---|---|---|---|"]
    for name, sessions in times.items():
        kind, precision = name.split()
        whole = statistics.mean(statistics.median(values) for values in sessions)
        if kind == "none":
            lines.append(f"| {kind} | {precision} | {whole:.2f} | | |")
            continue
        costs = [
            statistics.median(a - b for a, b in zip(values, without, strict=True))
            for values, without in zip(sessions, times[f"none {precision}"], strict=True)
        ]
        cost, error = statistics.mean(costs), statistics.stdev(costs) / len(costs) ** 0.5
        lines.append(f"| {kind} | {precision} | {whole:.2f} | {cost:.2f} ± {error:.2f} | {100 * cost / whole:.1f} % |")
    return "\n".join(lines)


def card_size(checkpoint: Path) -> tuple[int, int]:
    height, width = read_checkpoint(checkpoint)["card"]["input_size_hw"]
    return height, width


def export_seconds(out: Path) -> float:
    config = model_config({
        "classes": [str(i) for i in range(80)], "input_size_hw": [640, 640], "backbone": {"name": "resnet50"},
        "neck": {"channels": 256, "levels": [3, 7]}, "head": {"depth": 4},
    })  # fmt: skip
    checkpoint = untrained(out / "r50.pt", config)
    started = time.perf_counter()
    export.to_onnx(checkpoint, gate=export.Gate(verify=False), say=print)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--backbone", default="resnet18", help="of the random detector")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--size", type=int, default=320, help="pixels of its square input")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="forms beside none")
    parser.add_argument("--candidates", type=int, nargs="+", default=[300])
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="JPEG files (default: noise)")
    parser.add_argument("--turns", type=int, default=8, help="in each of ten sessions")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/nms"))
    parser.add_argument("--export-time", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.export_time:
        cpu = time.process_time()
        seconds = export_seconds(arguments.out)
        print(f"ResNet-50 at 640 px: {seconds:.1f} s from checkpoint to file, {time.process_time() - cpu:.1f} s of CPU")
        return 0
    checkpoint = arguments.checkpoint
    if checkpoint is None:
        config = model_config({
            "classes": [str(i) for i in range(arguments.classes)], "input_size_hw": [arguments.size] * 2,
            "backbone": {"name": arguments.backbone, "width": arguments.width},
            "neck": {"channels": int(128 * arguments.width), "levels": [3, 6]}, "head": {"depth": 2},
        })  # fmt: skip
        checkpoint = untrained(arguments.out / "untrained.pt", config)
    for candidates in arguments.candidates:
        print(f"\nK = {candidates}, {arguments.threads} threads, onnxruntime {onnxruntime.__version__}\n")
        print(
            table(
                checkpoint,
                candidates,
                arguments.kinds,
                arguments.pictures,
                arguments.turns,
                arguments.threads,
                arguments.out,
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
