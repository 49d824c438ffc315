"""`exporter verify`: every artifact and the PyTorch model, judged by the same evaluation on the same pixels.

It compares a list of detectors and does not know their names: a backend is whatever `runtime.Detector` runs.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from export.drift import Drift, drift
from runtime import Detector, read_card
from runtime.backends.torch import TorchBackend
from runtime.card import sha256_file
from runtime.datasets import fingerprint
from runtime.evaluate import Evaluation, evaluate
from runtime.image import read_image
from runtime.records import CocoDataset
from runtime.runs import validation_data

TOLERANCE = {"fp32": 0.1, "fp16": 0.2, "int8": 1.0}
"""mAP points that an artifact of each precision may lose."""

Progress = Callable[[str, int, int], None]
"""What is being scored, images done, images in all."""


class VerifyError(ValueError):
    """Verification cannot be done; the message names the file and says what to give."""


@dataclass(frozen=True)
class Score:
    """One detector's result."""

    path: Path
    engine: str
    device: str
    precision: str
    megabytes: float
    latency_ms: float
    """Median of one validation frame after another, letterbox to boxes, batch 1."""
    evaluation: Evaluation
    delta_map: float = 0.0
    """mAP points against the reference; negative is lost."""
    drift: Drift | None = None
    tolerance: float | None = None
    passed: bool | None = None
    """None for the reference itself."""

    def to_json(self) -> dict[str, Any]:
        scores = self.evaluation.to_json()
        return {
            "path": str(self.path), "engine": self.engine, "device": self.device, "precision": self.precision,
            "megabytes": round(self.megabytes, 2), "latency_ms": round(self.latency_ms, 2), **scores,
            "delta_map": round(self.delta_map, 4) if math.isfinite(self.delta_map) else None,
            "drift": None if self.drift is None else asdict(self.drift),
            "tolerance": self.tolerance, "passed": self.passed,
        }  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """A PyTorch model and its artifacts on one dataset."""

    annotations: Path
    reference: Score
    artifacts: tuple[Score, ...]
    dataset: CocoDataset
    as_trained: Score | None = None
    """The reference under the resize rule of its training, where that is not the letterbox of a graph."""

    @property
    def passed(self) -> bool:
        return all(score.passed for score in self.artifacts)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "annotations": str(self.annotations),
            "annotations_sha256": fingerprint(self.dataset),
            "images": self.reference.evaluation.images,
            "reference": self.reference.to_json(),
            "as_trained": None if self.as_trained is None else self.as_trained.to_json(),
            "artifacts": [score.to_json() for score in self.artifacts],
        }

    def table(self) -> str:
        """The comparison as text: a line for the reference and one for each artifact."""
        names = [score.path.name for score in (self.reference, *self.artifacts)]
        width = max(len("artifact"), *map(len, names))
        lines = [
            f"{'artifact':<{width}} {'engine':<20} {'prec':<5} {'mAP':>6} {'AP50':>6} {'AP75':>6} {'APs':>6} "
            f"{'APm':>6} {'APl':>6} {'delta':>7} {'drift px':>9} {'ms':>7} {'MB':>6}  gate"
        ]
        for score in (self.reference, *self.artifacts):
            e = score.evaluation
            points = (e.map, e.ap50, e.ap75, e.ap_small, e.ap_medium, e.ap_large)
            aps = " ".join(f"{'-' if math.isnan(v) else format(v, '.2f'):>6}" for v in points)
            gate = "reference"
            if score.passed is not None:
                gate = f"{'passed' if score.passed else 'FAILED'} (may lose {score.tolerance:g})"
            apart = "-" if score.drift is None else f"{score.drift.box_max_px:.3f}"
            lines.append(
                f"{score.path.name:<{width}} {score.engine:<20.20} {score.precision:<5} {aps} {score.delta_map:>+7.3f} "
                f"{apart:>9} {score.latency_ms:>7.1f} {score.megabytes:>6.1f}  {gate}"
            )
        if self.as_trained is not None:
            own, boxed = self.as_trained.evaluation.map, self.reference.evaluation.map
            lines.append(
                f"under its own resize rule {self.as_trained.path.name} scores {own:.2f}: letterboxing into a fixed "
                f"graph costs {own - boxed:+.2f} mAP points, the export the delta above"
            )
        return "\n".join(lines)


def verify(
    artifacts: Sequence[str | Path],
    against: str | Path | None = None,
    annotations: str | Path | None = None,
    images: str | Path | None = None,
    tolerance: float | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Verification:
    """Score `artifacts` and the checkpoint they came from with one COCO evaluation.

    against: the checkpoint; None looks beside the first artifact for the one whose hash its card names.
    annotations, images: a COCO dataset; None takes the validation data named in the card.
    tolerance: mAP points that may be lost; None takes `TOLERANCE` of each artifact's precision.
    Raises `VerifyError`, `RunsError`, `CardError`, `CocoError` or `BackendError`; a gate that is not
    met is not an error but `passed == False`.
    """
    paths = [Path(a) for a in artifacts]
    if not paths:
        raise VerifyError("no artifact to verify was given")
    if tolerance is not None and not tolerance >= 0:
        raise VerifyError(f"tolerance: expected 0 or more mAP points, got {tolerance}")
    checkpoint = Path(against) if against is not None else find_checkpoint(paths[0])
    detector = Detector(checkpoint, device=device)
    as_trained = None
    if detector.card.kind != "checkpoint":
        raise VerifyError(
            f"{checkpoint}: the reference must be a PyTorch checkpoint, this is an {detector.card.kind} file"
        )
    dataset = validation_data(detector.card, checkpoint, annotations, images)
    if detector.card.resize:  # a graph letterboxes: what that costs is not what the export costs
        as_trained = _score(checkpoint, detector, dataset, progress)
        detector = letterboxed(detector)
    reference = _score(checkpoint, detector, dataset, progress)
    scores = []
    for path in paths:
        detector = Detector(path, device=device)
        score = _score(path, detector, dataset, progress)
        allowed = TOLERANCE[score.precision] if tolerance is None else tolerance
        delta = score.evaluation.map - reference.evaluation.map
        # Written so that a mAP that is not a number does not pass.
        passed = -delta <= allowed and score.evaluation.images == reference.evaluation.images
        apart = drift(reference.evaluation.detections, score.evaluation.detections)
        scores.append(replace(score, delta_map=delta, drift=apart, tolerance=allowed, passed=passed))
    return Verification(dataset.annotations, reference, tuple(scores), dataset, as_trained)


def letterboxed(detector: Detector) -> Detector:
    """The same PyTorch model on letterboxed pixels, whatever resize rule it was trained with."""
    backend = detector.backend
    assert isinstance(backend, TorchBackend), "only a checkpoint has a resize rule of its own"
    return Detector(TorchBackend(backend.model, replace(backend.card, resize={}), backend.device))


def find_checkpoint(artifact: Path) -> Path:
    """The checkpoint beside `artifact` whose sha256 its card names. Raises `VerifyError` where there is none."""
    wanted = read_card(artifact).hashes.get("checkpoint")
    for path in sorted(artifact.resolve().parent.glob("*.pt")):
        if wanted is not None and sha256_file(path) == wanted:
            return path
    raise VerifyError(
        f"{artifact}: the checkpoint it was exported from is not beside it; name it with --against CHECKPOINT"
    )


def _score(path: Path, detector: Detector, dataset: CocoDataset, progress: Progress | None) -> Score:
    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(path.name, done, total)

    evaluation = evaluate(detector, dataset, progress=report)
    card, backend = detector.card, detector.backend
    size = path.stat().st_size / 2**20
    return Score(path, backend.name, backend.device, card.precision, size, _latency(detector, dataset), evaluation)


def _latency(detector: Detector, dataset: CocoDataset, frames: int = 20) -> float:
    """Median milliseconds of one frame at a time, over the first readable pictures."""
    times = []
    for record in dataset.records[: frames + 3]:
        if not record.path.is_file():
            continue
        frame = read_image(record.path)
        started = time.perf_counter()
        detector(frame)
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:] or times) * 1000
