"""`exporter onnx`: a checkpoint becomes one ONNX graph, from camera pixels to detections.

The export is a transaction: fold, trace, simplify, check, run, score; only a file that came through all of it
gets the final name.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from export.drift import drift
from export.options import ExportError, Gate, OnnxOptions
from export.quantize import quantized
from export.ranges import write_ranges
from export.verification import Progress, Verification, verify
from models.checkpoint import build_detector
from models.deploy import Deploy
from models.fuse import assert_fused
from runtime import Card, CocoDataset, CocoError, Detector
from runtime.backends.torch import TorchBackend
from runtime.card import METADATA_KEY, sha256_file
from runtime.files import replacing
from runtime.image import letterbox, read_image
from runtime.runs import RunsError, validation_data

OUTPUTS = ("num_dets", "boxes", "scores", "labels")


class GateError(ExportError):
    """The artifact lost more mAP than allowed; `verification` has the numbers."""

    def __init__(self, message: str, verification: Verification):
        super().__init__(message)
        self.verification = verification


@dataclass(frozen=True)
class OnnxExport:
    """What was written, and what is known of it."""

    path: Path
    card: Card
    nodes: int
    megabytes: float
    fold_difference: float
    """Largest change of a raw output by folding, relative to its scale."""
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
    """Export `checkpoint` to `out` (default: its name with .onnx) and prove that it is the same detector.

    Raises `CheckpointError`, `FuseError` or `ExportError`, and `CocoError` or `RunsError` where the data that is
    given cannot be read; then nothing is left under the final name that was not there before.
    """
    checkpoint = Path(checkpoint)
    out = checkpoint.with_suffix(suffix_of(options)) if out is None else Path(out)
    detector, card_json = build_detector(checkpoint)
    card = Card.from_json(card_json, checkpoint)
    given = gate.annotations is not None or gate.images is not None
    data = _data(card, checkpoint, gate, say) if gate.verify or given else None
    made = None
    if options.int8 is not None:
        made = quantized(detector, card, checkpoint, options.int8, data, say, progress)
        detector, card = made.detector, replace(card, quantization=made.quantization)
    deploy = Deploy(detector).eval()
    pixels = _real_pixels(card.input_size_hw, data)
    difference = assert_fused(detector, deploy.detector, torch.from_numpy(pixels))
    say(f"folded: raw outputs agree to {difference:.1e} of their scale")

    with replacing(out) as temporary:
        model = _trace(deploy, card.input_size_hw, options.opset, options.batch)
        if options.simplify:
            model = _simplified(model)
        card = _onnx_card(card, checkpoint, options.batch)
        _write(model, card, temporary)
        say(f"{len(model.graph.node)} nodes, {temporary.stat().st_size / 2**20:.1f} MB; checked by onnx.checker")
        _run_check(temporary, deploy, card, pixels)
        say("ONNX Runtime gives the same detections as PyTorch on the same pixels")
        verification = None
        if gate.verify and data is not None:
            verification = _gate(temporary, checkpoint, gate.tolerance, progress, out.name, data)
        if verification is None:
            summary: dict[str, object] = {
                "scored": False,
                "why": "no validation data" if gate.verify else "not asked for",
            }
        else:
            score = verification.artifacts[0]
            verification = replace(verification, artifacts=(replace(score, path=out),))
            summary = {"scored": True, "passed": True, "reference_map": verification.reference.evaluation.map,
                       "map": score.evaluation.map, "tolerance": score.tolerance}  # fmt: skip
            measured = f"exporter, {score.engine} on {score.device}, {score.evaluation.images} validation images"
            card = replace(card, metrics={**score.evaluation.to_json(), "measured_by": measured})
        card = replace(card, verification=summary)
        _write(model, card, temporary)
    if made is not None and made.ranges is not None:
        say(f"ranges: {write_ranges(out.with_suffix('.ranges.json'), made.ranges)}")
    size = out.stat().st_size / 2**20
    return OnnxExport(out, card, len(model.graph.node), size, difference, verification)


def suffix_of(options: OnnxOptions) -> str:
    """What a file of this form ends with, where no name was given."""
    if options.int8 is None:
        return ".onnx"
    return ".int8-cpu.onnx" if options.int8.cpu else ".int8.onnx"


def _data(card: Card, checkpoint: Path, gate: Gate, say: Callable[[str], None]) -> CocoDataset | None:
    """The data to score on; None where none is given and the checkpoint's own is not there any more."""
    try:
        return validation_data(card, checkpoint, gate.annotations, gate.images)
    except (RunsError, CocoError) as error:
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


def _trace(deploy: Deploy, size_hw: tuple[int, int], opset: int, batch: int | None) -> onnx.ModelProto:
    example = torch.zeros(batch or 2, *size_hw, 3, dtype=torch.uint8)
    dynamic = None if batch else ({0: torch.export.Dim("batch", min=1, max=1024)},)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecations
        program = torch.onnx.export(
            deploy, (example,), dynamo=True, opset_version=opset, input_names=["images"], output_names=list(OUTPUTS),
            dynamic_shapes=dynamic, optimize=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    return program.model_proto


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    with contextlib.redirect_stdout(io.StringIO()):
        # A factor behind a convolution stays: folded into it, every pyramid level would get its own copy of the
        # convolution that all share (models.layers.LevelNorm). Engines fold it while they load.
        slim = onnxslim.slim(model, skip_fusion_patterns=["FusionConvMul"])
    if not isinstance(slim, onnx.ModelProto):
        raise ExportError("onnxslim gave no model back; export without --simplify")
    before, after = model.ByteSize(), slim.ByteSize()
    if after > before * 1.02:
        raise ExportError(
            f"onnxslim grew the model from {before} to {after} bytes (duplicated weights); export without it"
        )
    return slim


def _onnx_card(card: Card, checkpoint: Path, batch: int | None) -> Card:
    return replace(
        card, kind="onnx", batch=batch or "dynamic", precision="int8" if card.quantization else "fp32", metrics={},
        verification={},
        resize={},  # a graph has one input size
        hashes={**card.hashes, "checkpoint": sha256_file(checkpoint)},
        versions={**card.versions, **{name: version(name) for name in ("isodet", "torch", "onnx")},
                  "onnxruntime": onnxruntime.__version__},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip


def _write(model: onnx.ModelProto, card: Card, path: Path) -> None:
    """Serialise with the card inside, checked."""
    kept = [p for p in model.metadata_props if p.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps(card.to_json()))
    model.producer_name, model.producer_version = "isodet", version("isodet")
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker raises several kinds, none of them documented
        raise ExportError(f"onnx.checker refuses the exported graph: {error}") from error
    onnx.save(model, path)


def _run_check(path: Path, deploy: Deploy, card: Card, pixels: np.ndarray) -> None:
    """Run the file in ONNX Runtime and in PyTorch on the same pixels; raise where their boxes differ."""
    frames = list(pixels) + [pixels[0][:, ::-1].copy()]  # three frames: not the batch that was traced
    expected, found = (
        Detector(backend, threshold=0.0)(frames) for backend in (TorchBackend(deploy, card, "cpu"), path)
    )
    apart = drift(dict(enumerate(expected)), dict(enumerate(found)))
    if card.quantization:
        # A sum in another order may become the next whole number, what follows is made of such steps, and NMS may then
        # keep the neighbour of a box: means say whether the graph is right, maxima do not, and the gate scores both.
        wrong = apart.unmatched > max(1, apart.boxes // 10) or apart.box_mean_px > 2.0 or apart.score_mean > 0.02
    else:
        # A candidate on the very edge of a threshold may fall either way; a wrong graph moves far more than that.
        wrong = apart.unmatched > max(1, apart.boxes // 50) or apart.box_max_px > 1.0 or apart.score_max > 0.01
    if wrong:
        raise ExportError(
            f"ONNX Runtime does not give PyTorch's detections: {apart.unmatched} of {apart.boxes} boxes missing, boxes "
            f"up to {apart.box_max_px:.2f} px and scores up to {apart.score_max:.4f} apart (on average "
            f"{apart.box_mean_px:.2f} px and {apart.score_mean:.4f})"
        )


def _gate(
    path: Path,
    checkpoint: Path,
    tolerance: float | None,
    progress: Progress | None,
    shown: str,
    data: CocoDataset,
) -> Verification:
    """Score the file, called `shown` in progress. Raises `GateError` past tolerance."""

    def report(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(shown if what == path.name else what, done, total)

    verification = verify([path], checkpoint, data.annotations, data.images_dir, tolerance, progress=report)
    if not verification.passed:
        score = verification.artifacts[0]
        raise GateError(
            f"the export loses {-score.delta_map:.2f} mAP points ({verification.reference.evaluation.map:.2f} in "
            f"PyTorch, {score.evaluation.map:.2f} exported), more than {score.tolerance:g}; nothing was written",
            verification,
        )
    return verification
