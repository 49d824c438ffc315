"""`--int8`: post-training quantization of a trained detector.

Ranges of activations are observed on pictures and set in the network (`models.quant`). If it then loses too much mAP,
layers go back to float one by one. A checkpoint of QAT keeps its own ranges.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from export.graph.candidates import set_candidates
from export.int8.calibration import Pictures, calibration_pictures, correction_images
from export.int8.layer_errors import output_errors
from export.int8.ranges import RangesFile, read_ranges
from export.options import CalibrationError, ExportError, Int8, Progress, Say
from models.deploy.graph import Deploy
from models.detector import Detector as Network
from models.layers.fuse import fuse
from models.quant import (
    METHODS,
    Method,
    QuantDetector,
    Ranges,
    correct_biases,
    cpu_form,
    learned_ranges,
    quantize,
    with_learned,
)
from runtime.backends.torch.backend import TorchBackend
from runtime.card.card import Card, sha256_file
from runtime.datasets.annotations import CocoDataset
from runtime.detector import Detector
from runtime.evaluation.evaluate import evaluate


@dataclass(frozen=True)
class Quantized:
    """The network to trace. quantization: for its card. ranges: to write beside the artifact; None after QAT."""

    detector: QuantDetector
    quantization: Mapping[str, Any]
    ranges: RangesFile | None


def quantized(
    network: Network,
    card: Card,
    checkpoint: Path,
    options: Int8,
    data: CocoDataset | None = None,
    say: Say = lambda line: None,
    progress: Progress | None = None,
    candidates: int | None = None,
) -> Quantized:
    """The 8-bit form of the network of `checkpoint`, in eval mode.

    data: validation pictures, for `best` and `keep_map`. candidates: how many enter the NMS of its graph, so that
    `keep_map` counts what fewer of them lose; None: the checkpoint's own number. Raises `CalibrationError` for unusable
    options, calibration pictures or ranges, `QuantError` for a network that cannot be traced, `ExportError` if no
    choice of float layers keeps the mAP.
    """
    if options.calibrate == "best" or options.keep_map is not None:
        option = "--calibrate best" if options.calibrate == "best" else "--keep-mAP"
        if data is None:
            raise CalibrationError(f"{option} needs validation pictures to score on; give --annotations FILE")
        if not any((~record.crowd).any() for record in data.records):
            raise CalibrationError(
                f"{option}: {data.annotations} has no box in any picture, so there is nothing to score on; give "
                "--annotations FILE"
            )
    trained = network if isinstance(network, QuantDetector) else None
    if trained is not None:
        _refuse_for_trained(options, checkpoint)
        if not options.cpu:
            return Quantized(trained, card.quantization, None)
    base = quantize(network, options.float_layers) if trained is None else trained
    ranges = _ranges(base, card, checkpoint, options, say, progress)
    tensors = dict(ranges.tensors)
    if trained is not None:
        tensors = with_learned(tensors, learned_ranges(trained))
    images = None
    if options.bias_correction and trained is None:
        images = correction_images(card, checkpoint, options, say)
    trial = _Trial(network, card, options.cpu, tensors, images, data, progress, candidates)
    method: Method = "mse" if options.calibrate == "best" else options.calibrate
    if options.calibrate == "best":
        scores = {name: trial.score(options.float_layers, name) for name in METHODS}
        method = max(scores, key=lambda name: scores[name])
        say("calibration: mAP " + ", ".join(f"{name} {score:.2f}" for name, score in scores.items()) + f": {method}")
    float_layers = options.float_layers
    if options.keep_map is not None:
        float_layers = _kept(trial, method, options, say)
    quantization: dict[str, Any] = dict(card.quantization)
    if trained is None:
        quantization = {"kind": "ptq", "method": method, "images": ranges.images, "float_layers": list(float_layers)}
        quantization["bias_correction"] = 0 if images is None else len(images)
    if options.cpu:
        quantization["form"] = "cpu"
    detector = trial.build(float_layers, method)
    # The form for CPUs has integer biases, which are made while folding.
    return Quantized(fuse(detector) if options.cpu else detector, quantization, ranges)


def _refuse_for_trained(options: Int8, checkpoint: Path) -> None:
    if options.keep_map is not None or options.float_layers or options.calibrate == "best":
        raise CalibrationError.at(
            checkpoint,
            "it was trained as 8 bits and exports as it is: its ranges are its own, and float layers "
            "are chosen before that training, with qat.float_layers",
        )
    if not options.cpu and replace(options, half=False) != Int8():
        raise CalibrationError.at(
            checkpoint,
            "it was trained as 8 bits and brings its own ranges; leave out --calibrate, --calibration "
            "with what belongs to it, and --ranges: they are for float checkpoints, and for --cpu",
        )


def _ranges(
    base: QuantDetector, card: Card, checkpoint: Path, options: Int8, say: Say, progress: Progress | None
) -> RangesFile:
    """The ranges of all tensors that one of the two forms rounds, read from a file or observed."""
    sha256 = sha256_file(checkpoint)
    form = cpu_form(base)  # it rounds all tensors that the other form rounds, and more
    if options.ranges is not None:
        ranges = read_ranges(options.ranges, checkpoint, sha256)
        if missing := form.unknown(ranges.tensors):
            raise CalibrationError.at(
                options.ranges,
                f"nothing is said of the tensor {missing[0]} and {len(missing) - 1} others; leave "
                "--ranges out to observe them anew",
            )
        say(f"calibration: ranges of {ranges.images} pictures from {options.ranges}")
        return ranges
    pictures = calibration_pictures(card, checkpoint, options.calibration, options.calibration_images, options.pictures)
    tensors = observed(form, card, pictures, options.pictures, say, progress)
    say(f"calibration: {len(tensors)} tensors on {pictures.used} pictures of {pictures.source}")
    return RangesFile(sha256, pictures.used, pictures.source, tensors)


def observed(
    form: QuantDetector, card: Card, pictures: Pictures, asked: int, say: Say, progress: Progress | None
) -> dict[str, Ranges]:
    """The ranges on `pictures` of the tensors that `form` rounds. Raises `CalibrationError` if none can be read."""
    batches = pictures.batches(card.input_size_hw, progress)
    first = next(batches, None)
    if first is None:
        pictures.report(asked, say)
        raise CalibrationError(f"{pictures.source}: no picture to calibrate on")
    tensors, _ = form.observe(itertools.chain([first], batches))
    pictures.report(asked, say)
    return tensors


class _Trial:
    """Builds and scores 8-bit forms of one network."""

    def __init__(
        self, network: Network, card: Card, cpu: bool, tensors: Mapping[str, Ranges], images: Tensor | None,
        data: CocoDataset | None, progress: Progress | None, candidates: int | None,
    ):  # fmt: skip
        """images: for the correction of biases; None: they stay as they are."""
        self.network, self.card, self.cpu, self.tensors, self.images = network, card, cpu, tensors, images
        self.data, self.progress, self.candidates = data, progress, candidates

    def build(self, float_layers: tuple[str, ...], method: Method, corrected: bool = True) -> QuantDetector:
        """The 8-bit form. It is to be measured layer by layer without corrected biases, which belong to the whole."""
        network = self.network
        form = network if isinstance(network, QuantDetector) else quantize(network, float_layers)
        form = cpu_form(form) if self.cpu else form
        form.set_ranges(self.tensors, method)
        if corrected and self.images is not None:
            correct_biases(form, self.images)
        if self.candidates is not None:
            set_candidates(form, self.candidates)
        return form

    def score(self, float_layers: tuple[str, ...] | None, method: Method) -> float:
        """mAP of the 8-bit form; of the float network if `float_layers` is None."""
        if float_layers is None:
            return score(self.network, self.card, self.data, "float", self.progress)
        return score(self.build(float_layers, method), self.card, self.data, f"int8 by {method}", self.progress)


def score(network: Network, card: Card, data: CocoDataset | None, task: str, progress: Progress | None) -> float:
    """mAP of `network` in PyTorch on letterboxed pictures of `data`. task: its name in `progress`."""
    assert data is not None, "called only with validation data"
    report = None if progress is None else functools.partial(progress, task)
    backend = TorchBackend(Deploy(network).eval(), replace(card, resize={}), "auto")  # a copy of the network
    return evaluate(Detector(backend, threshold=0.0), data, progress=report).map


def _kept(trial: _Trial, method: Method, options: Int8, say: Say) -> tuple[str, ...]:
    """The layers that must stay in float so that no more than `keep_map` is lost.

    PyTorch pictures the integers here, and an engine rounds a few of them otherwise. So the goal is a fifth below what
    the gate allows the file itself.
    """
    assert options.keep_map is not None and trial.data is not None
    goal = 0.8 * options.keep_map
    float_map = trial.score(None, method)
    float_layers = options.float_layers
    reached = trial.score(float_layers, method)
    ranking: list[str] | None = None
    while not float_map - reached <= goal:  # "not <=" so that NaN does not pass
        if ranking is None:
            paths = [record.path for record in trial.data.records[:32]]
            pictures = Pictures.spread(paths, trial.card, len(paths), str(trial.data.annotations))
            errors = output_errors(
                trial.build(float_layers, method, corrected=False),
                list(pictures.batches(trial.card.input_size_hw)),
                trial.progress,
            )
            ranking = sorted(errors, key=lambda name: -errors[name])
        if not ranking:
            raise ExportError.of(
                "keep-mAP",
                f"{float_map - reached:.2f} mAP points are lost even with every layer in float, more than "
                f"{goal:g}: the ranges of sums alone cost that; calibrate by another method",
            )
        float_layers = (*float_layers, ranking.pop(0))
        before, reached = reached, trial.score(float_layers, method)
        say(f"keep-mAP: {float_layers[-1]} is float again: {before:.2f} becomes {reached:.2f} of {float_map:.2f} mAP")
    kept = ", ".join(float_layers) if float_layers else "no layer"
    say(f"keep-mAP: {float_map - reached:+.2f} mAP points lost, {goal:g} allowed here; in float: {kept}")
    return float_layers
