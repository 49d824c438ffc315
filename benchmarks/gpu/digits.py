"""The digits recipe from nothing to a verified ONNX file, trained on the device: minutes, mAP, the export's loss."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import export
from benchmarks.gpu.stage import NotHere, Row, Setting
from runtime import Detector, read_coco
from runtime.evaluation.coco_eval import EvaluationError, coco_engine
from runtime.evaluation.evaluate import evaluate
from trainer.config_reader import read_config
from trainer.loop import fit
from trainer.recipes.digits import make_digits
from trainer.recipes.writer import RecipeError

CPU_MAP = 62.4
"""What the same recipe and seed reach on a CPU: the mean of the three runs that README.md tells of."""
DATA, RUNS = "digits-data", "digits"
"""Folders in the work folder; other stages use what lies there."""


def rows(setting: Setting) -> Iterator[Row]:
    setting.require_device()
    try:
        coco_engine()
    except EvaluationError as error:
        raise NotHere(f"nothing could be judged: {error}; benchmarks/gpu/carry.sh small brings it") from None
    data, runs = setting.work / DATA, setting.work / RUNS
    for folder in (data, runs):  # of an earlier run: the recipe writes into an empty folder only
        shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    try:
        make_digits(data, setting.amount(1000, 24), setting.amount(200, 8))
    except RecipeError as error:  # the folder is empty: what is missing is what the digits are made of
        raise NotHere(str(error)) from None
    yield Row("data", time.perf_counter() - started, "s")
    overrides = [f"device={setting.device}", *(["schedule.epochs=1", "batch_size=4"] if setting.small else [])]
    started = time.perf_counter()
    result = fit(read_config(data / "digits.yaml", overrides), runs=runs, quiet=True)
    yield Row("training", (time.perf_counter() - started) / 60, "minutes")
    least = None if setting.small else CPU_MAP - 1
    yield Row("mAP", result.best_map, least=least, note=f"on a CPU the recipe reaches {CPU_MAP:g}")
    yield from devices_agree(setting, result.best, data)
    if setting.left() < 20:
        yield Row("exporter onnx", None, note="no time left")
        return
    yield from exported(result.best)


def devices_agree(setting: Setting, checkpoint: Path, data: Path) -> Iterator[Row]:
    """The checkpoint's mAP where it was trained, and on the CPU."""
    dataset = read_coco(data / "val.json", data / "val")
    scores = {device: evaluate(Detector(checkpoint, device), dataset).map for device in {setting.device, "cpu"}}
    off = abs(scores[setting.device] - scores["cpu"])
    yield Row(f"mAP on {setting.device} and on the CPU, apart", off, "points", most=0.05,
              note=f"{scores[setting.device]:.3f} and {scores['cpu']:.3f}")  # fmt: skip


def exported(checkpoint: Path) -> Iterator[Row]:
    """The ONNX file, which its own gate scores against PyTorch on the device."""
    simplify = importlib.util.find_spec("onnxslim") is not None
    started = time.perf_counter()
    # The gate is here: a file that loses more than it may is an error, and so is this stage's end.
    made = export.to_onnx(checkpoint, options=export.OnnxOptions(simplify=simplify))
    note = "" if simplify else "not simplified: no onnxslim here"
    yield Row("exporter onnx, its verification included", time.perf_counter() - started, "s", note=note)
    verification = made.verification
    assert verification is not None, "the validation data of the recipe is known"
    reference = verification.reference
    for score in verification.artifacts:
        yield Row(f"ONNX in {score.engine} on {score.device} against {reference.engine} on {reference.device}",
                  score.delta_map, "mAP", least=-0.1, most=0.1,
                  note=f"{reference.evaluation.map:.3f} and {score.evaluation.map:.3f}")  # fmt: skip
