"""`exporter verify`: every artifact and the PyTorch model are scored by the same evaluation on the same pixels.

Any artifact that `runtime.Detector` runs can be verified. It is scored on every backend that this machine can execute
(`export.verification.targets`). A backend that cannot be executed gives a row that says so, and never counts as passed.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from export.audit.audit import audit_file
from export.graph.plan import framed
from export.options import Progress
from export.verification.detection_diff import compare_by_image, compare_detections
from export.verification.scores import NotScored, Score, Verification
from export.verification.targets import Target, targets
from isodet.errors import IsodetError
from models.deploy.graph import Deploy
from models.deploy.graph_input import GraphInput
from runtime.artifact import read_card
from runtime.backends.openvino.library import load_openvino
from runtime.backends.options import BackendOptions, Engine, OpenVinoPrecision
from runtime.backends.ort.library import load_onnxruntime
from runtime.backends.protocol import Backend, BackendError, Images, RawOutputs
from runtime.backends.torch.backend import TorchBackend
from runtime.card.card import Card, sha256_file
from runtime.card.onnx_metadata import was_edited
from runtime.datasets.annotations import BROKEN_ENTRY, NO_FILE, NO_SIZE, CocoDataset
from runtime.detector import Detector
from runtime.evaluation.coco_eval import MOST
from runtime.evaluation.evaluate import evaluate
from runtime.images.image import ImageError, read_image
from runtime.runs import validation_data
from runtime.tiles import Tiles

TOLERANCE = {"fp32": 0.1, "fp16": 0.2, "int8": 1.0}
"""mAP points that an artifact of each precision may lose."""


class VerifyError(IsodetError, ValueError):
    """Verification is not possible; the message names the file and says what to give."""


def verify(
    artifacts: Sequence[str | Path],
    against: str | Path | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    tolerance: float | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    dataset: CocoDataset | None = None,
    max_dets: Sequence[int] = (MOST,),
    tiles: Tiles | Literal["card"] | None = "card",
    engine: Engine = "auto",
    openvino_precision: OpenVinoPrecision | None = None,
) -> Verification:
    """Score `artifacts` and the checkpoint they came from with one COCO evaluation.

    against: the checkpoint; None: the one beside the first artifact with the hash in that artifact's card.
    annotations, images: a COCO dataset; None: the validation data named in the card.
    tolerance: mAP points that may be lost; None: `TOLERANCE` of each artifact's precision.
    device: auto: every backend that can run here; cpu, cuda or cuda:N: only those; with engine openvino, one of its.
    dataset: the data that annotations and images name, if it was read already.
    max_dets: rising numbers of detections of a class in an image; the mAP is that of the last.
    tiles: how all of them cut pictures into tiles, as the application will; card: as the training did; None: not at
        all.
    engine: what runs ONNX files; auto: ONNX Runtime.
    openvino_precision: OpenVINO on the CPU is scored as well, in float32 and in this precision.
    Raises `VerifyError`, `RunsError`, `CardError`, `DatasetError` or `BackendError`. Too low a mAP is not an error:
    then `passed` is False.
    """
    paths = [Path(a) for a in artifacts]
    if not paths:
        raise VerifyError("no artifact to verify was given")
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise VerifyError.of("tolerance", f"expected 0 or more mAP points, got {tolerance}")
    checkpoint = Path(against) if against is not None else find_checkpoint(paths[0])
    # `find_checkpoint` has compared the hash of the whole file already.
    hashed = BackendOptions(check_hashes=against is not None)
    torch_device = "cpu" if engine == "openvino" else device  # the device is then one of OpenVINO's
    detector = Detector(checkpoint, device=torch_device, options=hashed, tiles=tiles)
    tiles = detector.tiles
    tile_notes = [] if tiles is None else [f"every score and latency is that of pictures in {tiles.describe()}"]
    if detector.card.kind != "checkpoint":
        raise VerifyError.at(
            checkpoint, f"the reference must be a PyTorch checkpoint, this is an {detector.card.kind} file"
        )
    cards = {path: _card(path, checkpoint, detector.card) for path in paths}  # raises before the long work
    # Both raise before the long work.
    if engine != "openvino" and any(c.kind == "onnx" and c.nms["kind"] != "plugin" for c in cards.values()):
        load_onnxruntime()
    if (engine == "openvino" or openvino_precision is not None) and any(c.kind == "onnx" for c in cards.values()):
        load_openvino()
    if dataset is None:
        dataset = validation_data(detector.card, checkpoint, annotations, images)
    if not any((~record.crowd).any() for record in dataset.records):
        raise VerifyError.at(
            dataset.annotations,
            f"it has no box in any of its {len(dataset.records)} pictures, so there is nothing "
            "to score; give annotations with boxes: --annotations FILE",
        )
    as_trained = None
    if detector.card.resize:  # a graph letterboxes: the mAP that this costs is not lost by the export
        as_trained = _score(checkpoint, detector, dataset, progress, max_dets)
        detector = letterboxed(detector)
    reference = _score(checkpoint, detector, dataset, progress, max_dets)
    scores, missing = [], []
    eager, references = detector, {detector.card.frame_hw: reference}
    for path, card in cards.items():
        if card.frame_hw not in references:  # it takes raw frames of one size: that is not lost by the export either
            references[card.frame_hw] = _score(checkpoint, with_frames(eager, card), dataset, progress, max_dets)
        # `_card` has compared all hashes but that of a graph: an edited graph is scored, and refused with its number.
        built = None if card.kind == "checkpoint" else audit_file(path, torch_device, check_hashes=False)
        edited = card.kind == "onnx" and was_edited(path, card)
        for target in targets(card, device, engine, openvino_precision):
            why = target.missing
            if not why:
                try:
                    detector = Detector(path, target.device, options=target.options, tiles=tiles)
                except BackendError as error:
                    if target.device == "cpu":  # every machine has a CPU, so the file is at fault
                        raise
                    why = str(error).removeprefix(f"{path}: ")
            if why:
                size = path.stat().st_size / 2**20
                missing.append(NotScored(path, target.backend, target.device, card.precision, size, why, audit=built))
                continue
            score = replace(_score(path, detector, dataset, progress, max_dets), audit=built)
            allowed = _tolerance(card, target) if tolerance is None else tolerance
            scores.append(_with_verdict(score, references[card.frame_hw], allowed, edited))
    digest = sha256_file(checkpoint) if against is not None else cards[paths[0]].hashes["checkpoint"]
    return Verification(
        dataset.annotations, reference, tuple(scores), dataset, as_trained, tuple(missing),
        (*_notes(reference, dataset, cards, checkpoint, digest, tolerance), *tile_notes),
    )  # fmt: skip


def _card(path: Path, checkpoint: Path, reference: Card) -> Card:
    """The card of an artifact. Raises `VerifyError` where it cannot be compared with the reference."""
    card = read_card(path)
    if card.classes != reference.classes:
        raise VerifyError.at(
            path,
            f"its classes ({_few(card.classes)}) are not those of {checkpoint} ({_few(reference.classes)}); "
            "name the checkpoint it was exported from with --against CHECKPOINT",
        )
    return card


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _tolerance(card: Card, target: Target) -> float:
    """Of the artifact's own precision, or of the half precision in which it runs, whichever is larger."""
    half = TOLERANCE["fp16"] if target.options.precision != "float32" else 0.0
    return max(TOLERANCE[card.precision], half)


def _with_verdict(score: Score, reference: Score, allowed: float, edited: bool) -> Score:
    delta = score.evaluation.map - reference.evaluation.map
    failures = []
    if not -delta <= allowed:  # written so that a mAP that is not a number does not pass
        failures.append(f"it loses {-delta:.2f} mAP points, {allowed:g} are allowed")
    if score.evaluation.images != reference.evaluation.images:
        failures.append(f"{score.evaluation.images} of the reference's {reference.evaluation.images} images were read")
    if edited:
        failures.append("its graph was edited or damaged after the export: it is not the one that its card was made of")
    before, after = reference.evaluation.detections, score.evaluation.detections
    threshold = reference.evaluation.threshold  # applications report what is above it; below it boxes come and go
    shared = {image: detections for image, detections in before.items() if image in after}
    return replace(
        score, delta_map=delta, tolerance=allowed, passed=not failures, failures=tuple(failures),
        drift=compare_detections(shared, after, threshold), images=compare_by_image(shared, after, threshold),
    )  # fmt: skip


def _notes(
    reference: Score, dataset: CocoDataset, cards: dict[Path, Card], checkpoint: Path, digest: str,
    tolerance: float | None,
) -> tuple[str, ...]:  # fmt: skip
    """Sentences about the data and the checkpoint that a reader of the scores must know."""
    notes = []
    for path, card in cards.items():
        allowed = TOLERANCE[card.precision] if tolerance is None else tolerance
        if reference.evaluation.map <= allowed:
            notes.append(
                f"{path.name}: the checkpoint itself scores {reference.evaluation.map:.2f} mAP on this data, and "
                f"{allowed:g} may be lost: here the gate proves nothing"
            )
    absent = sum(dataset.problems.counts.get(reason, 0) for reason in (NO_FILE, NO_SIZE, BROKEN_ENTRY))
    if absent:
        notes.append(
            f"{absent} of the {absent + len(dataset.records)} pictures in {dataset.annotations} are not scored: "
            f"{dataset.problems.summary()}"
        )
    if note := reference.evaluation.cap_note():
        notes.append(note)
    skipped = reference.evaluation.skipped
    if skipped:
        notes.append(
            f"the scores are of {reference.evaluation.images} of {len(dataset.records)} pictures: {len(skipped)} could "
            f"not be read, the first: {skipped[0][0]} ({skipped[0][1]})"
        )
    for path, card in cards.items():
        if card.hashes.get("checkpoint", digest) != digest:
            notes.append(f"{path.name} was exported from another checkpoint than {checkpoint.name}")
    return tuple(notes)


def letterboxed(detector: Detector) -> Detector:
    """The PyTorch model of `detector` on letterboxed pixels, whatever resize rule it was trained with."""
    backend = detector.backend
    assert isinstance(backend, TorchBackend), "only a checkpoint has a resize rule of its own"
    plain = TorchBackend(backend.model, replace(backend.card, resize={}), backend.device)
    return Detector(plain, tiles=detector.tiles)


def with_frames(detector: Detector, card: Card) -> Detector:
    """The PyTorch model of `detector` behind the letterbox of `card`'s graph, which takes raw frames of one size."""
    backend = detector.backend
    assert isinstance(backend, TorchBackend) and isinstance(backend.model, Deploy), "a checkpoint's"
    deploy = Deploy(backend.model.detector, GraphInput(frame=framed(card.frame_hw, card.input_size_hw)))
    framed_card = replace(backend.card, source_size_hw=card.source_size_hw)
    return Detector(TorchBackend(deploy, framed_card, backend.device), tiles=detector.tiles)


def find_checkpoint(artifact: Path) -> Path:
    """The checkpoint beside `artifact` whose sha256 its card names. Raises `VerifyError` where there is none."""
    card = read_card(artifact)
    if card.kind == "checkpoint":
        raise VerifyError.at(artifact, "is a checkpoint; name what was exported from it")
    digest = card.hashes.get("checkpoint")
    for path in sorted(artifact.resolve().parent.glob("*.pt")):
        if digest is not None and sha256_file(path) == digest:
            return path
    raise VerifyError.at(
        artifact, "the checkpoint it was exported from is not beside it; name it with --against CHECKPOINT"
    )


def _score(
    path: Path, detector: Detector, dataset: CocoDataset, progress: Progress | None, max_dets: Sequence[int] = (MOST,)
) -> Score:
    card, backend = detector.card, detector.backend
    counting = _Counting(backend)
    report = None if progress is None else functools.partial(progress, path.name)
    evaluation = evaluate(Detector(counting, tiles=detector.tiles), dataset, progress=report, max_dets=max_dets)
    size, latency = path.stat().st_size / 2**20, _latency(detector, dataset)
    return Score(
        path, backend.name, backend.device, card.precision, size, latency, evaluation, inexact=counting.inexact
    )


class _Counting(Backend):
    """A backend that counts the images on which its graph's NMS is not proven exact."""

    def __init__(self, backend: Backend):
        self._backend = backend
        self.card, self.name, self.device = backend.card, backend.name, backend.device
        self.max_batch, self.fixed_batch = backend.max_batch, backend.fixed_batch
        self.inexact: int | None = 0 if backend.card.nms.get("certificate") else None

    def __call__(self, images: Images) -> RawOutputs:
        raw = self._backend(images)
        if self.inexact is not None and raw.nms_exact is not None:
            self.inexact += int(np.count_nonzero(~raw.nms_exact))  # padding pictures of a batch are always exact
        return raw


def _latency(detector: Detector, dataset: CocoDataset, frames: int = 20) -> float:
    """Median milliseconds of single frames, over the first readable pictures; three more are run for warm-up."""
    times: list[float] = []
    for record in dataset.records[: frames + 3]:
        try:
            frame = read_image(record.path)
        except ImageError:  # the evaluation reports it
            continue
        started = time.perf_counter()
        detector(frame)
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:] or times or [math.nan]) * 1000
