"""`exporter sensitivity`: the mAP and the output error that 8 bits in each single layer cost."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from export.int8.calibration import Pictures
from export.int8.layer_errors import output_errors
from export.int8.quantize import quantized, score
from export.options import CalibrationError, Int8, Progress, Say
from isodet.selection import evenly_spread
from models.checkpoint import build_detector
from runtime.card.card import Card
from runtime.datasets.annotations import CocoDataset
from runtime.files.figure import new_figure, save_figure
from runtime.files.text_table import text_table
from runtime.files.write import write_text
from runtime.runs import validation_data


@dataclass(frozen=True)
class Layer:
    """One convolution, measured with it alone in 8 bits.

    output_error: root of the mean squared change of the network's raw outputs, in their standard deviations. lost_map:
    mAP points; None if not measured.
    """

    name: str
    weights: int
    output_error: float
    lost_map: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """The layers from worst to best: first those whose mAP was measured, by lost mAP, then the others by output error.

    order: names of the layers in the order in which the network runs them. images, map_images: the numbers of pictures
    for the output error and for the mAP.
    """

    layers: tuple[Layer, ...]
    order: tuple[str, ...]
    float_map: float | None
    images: int
    map_images: int

    def table(self, rows: int | None = None) -> str:
        """The layers as text. rows: only so many, the worst."""
        shown = self.layers[:rows]
        cells = [
            [layer.name, str(layer.weights), f"{layer.output_error:.2%}",
             "-" if layer.lost_map is None else f"{layer.lost_map:+.2f}"]
            for layer in shown
        ]  # fmt: skip
        lines = text_table(["layer", "weights", "output error", "mAP lost"], cells, left={"layer"})
        if len(shown) < len(self.layers):
            lines.append(f"and {len(self.layers) - len(shown)} layers with less")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "map_images": self.map_images,
            "float_map": self.float_map,
            "layers": [asdict(layer) for layer in self.layers],
        }


def sensitivity(
    checkpoint: str | Path,
    options: Int8 | None = None,
    images: int = 32,
    map_images: int = 100,
    map_layers: int = 8,
    annotations: str | Path | None = None,
    pictures_of: str | Path | None = None,
    say: Say = lambda line: None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Rank the layers of `checkpoint` by their sensitivity to 8 bits.

    All layers are ranked by output error on `images` validation pictures, and the worst `map_layers` of them by the mAP
    that is lost on `map_images`. annotations, pictures_of: the validation data and its folder; None: as the checkpoint
    names them. Raises `CalibrationError`, `QuantError`, `CheckpointError`, `RunsError` or `DatasetError`.
    """
    for name, value, least in (("images", images, 1), ("map-images", map_images, 1), ("map-layers", map_layers, 0)):
        if value < least:
            raise CalibrationError.of(name, f"expected {least} or more, got {value}")
    options = options or Int8()
    if options.cpu or options.calibrate == "best" or options.keep_map is not None:
        raise CalibrationError("sensitivity: measures one method in TensorRT's form, with all layers")
    checkpoint = Path(checkpoint)
    network, card_json = build_detector(checkpoint)
    card = Card.from_json(card_json, checkpoint)
    data = validation_data(card, checkpoint, annotations, pictures_of)
    options = replace(options, bias_correction=False)  # it is by layers, and a correction belongs to the whole
    detector = quantized(network, card, checkpoint, options, data, say, progress).detector
    paths = [record.path for record in spread(data, images).records]
    pictures = Pictures.spread(paths, card, images, str(data.annotations))
    batches = list(pictures.batches(card.input_size_hw))
    pictures.report(images, say)
    errors = output_errors(detector, batches, progress)
    worst = sorted(errors, key=lambda name: -errors[name])[:map_layers]
    lost: dict[str, float] = {}
    float_map, part = None, spread(data, map_images)
    if worst:
        detector.enable([])
        float_map = score(detector, card, part, "float", progress)
        for i, name in enumerate(worst, start=1):
            detector.enable([name])
            lost[name] = float_map - score(detector, card, part, f"{name} ({i} of {len(worst)})", progress)
        detector.enable()
    layers = [Layer(name, conv.weight.numel(), errors[name], lost.get(name)) for name, conv in detector.layers.items()]
    ranked = sorted(layers, key=lambda layer: (layer.lost_map is None, -(layer.lost_map or 0), -layer.output_error))
    map_count = len(part.records) if worst else 0
    return Sensitivity(tuple(ranked), tuple(detector.layers), float_map, pictures.used, map_count)


def spread(data: CocoDataset, count: int) -> CocoDataset:
    """`count` pictures spread evenly over `data`."""
    return replace(data, records=tuple(evenly_spread(data.records, count)))


# -------------------------------------------------------------------------------- files


def write_sensitivity(result: Sensitivity, folder: Path, stem: str = "sensitivity") -> list[Path]:
    """Write STEM.json and STEM.png into `folder`; returns their paths."""
    written = [write_text(folder / f"{stem}.json", json.dumps(result.to_json(), indent=2) + "\n")]
    return [*written, save_figure(_figure(result), folder / f"{stem}.png")]


def _figure(result: Sensitivity) -> Any:
    """Bars in the order of the network: left the output error, right the lost mAP where it was measured."""
    by_name = {layer.name: layer for layer in result.layers}
    layers = [by_name[name] for name in result.order]
    measured = any(layer.lost_map is not None for layer in layers)
    figure = new_figure(11 if measured else 8, 1.4 + 0.19 * len(layers))
    panels = figure.subplots(1, 2 if measured else 1, sharey=True, squeeze=False)[0]
    rows = range(len(layers))
    part_colors = {"backbone": "C0", "neck": "C1", "head": "C2"}
    colors = [part_colors.get(layer.name.partition(".")[0], "C7") for layer in layers]
    panels[0].barh(rows, [100 * layer.output_error for layer in layers], color=colors)
    panels[0].set_yticks(rows, [layer.name for layer in layers], fontsize=7)
    panels[0].set_xlabel("output error, % of the outputs' standard deviation")
    panels[0].set_title(f"each layer alone in 8 bits, {result.images} pictures", fontsize=10)
    panels[0].invert_yaxis()
    panels[0].set_ylim(len(layers) - 0.4, -0.6)
    if measured:
        bars = [(row, layer.lost_map) for row, layer in enumerate(layers) if layer.lost_map is not None]
        panels[1].barh([row for row, _ in bars], [lost for _, lost in bars], color=[colors[row] for row, _ in bars])
        panels[1].axvline(0, color="0.3", linewidth=0.8)
        panels[1].locator_params(axis="x", nbins=6)
        panels[1].set_xlabel(f"mAP points lost (below 0: won), {result.map_images} pictures")
        panels[1].set_title(f"the {len(bars)} with the largest output error", fontsize=10)
    for panel in panels:
        panel.grid(axis="x", alpha=0.3)
    return figure
