"""How many candidates enter the NMS of a graph: the fewest that keep the mAP, by measurement.

NMS of standard operators compares every candidate with every other, so a count that is larger than the data needs costs
time in every picture.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from export.options import ExportError, Gate, OnnxOptions, Progress, Say
from models.deploy.graph import Deploy
from models.deploy.nms import PortableNms
from models.detector import Detector as Network
from runtime.backends.protocol import RawOutputs
from runtime.backends.torch.backend import TorchBackend
from runtime.card.card import Card
from runtime.datasets.annotations import CocoDataset
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.evaluation.coco_eval import MOST, coco_metrics
from runtime.evaluation.evaluate import evaluate
from runtime.images.image import Letterbox
from runtime.tiles import Grid

COUNTS = (100, 150, 200, 300, 500, 700, 1000)
"""The counts that are tried, from the smallest."""
MAY_LOSE = 0.05
"""mAP points that a smaller count may cost: half of what a float32 file may lose in all."""


@dataclass(frozen=True)
class CandidateChoice:
    """The count K of a graph, and how it was chosen.

    configured: `postprocess.candidates` of the checkpoint. reason: why the count is the one it is. maps: mAP by count,
    of the counts that were tried and of the configured one; {} where nothing was measured. images: pictures that were
    measured on. may_lose: mAP points that a smaller count was allowed to cost.
    """

    count: int
    configured: int
    reason: str
    maps: Mapping[int, float] = field(default_factory=dict)
    images: int = 0
    may_lose: float = MAY_LOSE

    def line(self) -> str:
        """The choice in one line, with the table of counts and mAPs."""
        line = f"candidates: {self.count}, {self.reason}"
        if not self.maps:
            return line
        table = ", ".join(f"{count}: {score:.2f}" for count, score in self.maps.items())
        return f"{line}; mAP on {self.images} pictures by count: {table}"

    def to_json(self) -> dict[str, Any]:
        """The choice in a card, under `verification.candidates`. A mAP that is not a number is None."""
        about: dict[str, Any] = {"count": self.count, "configured": self.configured, "reason": self.reason}
        if self.maps:
            maps = {str(count): round(score, 3) if math.isfinite(score) else None for count, score in self.maps.items()}
            about |= {"map": maps, "images": self.images, "may_lose": self.may_lose}
        return about


def chosen_candidates(
    network: Network,
    card: Card,
    options: OnnxOptions,
    gate: Gate,
    data: CocoDataset | None,
    say: Say,
    progress: Progress | None,
) -> CandidateChoice:
    """The count of candidates that the graph of `network` gets.

    network: the checkpoint's, with its own count. data: the validation data, on which `auto` measures. Says the choice
    in one line. Raises `ExportError` for a count that the network cannot have, and what `evaluate` raises.
    """
    choice = _choice(network, card, options, gate, data, progress)
    say(choice.line())
    return choice


def set_candidates(network: Network, count: int) -> None:
    """Let `count` candidates of `network` enter NMS in every `Deploy` that is made of it from now on."""
    config = network.config
    network.config = replace(config, postprocess=replace(config.postprocess, candidates=count))


def _choice(
    network: Network,
    card: Card,
    options: OnnxOptions,
    gate: Gate,
    data: CocoDataset | None,
    progress: Progress | None,
) -> CandidateChoice:
    post = network.config.postprocess
    configured, asked = post.candidates, options.candidates
    if isinstance(asked, int):
        if asked < post.detections:
            raise ExportError.of(
                "candidates", f"expected at least {post.detections}, the number of detections, got {asked}"
            )
        return CandidateChoice(asked, configured, "as asked for")
    if asked == "config":
        return CandidateChoice(configured, configured, "as configured, as asked for")
    if not any(post.detections <= count < configured for count in COUNTS):
        return CandidateChoice(configured, configured, "as configured; no smaller count is tried")
    if post.threshold_on == "class" and post.level_candidates == 0:
        # The count also decides at how many points the classes are looked at, so that a prefix is another result.
        reason = "as configured: with threshold_on: class and no level_candidates a smaller count cannot be measured"
        return CandidateChoice(configured, configured, reason)
    if not gate.verify:
        return CandidateChoice(configured, configured, "as configured: a smaller count is not measured without scoring")
    if data is None:
        return CandidateChoice(configured, configured, "as configured: no validation data to measure a smaller count")
    may_lose = MAY_LOSE if gate.tolerance is None else min(MAY_LOSE, gate.tolerance / 2)
    return _measured(network, card, data, may_lose, progress)


def _measured(
    network: Network, card: Card, data: CocoDataset, may_lose: float, progress: Progress | None
) -> CandidateChoice:
    """The smallest of `COUNTS` that loses at most `may_lose` mAP points against the configured count."""
    post = network.config.postprocess
    recorder = CandidateRecorder(network, card)
    report = None if progress is None else functools.partial(progress, "candidates")
    evaluation = evaluate(recorder, data, progress=report)
    of_images = evaluation.detections
    judged = replace(data, records=tuple(record for record in data.records if record.id in of_images))
    maps: dict[int, float] = {}
    count = configured = post.candidates
    for smaller in COUNTS:
        if not post.detections <= smaller < recorder.most:
            continue
        detections = dict(zip(of_images, recorder.detections(smaller), strict=True))
        maps[smaller] = coco_metrics(detections, judged, (MOST,))[0]["map"]
        if evaluation.map - maps[smaller] <= may_lose:  # False for a mAP that is not a number
            count = smaller
            break
    maps[configured] = evaluation.map
    fewest = f"the fewest that lose at most {may_lose:g} mAP points against the configured {configured}"
    reason = f"as configured: fewer lose more than {may_lose:g} mAP points" if count == configured else fewest
    return CandidateChoice(count, configured, reason, maps, len(of_images), may_lose)


class CandidateRecorder(Detector):
    """A `Detector` of a network that keeps the candidates of every picture, and cuts them to smaller counts.

    `detections(count)` gives what a `Deploy` with that count finds in the pictures that were detected so far, in their
    order. The candidates fall by score, so those of a smaller count are their beginning. (PyTorch leaves open which of
    several candidates of exactly equal score comes first.) Pictures are letterboxed, as a graph takes them.
    """

    def __init__(self, network: Network, card: Card, device: str = "auto") -> None:
        deploy = Deploy(network, nms=_EveryCandidate()).eval()  # a copy of the network
        super().__init__(TorchBackend(deploy, replace(card, resize={}), device), threshold=0.0)
        post = deploy.config.postprocess
        self.nms, self.most = PortableNms(post.nms_iou, post.detections), deploy.candidate_count
        self._parts: list[tuple[RawOutputs, Sequence[Letterbox]]] = []
        self._grids: list[Grid] = []

    def join(self, parts: Sequence[Detections], grid: Grid, limits: float | NDArray[np.float32]) -> Detections:
        self._grids.append(grid)
        return super().join(parts, grid, limits)

    def _detect(
        self, images: Sequence[Any], placements: Sequence[Letterbox], limits: float | NDArray[np.float32]
    ) -> list[Detections]:
        candidates = self.infer(self.preprocess(images, placements))
        self._parts.append((candidates, placements))
        return self._cut(candidates, placements, limits, self.most)

    def detections(self, count: int) -> list[Detections]:
        """The detections of each picture if only the best `count` candidates enter NMS."""
        views = chain.from_iterable(
            self._cut(candidates, placements, 0.0, count) for candidates, placements in self._parts
        )
        return [super(CandidateRecorder, self).join(list(islice(views, len(g.windows))), g, 0.0) for g in self._grids]

    def _cut(
        self, raw: RawOutputs, placements: Sequence[Letterbox], limits: float | NDArray[np.float32], count: int
    ) -> list[Detections]:
        best = (torch.from_numpy(values[:, :count]) for values in (raw.boxes, raw.scores, raw.labels))
        with torch.no_grad():
            outputs = [output.numpy() for output in self.nms(*best)]
        return self.postprocess(RawOutputs(*outputs), placements, limits)


class _EveryCandidate(nn.Module):
    """No NMS: all K candidates in the four outputs, a score of 0 where the graph would keep none."""

    def forward(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        batch, count = scores.shape
        return torch.full((batch, 1), count, dtype=torch.int32), boxes, scores, labels.int()
