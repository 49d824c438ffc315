"""Results of verification: a row for each artifact on each backend, scored or not, and the verdict."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from export.audit.audit import PRECISIONS, Audit
from export.verification.detection_diff import DetectionDiff, ImageDiff
from runtime.datasets import fingerprint
from runtime.datasets.annotations import CocoDataset
from runtime.evaluation.evaluate import Evaluation
from runtime.files.text_table import text_table

NOT_SCORED = "built, not scored"
Verdict = Literal["passed", "failed", "not scored"]


@dataclass(frozen=True)
class _Row:
    """A detector on a backend. audit: the precision of its layers; None for a checkpoint."""

    path: Path
    engine: str
    device: str
    precision: str
    megabytes: float
    audit: Audit | None = field(default=None, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        return {
            "path": str(self.path), "engine": self.engine, "device": self.device, "precision": self.precision,
            "built": _built(self.audit), "megabytes": round(self.megabytes, 2),
        }  # fmt: skip


@dataclass(frozen=True)
class Score(_Row):
    """One detector's result on one backend.

    latency_ms: median over single validation frames, letterbox to boxes, batch 1. delta_map: mAP points against the
    reference; negative is a loss. passed: None for the reference itself. failures: why it did not pass. images: every
    image, the one that moved most first. inexact: images on which the graph's NMS was not proven exact; None for a
    graph without that output.
    """

    latency_ms: float
    evaluation: Evaluation
    delta_map: float = 0.0
    drift: DetectionDiff | None = None
    tolerance: float | None = None
    passed: bool | None = None
    failures: tuple[str, ...] = ()
    images: tuple[ImageDiff, ...] = ()
    inexact: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **super().to_json(), "latency_ms": round(self.latency_ms, 2), **self.evaluation.to_json(),
            "delta_map": round(self.delta_map, 4) if math.isfinite(self.delta_map) else None,
            "drift": None if self.drift is None else asdict(self.drift),
            "tolerance": self.tolerance, "passed": self.passed, "failures": list(self.failures),
            "nms_not_proven_exact": self.inexact,
            "most_changed": [asdict(image) for image in self.images[:20]],
        }  # fmt: skip


@dataclass(frozen=True)
class NotScored(_Row):
    """An artifact that this machine cannot run on a backend. why: the reason."""

    why: str

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "status": NOT_SCORED, "why": self.why}


@dataclass(frozen=True)
class Verification:
    """A PyTorch model and its artifacts on one dataset.

    as_trained: the reference with the resize rule of its training, if that is not the letterbox of a graph. notes:
    sentences about the measurement that a reader must know.
    """

    annotations: Path
    reference: Score
    artifacts: tuple[Score, ...]
    dataset: CocoDataset
    as_trained: Score | None = None
    not_scored: tuple[NotScored, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """failed if any score failed; not scored if an artifact has no score at all; else passed."""
        if not all(score.passed for score in self.artifacts):
            return "failed"
        return "not scored" if self.unproven else "passed"

    @property
    def passed(self) -> bool:
        """Whether every artifact has a score, and every score is within its tolerance."""
        return self.verdict == "passed"

    @property
    def worst(self) -> Score:
        """The artifact's score that loses most mAP."""
        return min(self.artifacts, key=lambda score: score.delta_map)

    @property
    def unproven(self) -> tuple[Path, ...]:
        """Artifacts that no backend here could run."""
        scored = {score.path for score in self.artifacts}
        return tuple(dict.fromkeys(row.path for row in self.not_scored if row.path not in scored))

    def renamed(self, old: Path, new: Path) -> Verification:
        """This verification after the file `old` got the name `new`."""
        scores = tuple(replace(s, path=new) if s.path == old else s for s in self.artifacts)
        rows = tuple(replace(s, path=new) if s.path == old else s for s in self.not_scored)
        notes = tuple(note.replace(old.name, new.name) for note in self.notes)
        return replace(self, artifacts=scores, not_scored=rows, notes=notes)

    def summary(self, path: Path) -> dict[str, Any]:
        """The verification in the card of the artifact at `path`. The numbers are those of the worst backend."""
        scores = [score for score in self.artifacts if score.path == path]
        rows = [row for row in self.not_scored if row.path == path]
        backends: list[dict[str, Any]] = [
            {"backend": s.engine, "device": s.device, "scored": True, "passed": s.passed, "map": s.evaluation.map}
            for s in scores
        ]
        backends += [
            {"backend": r.engine, "device": r.device, "scored": False, "status": NOT_SCORED, "why": r.why} for r in rows
        ]
        if not scores:
            why = "; ".join(dict.fromkeys(f"{row.engine}: {row.why}" for row in rows))
            return {"scored": False, "status": NOT_SCORED, "why": why, "backends": backends}
        worst = min(scores, key=lambda s: s.delta_map)
        return {
            "scored": True, "passed": all(s.passed for s in scores), "reference_map": self.reference.evaluation.map,
            "map": worst.evaluation.map, "tolerance": worst.tolerance, "backends": backends,
        }  # fmt: skip

    def metrics(self, path: Path) -> dict[str, Any]:
        """The metrics in the card of the artifact at `path`, on the worst backend; {} if no backend ran it."""
        scores = [score for score in self.artifacts if score.path == path]
        if not scores:
            return {}
        worst = min(scores, key=lambda s: s.delta_map)
        measured = f"exporter, {worst.engine} on {worst.device}, {worst.evaluation.images} validation images"
        return {**worst.evaluation.to_json(), "measured_by": measured}

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "annotations": str(self.annotations),
            "annotations_sha256": fingerprint(self.dataset),
            "images": self.reference.evaluation.images,
            "notes": list(self.notes),
            "reference": self.reference.to_json(),
            "as_trained": None if self.as_trained is None else self.as_trained.to_json(),
            "artifacts": [score.to_json() for score in self.artifacts],
            "not_scored": [row.to_json() for row in self.not_scored],
        }

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The comparison as a table of texts: names of columns, and a row for each score and each missing one."""
        head = ["artifact", "backend", "prec", "mAP", "AP50", "AP75", "APs", "APm", "APl", "delta", "drift px", "lost",
                "new", "ms", "MB", "gate"]  # fmt: skip
        rows = [_row(score) for score in (self.reference, *self.artifacts)]
        for r in self.not_scored:
            first = [r.path.name, f"{r.engine} {r.device}", r.precision]
            rows.append([*first, *["-"] * 11, f"{r.megabytes:.1f}", f"{NOT_SCORED}: {r.why}"])
        return head, rows

    def table(self) -> str:
        """The comparison as text: a line for the reference and for each artifact on each backend, and the remarks."""
        head, rows = self.rows()
        lines = text_table(head, rows, left={"artifact", "backend", "prec", "gate"})
        return "\n".join([*lines, *self.remarks()])

    def remarks(self) -> list[str]:
        """Sentences about facts that the table has no column for."""
        lines = []
        if self.as_trained is not None:
            scored, letterboxed = self.as_trained.evaluation.map, self.reference.evaluation.map
            lines.append(
                f"under its own resize rule {self.as_trained.path.name} scores {scored:.2f}: letterboxing into a fixed "
                f"graph costs {scored - letterboxed:+.2f} mAP points, the export the delta above"
            )
        for score in self.artifacts:
            lines += [f"{score.path.name} on {score.engine}: {reason}" for reason in score.failures]
            if score.inexact is not None:
                images = score.evaluation.images
                lines.append(
                    f"{score.path.name} on {score.engine}: NMS proved itself exact on {images - score.inexact} of "
                    f"{images} images"
                )
        audits = {score.path: score.audit for score in self.artifacts} | {r.path: r.audit for r in self.not_scored}
        for path, audit in audits.items():
            if audit is None:
                continue
            lines.append(f"{path.name} as built: convolution FLOPs {audit.shares()}")
            if missed := audit.missed():
                more = f" and {len(missed) - 3} more" if len(missed) > 3 else ""
                lines.append(
                    f"{path.name}: NOT {audit.asked.upper()}, which its card says: {', '.join(missed[:3])}{more}"
                )
        return [*lines, *self.notes]


def _row(score: Score) -> list[str]:
    e, diff = score.evaluation, score.drift
    points = [_points(v) for v in (e.map, e.ap50, e.ap75, e.ap_small, e.ap_medium, e.ap_large)]
    gate = "reference"
    if score.passed is not None:
        gate = f"{'passed' if score.passed else 'FAILED'} (may lose {score.tolerance:g})"
    moved = ["-", "-", "-"]
    if diff is not None:
        moved = [f"{diff.box_max_px:.3f}", str(diff.unmatched), str(diff.extra)]
    delta = "-" if score.passed is None else f"{score.delta_map:+.3f}"
    first = [score.path.name, f"{score.engine} {score.device}", score.precision]
    return [*first, *points, delta, *moved, f"{score.latency_ms:.1f}", f"{score.megabytes:.1f}", gate]


def _built(audit: Audit | None) -> dict[str, Any] | None:
    if audit is None:
        return None
    shares = {precision: round(audit.share(precision), 4) for precision in PRECISIONS}
    return {"convolution_flops": shares, "read_from": audit.source, "not_as_asked": list(audit.missed())}


def _points(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
