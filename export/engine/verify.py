"""Verifying an engine: audit and score where it runs here; where it does not, the card says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from export.audit.audit import Audit, audit_engine
from export.options import Gate, Progress
from export.verification.gate import pass_gate
from export.verification.scores import Verification
from export.verification.verify import VerifyError, find_checkpoint
from runtime.artifact import read_card
from runtime.backends.cuda.devices import cuda_device_count
from runtime.backends.protocol import BackendError
from runtime.backends.trt.backend import TrtBackend, check_platform
from runtime.backends.trt.library import Library
from runtime.card.card import Card
from runtime.datasets.annotations import DatasetError
from runtime.runs import RunsError


@dataclass(frozen=True)
class Scoring:
    """What an engine is scored against.

    checkpoint: None: the one that the graph names, if it lies beside the graph. out: the engine's final name.
    """

    checkpoint: Path | None
    graph: Path
    gate: Gate
    out: Path


def verify_engine(
    engine: Path, card: Card, library: Library, typed: Audit, allow: Sequence[str], scoring: Scoring,
    progress: Progress | None,
) -> tuple[Card, Audit, Verification | None]:  # fmt: skip
    """Audit and score the engine if it runs here; else the card says why not, and never that it passed."""
    of_graph = {"graph": dict(read_card(scoring.graph).verification)}
    why = _cannot_run(engine, card, library)
    if why is not None:
        verified = {"scored": False, "why": f"built, not scored: {why}", **of_graph}
        return replace(card, verification=verified), typed, None
    audit = audit_engine(TrtBackend(engine).layers(), typed)
    audit.require(str(scoring.out), allow)
    card = replace(card, engine={**card.engine, "audit": audit.to_json()})
    verification = _score(engine, scoring, progress)
    if isinstance(verification, str):
        verified = {"scored": False, "why": f"not scored: {verification}", **of_graph}
        return replace(card, verification=verified), audit, None
    summary, metrics = verification.summary(scoring.out), verification.metrics(scoring.out)
    return replace(card, metrics=metrics, verification={**summary, **of_graph}), audit, verification


def _cannot_run(engine: Path, card: Card, library: Library) -> str | None:
    """Why this machine cannot run the engine; None where it can, so that any failure to run it is an error."""
    if cuda_device_count() == 0:
        return "this machine has no CUDA device"
    try:
        from runtime.backends.cuda.memory import gpu

        here = gpu(0)
        check_platform(engine, card, library, here.sm, here.name)
        if library.flavour == "rtx" and not hasattr(library.trt.ComputeCapability, f"SM{here.sm}"):
            TrtBackend(engine)  # a GPU that RTX does not list, as those of data centers, may refuse every engine
    except BackendError as error:
        return str(error)
    return None


def _score(engine: Path, scoring: Scoring, progress: Progress | None) -> Verification | str:
    """The engine against its checkpoint, or why there is nothing to score on. Raises `GateError` past tolerance."""
    gate = scoring.gate
    if not gate.verify:
        return "not asked for"
    try:
        checkpoint = scoring.checkpoint or find_checkpoint(scoring.graph)
        return pass_gate(engine, scoring.out, checkpoint, gate, None, progress)
    except (VerifyError, RunsError, DatasetError) as error:
        if gate.names_data:
            raise
        return str(error)
