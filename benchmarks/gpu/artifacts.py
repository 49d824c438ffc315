"""Checkpoints, ONNX files and pictures that the stages of engines and of ONNX Runtime measure, kept in the work folder.

The detector that an earlier stage trained on digits is scored; where it is not there, and for what it is not, networks
of random weights are compared with PyTorch's detections on the same pictures.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import export
from benchmarks.gpu.networks import label
from benchmarks.gpu.stage import Row, Setting, one_line
from benchmarks.untrained import card_of, spread_network
from export.options import Int8, Precision
from export.verification.detection_diff import compare_detections
from models.checkpoint import save_checkpoint
from models.config.model import ModelConfig
from runtime import Detections, Detector, read_card, read_coco
from runtime.datasets.annotations import CocoDataset
from runtime.evaluation.coco_eval import EvaluationError, coco_engine
from runtime.images.image import letterbox, read_image
from trainer.recipes.shapes import make_shapes

SCORED = 100
"""Pictures that an artifact is scored on."""
COMPARED = 8
BEST = 20
"""Boxes a picture that are looked at, those of the highest scores: further down their order is chance."""
MISSED = {"fp32": 5.0, "fp16": 10.0, "int8": None}
"""Per cent of PyTorch's boxes that another engine may miss: a rounding decides which of two neighbors NMS keeps."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint, the pictures it is judged on, and annotations of them where it was trained on such."""

    name: str
    checkpoint: Path
    pictures: tuple[Path, ...]
    dataset: CocoDataset | None
    """None: a network of random weights."""


def untrained(setting: Setting, config: ModelConfig) -> Subject:
    """A network whose scores lie apart, so that a rounding does not change their order everywhere."""
    name = f"{config.detector} {label(config)}"
    path = folder(setting) / f"{name.replace(' ', '-')}.pt"
    if not path.exists():
        save_checkpoint(path, spread_network(config).state_dict(), card_of(config).to_json())
    return Subject(name, path, shapes(setting, config.input_size_hw), None)


def digits(setting: Setting) -> tuple[Subject | None, str]:
    """The detector that the stage `digits` trained, or None and why not."""
    try:
        from benchmarks.gpu.digits import DATA, RUNS  # here only: it needs all that training needs
    except ImportError as error:
        return None, f"training needs a package that is not here: {error}"
    found = sorted((setting.work / RUNS).glob("*/best.pt"), key=lambda path: path.stat().st_mtime)
    data = setting.work / DATA
    if not found or not (data / "val.json").exists():
        return None, "the stage digits left no detector"
    try:
        coco_engine()
    except EvaluationError as error:
        return None, f"nothing can be scored: {error}"
    dataset = read_coco(data / "val.json", data / "val")
    dataset = replace(dataset, records=dataset.records[:SCORED])
    name = f"digits {'x'.join(map(str, read_card(found[-1]).input_size_hw))}"
    return Subject(name, found[-1], tuple(record.path for record in dataset.records), dataset), ""


def shapes(setting: Setting, size_hw: tuple[int, int]) -> tuple[Path, ...]:
    """Drawn pictures of that size, the first of them for comparing and all for observing ranges."""
    place = folder(setting) / f"shapes-{size_hw[0]}x{size_hw[1]}"
    if not (place / "train.json").exists():
        make_shapes(place, setting.amount(32, 8), 2, size_hw)
    return tuple(sorted((place / "train").glob("*.jpg")))


def folder(setting: Setting) -> Path:
    """Where they are kept, made where it is not there."""
    place = setting.work / "artifacts"
    place.mkdir(parents=True, exist_ok=True)
    return place


def exported(setting: Setting, subject: Subject, precision: Precision) -> tuple[Path, str]:
    """The ONNX file of that precision, exported once and not scored, and a note: what its check said with this GPU.

    A file that ONNX Runtime is said to run differently on the GPU is exported again by a process that sees none: its
    check is one finding, and how the file runs another. Raises ExportError, or ImportError for a missing package.
    """
    out = folder(setting) / f"{subject.name.replace(' ', '-')}.{precision}.onnx"
    if out.exists() and out.stat().st_mtime > subject.checkpoint.stat().st_mtime:
        return out, ""
    int8 = Int8(half=True, pictures=64, calibration_images=subject.pictures[0].parent) if precision == "int8" else None
    options = export.OnnxOptions(precision=precision, int8=int8, simplify=has_onnxslim())
    try:
        return export.to_onnx(subject.checkpoint, out, options, export.Gate(verify=False)).path, ""
    except export.ExportError as error:
        if setting.device == "cpu" or precision == "int8":
            raise
        reason = one_line(error)
    command = [sys.executable, "-m", "export", "onnx", str(subject.checkpoint), "--out", str(out), "--precision",
               precision, "--no-verify", "--quiet", *(["--simplify"] if has_onnxslim() else [])]  # fmt: skip
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"})  # fmt: skip
    if done.returncode:
        raise export.ExportError(f"{reason}; and without the GPU: {one_line(done.stderr)}")
    return out, f"with the GPU: {reason}"


def has_onnxslim() -> bool:
    """Whether it is here, with all that it needs."""
    try:
        importlib.import_module("onnxslim")
    except ImportError:
        return False
    return True


def frames(subject: Subject, count: int) -> NDArray[np.uint8]:
    """uint8 [B, H, W, 3]: its first pictures in the network's size, again from the first where there are not enough."""
    size_hw = read_card(subject.checkpoint).input_size_hw
    several = [letterbox(read_image(path), size_hw)[0] for path in subject.pictures[: min(count, COMPARED)]]
    return np.stack([several[i % len(several)] for i in range(count)])


def same_detections(
    what: str, subject: Subject, precision: Precision, detect: Callable[[Sequence[NDArray[np.uint8]]], list[Detections]]
) -> Row:
    """How many of the boxes of PyTorch in float32 on the CPU `detect`, of threshold 0, misses; how far others are."""
    images = list(frames(subject, COMPARED))
    expected = dict(enumerate(Detector(subject.checkpoint, "cpu", threshold=0.0)(images)))
    scores = np.sort(np.concatenate([found.scores for found in expected.values()]))[::-1]
    where = f"{what}: boxes of PyTorch's that it misses"
    if not len(scores):
        return Row(where, None, most=MISSED[precision], note="PyTorch finds none, so nothing was compared")
    lowest = float(scores[: BEST * COMPARED][-1])
    apart = compare_detections(expected, dict(enumerate(detect(images))), lowest)
    note = (f"of the {apart.boxes} best in {COMPARED} pictures (score {lowest:.3f} and more); the rest is up to "
            f"{apart.box_max_px:.2f} px and {apart.score_max:.4f} of score apart, {apart.box_mean_px:.3f} px "
            f"and {apart.score_mean:.5f} on average")  # fmt: skip
    return Row(where, 100 * apart.unmatched / apart.boxes, "%", most=MISSED[precision], note=note)


def scored(what: str, subject: Subject, artifact: Path, device: str) -> Row:
    """The artifact's mAP against the checkpoint's, by `export.verify`. Raises what that raises."""
    assert subject.dataset is not None
    verification = export.verify([artifact], subject.checkpoint, device=device, dataset=subject.dataset)
    for score in verification.artifacts:
        reference, allowed = verification.reference.evaluation.map, score.tolerance or 0.0
        note = (f"{score.evaluation.map:.2f}, {reference:.2f} of PyTorch, on {len(subject.dataset)} pictures; median "
                f"{score.latency_ms:.2f} ms")  # fmt: skip
        if not reference > allowed:
            return Row(f"{what}: mAP against PyTorch's", score.delta_map, "points", note=f"{note}; it proves nothing")
        return Row(f"{what}: mAP against PyTorch's", score.delta_map, "points", least=-allowed, note=note)
    why = "; ".join(missing.why for missing in verification.not_scored)
    return Row(f"{what}: mAP against PyTorch's", None, note=one_line(why or "nothing was scored"))
