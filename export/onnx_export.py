"""`exporter onnx`: a checkpoint becomes one ONNX graph, from camera pixels to detections.

The export is a transaction: fold, trace, simplify, check, run, score; only a file that came through all of it
gets the final name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from export.card_paths import handed_on
from export.graph.form import onnx_model
from export.graph.nms import without_functions
from export.graph.plan import frame_of, nms_kind, precision_of
from export.graph.tracing import weights_megabytes, write_model
from export.int8.quantize import quantized
from export.int8.ranges import ranges_path, write_ranges
from export.options import ExportError, Gate, Int8, NmsKind, OnnxOptions, Precision, Progress
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
    """What was written, and what is known of it."""

    path: Path
    card: Card
    nodes: int
    megabytes: float
    fold_difference: float
    """Largest change of a raw output by folding, relative to its scale."""
    weights_megabytes: float
    """Of the initializers: the network's, and what decoding and NMS need."""
    verification: Verification | None
    """None where there is no validation data, or it was not wanted; the card says so."""


def to_onnx(
    checkpoint: str | Path,
    out: str | Path | None = None,
    options: OnnxOptions = OnnxOptions(),
    gate: Gate = Gate(),
    say: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
) -> OnnxExport:
    """Export `checkpoint` to `out` (default: its name and `suffix_of`) and prove that it is the same detector.

    Raises `CheckpointError`, `FuseError` or `ExportError`; `DatasetError` or `RunsError` where the data that is given
    cannot be read; OSError where `out` cannot be written, before the long work. Then nothing is left under the final
    name that was not there before.
    """
    checkpoint = Path(checkpoint)
    found = "checkpoint"
    with contextlib.suppress(CardError):  # of what is none of ours, reading it says more
        found = file_kind(checkpoint)
    if found != "checkpoint":
        raise ExportError.at(checkpoint, f"is an {found} file; expected a checkpoint (.pt)")
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
    given = gate.annotations is not None or gate.images is not None
    data = _data(card, checkpoint, gate, say) if gate.verify or given else None
    made = None
    if precision == "int8":
        made = quantized(detector, card, checkpoint, options.int8 or Int8(), data, say, progress)
        detector, card = made.detector, replace(card, quantization=made.quantization)
    reference = Deploy(detector, GraphInput(frame=frame)).eval()
    difference = assert_fused(detector, reference.detector, torch.from_numpy(_real_pixels(card.input_size_hw, data)))
    say(f"folded: raw outputs agree to {difference:.1e} of their scale")

    with replacing(out) as temporary:
        model = onnx_model(detector, frame, kind, precision, options, say)
        card = handed_on(_onnx_card(card, checkpoint, options, kind, precision, checked_by), checkpoint.parent)
        # TensorRT's plugin runs nowhere else: the same graph with the plugin's body stands in for it here.
        stand_in = replace(card, nms={**card.nms, "kind": "auto"}) if kind == "plugin" else card
        stand_in = write_model(model, stand_in, temporary)
        say(f"{len(model.graph.node)} nodes, {temporary.stat().st_size / 2**20:.1f} MB; checked by onnx.checker")
        _run_check(temporary, reference, stand_in, _real_pixels(stand_in.frame_hw, data), say)
        say("ONNX Runtime gives the same detections as PyTorch on the same pixels")
        verification = None
        if gate.verify and data is not None:
            verification = pass_gate(temporary, out, checkpoint, gate, data, progress)
        if verification is None:
            summary: dict[str, object] = {
                "scored": False,
                "why": "no validation data" if gate.verify else "not asked for",
            }
        else:
            summary = verification.summary(out)
            card = replace(card, metrics=verification.metrics(out))
        if kind == "plugin":
            model, summary = without_functions(model), {**summary, "stand_in": "the plugin's body in plain operators"}
        card = handed_on(replace(card, verification=summary), checkpoint.parent)
        card = write_model(model, card, temporary)
    if made is not None and made.ranges is not None:
        say(f"ranges: {write_ranges(ranges_path(out), made.ranges).name}")
    size = out.stat().st_size / 2**20
    return OnnxExport(out, card, len(model.graph.node), size, difference, weights_megabytes(model), verification)


def suffix_of(options: OnnxOptions, card: Card) -> str:
    """What a file of this form ends with, where no name was given: 8 bits beside a float file have a name of theirs."""
    if options.int8 is not None and options.int8.cpu:
        return ".int8-cpu.onnx"
    return ".int8.onnx" if options.precision == "int8" and not card.quantization else ".onnx"


def _data(card: Card, checkpoint: Path, gate: Gate, say: Callable[[str], None]) -> CocoDataset | None:
    """The data to score on; None where none is given and the checkpoint's own is not there any more."""
    try:
        return validation_data(card, checkpoint, gate.annotations, gate.images)
    except (RunsError, DatasetError) as error:
        if gate.annotations is not None or gate.images is not None:
            raise
        say(f"not scored: {error}")
        return None


def _real_pixels(size_hw: tuple[int, int], data: CocoDataset | None, count: int = 2) -> np.ndarray:
    """Images [2, H, W, 3] uint8 to compare forms on: validation pictures where they can be read, else noise."""
    height, width = size_hw
    pictures = []
    for record in data.records if data is not None else ():
        with contextlib.suppress(ValueError):  # an unreadable picture: evaluation reports it
            pictures.append(letterbox(read_image(record.path), (height, width))[0])
        if len(pictures) == count:
            return np.stack(pictures)
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def _onnx_card(
    card: Card, checkpoint: Path, options: OnnxOptions, kind: NmsKind, precision: Precision, checked_by: str
) -> Card:  # fmt: skip
    nms: Nms = {**card.nms, "kind": kind}
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
