"""`exporter onnx`: a checkpoint becomes one ONNX graph, from camera pixels to detections.

The export is a transaction: fold, trace, simplify, check, run, score. Only a file that passed all steps gets the final
name.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from export.card_paths import handed_on
from export.graph.candidates import chosen_candidates, set_candidates
from export.graph.form import onnx_model
from export.graph.nms import without_functions
from export.graph.plan import frame_of, nms_kind, precision_of
from export.graph.tracing import weights_megabytes, write_model
from export.int8.quantize import quantized
from export.int8.ranges import ranges_path, write_ranges
from export.options import ExportError, Gate, Int8, OnnxOptions, Precision, Progress, Say
from export.verification.first_check import onnxruntime_version
from export.verification.first_check import run_check as _run_check
from export.verification.gate import pass_gate
from export.verification.scores import Verification
from models.checkpoint import build_detector
from models.deploy.graph import Deploy
from models.deploy.graph_input import GraphInput
from models.layers.fuse import assert_fused
from runtime.card.card import Card, CardError, Nms, file_kind, sha256_file
from runtime.datasets.annotations import CocoDataset, DatasetError
from runtime.files.write import replacing, require_writable
from runtime.images.image import letterbox, read_image
from runtime.runs import RunsError, validation_data


@dataclass(frozen=True)
class OnnxExport:
    """The file that was written, and its measurements.

    fold_difference: largest change of a raw output by folding, relative to its scale. weights_megabytes: size of the
    initializers: the network's weights, and the constants of decoding and NMS. verification: None without validation
    data, or where it was not asked for; the card says which.
    """

    path: Path
    card: Card
    nodes: int
    megabytes: float
    fold_difference: float
    weights_megabytes: float
    verification: Verification | None


def to_onnx(
    checkpoint: str | Path,
    out: str | Path | None = None,
    options: OnnxOptions = OnnxOptions(),
    gate: Gate = Gate(),
    say: Say = lambda line: None,
    progress: Progress | None = None,
) -> OnnxExport:
    """Export `checkpoint` to `out` (default: its name and `suffix_of`) and prove that it is the same detector.

    Raises `CheckpointError`, `FuseError` or `ExportError`; `DatasetError` or `RunsError` where `gate` names data that
    cannot be read; OSError, before the long work, where `out` cannot be written. After an error the final name is as it
    was before.
    """
    checkpoint = Path(checkpoint)
    file = "checkpoint"
    with contextlib.suppress(CardError):  # reading an unknown file gives a better message
        file = file_kind(checkpoint)
    if file != "checkpoint":
        raise ExportError.at(checkpoint, f"is an {file} file; expected a checkpoint (.pt)")
    checked_by = onnxruntime_version()  # before the long work
    detector, card_json = build_detector(checkpoint)
    card = Card.from_json(card_json, checkpoint)
    out = checkpoint.with_suffix(suffix_of(options, card)) if out is None else Path(out)
    kind, precision = nms_kind(options, detector.config.postprocess, say), precision_of(options, card)
    frame = frame_of(options, card)
    require_writable(out)
    if out.resolve() == checkpoint.resolve():
        raise ExportError.at(out, "is the checkpoint itself; expected the name of the ONNX file to write")
    if out.suffix != ".onnx":
        raise ExportError.at(out, "expected a name that ends in .onnx, which other tools tell the file by")
    gate = gate.for_int8(options.int8)
    data = _data(card, checkpoint, gate, say) if gate.verify or gate.names_data else None
    choice = chosen_candidates(detector, card, options, gate, data, say, progress)  # once, before any rounding
    ranges = None
    if precision == "int8":
        result = quantized(detector, card, checkpoint, options.int8 or Int8(), data, say, progress, choice.count)
        detector, ranges, card = result.detector, result.ranges, replace(card, quantization=result.quantization)
    set_candidates(detector, choice.count)
    reference = Deploy(detector, GraphInput(frame=frame)).eval()
    difference = assert_fused(detector, reference.detector, torch.from_numpy(_real_pixels(card.input_size_hw, data)))
    say(f"folded: raw outputs agree to {difference:.1e} of their scale")

    with replacing(out) as temporary:
        model = onnx_model(detector, frame, kind, precision, options, say)
        nms: Nms = {**card.nms, "kind": kind, "candidates": choice.count}
        card = handed_on(_onnx_card(card, checkpoint, options, nms, precision, checked_by), checkpoint.parent)
        # TensorRT's plugin does not run here, so the graph with the plugin's body is checked in its place.
        stand_in = replace(card, nms={**card.nms, "kind": "auto"}) if kind == "plugin" else card
        stand_in = write_model(model, stand_in, temporary)
        say(f"{len(model.graph.node)} nodes, {temporary.stat().st_size / 2**20:.1f} MB; checked by onnx.checker")
        _run_check(temporary, reference, stand_in, _real_pixels(stand_in.frame_hw, data), say)
        say("ONNX Runtime gives the same detections as PyTorch on the same pixels")
        verification = None
        if gate.verify and data is not None:
            verification = pass_gate(temporary, out, checkpoint, gate, data, progress)
        if verification is None:
            why = "no validation data" if gate.verify else "not asked for"
            summary: dict[str, object] = {"scored": False, "why": why}
        else:
            summary = verification.summary(out)
            card = replace(card, metrics=verification.metrics(out))
        if kind == "plugin":
            model, summary = without_functions(model), {**summary, "stand_in": "the plugin's body in plain operators"}
        summary = {**summary, "candidates": choice.to_json()}
        card = handed_on(replace(card, verification=summary), checkpoint.parent)
        card = write_model(model, card, temporary)
    if ranges is not None:
        say(f"ranges: {write_ranges(ranges_path(out), ranges).name}")
    size = out.stat().st_size / 2**20
    return OnnxExport(out, card, len(model.graph.node), size, difference, weights_megabytes(model), verification)


def suffix_of(options: OnnxOptions, card: Card) -> str:
    """The suffix of a file without a given name. That of an 8-bit file differs, so it can lie beside the float file."""
    if options.int8 is not None and options.int8.cpu:
        return ".int8-cpu.onnx"
    return ".int8.onnx" if options.precision == "int8" and not card.quantization else ".onnx"


def _data(card: Card, checkpoint: Path, gate: Gate, say: Say) -> CocoDataset | None:
    """The data to score on; None where `gate` names none and the checkpoint's own no longer exists."""
    try:
        return validation_data(card, checkpoint, gate.annotations, gate.images)
    except (RunsError, DatasetError) as error:
        if gate.names_data:
            raise
        say(f"not scored: {error}")
        return None


def _real_pixels(size_hw: tuple[int, int], data: CocoDataset | None, count: int = 2) -> np.ndarray:
    """Images [2, H, W, 3] uint8 to compare forms on: validation pictures where they can be read, else noise."""
    pictures = []
    for record in data.records if data is not None else ():
        with contextlib.suppress(ValueError):  # an unreadable picture: evaluation reports it
            pictures.append(letterbox(read_image(record.path), size_hw)[0])
        if len(pictures) == count:
            return np.stack(pictures)
    return np.random.default_rng(0).integers(0, 256, (count, *size_hw, 3), dtype=np.uint8)


def _onnx_card(
    card: Card, checkpoint: Path, options: OnnxOptions, nms: Nms, precision: Precision, checked_by: str
) -> Card:
    if options.certificate:
        nms["certificate"] = True
    return replace(
        card, kind="onnx", batch=options.batch or "dynamic", precision=precision, nms=nms, metrics={}, verification={},
        input=options.input, color="bgr" if options.input == "uint8-nhwc" else "rgb",
        source_size_hw=options.source_size_hw,
        resize={},  # a graph has one input size
        hashes={**card.hashes, "checkpoint": sha256_file(checkpoint)},
        versions={**card.versions, **{name: version(name) for name in ("isodet", "torch", "onnx")},
                  "onnxruntime": checked_by},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip
