"""Decisions about the graph of a checkpoint: NMS, precision and letterbox, made before the long work begins."""

from __future__ import annotations

from export.graph.nms import why_no_plugin
from export.options import ExportError, NmsKind, OnnxOptions, Precision, Say
from models.config.model import PostprocessConfig
from models.deploy.graph_input import FrameGeometry
from runtime.card.card import Card
from runtime.images.image import FILL, Letterbox


def nms_kind(options: OnnxOptions, post: PostprocessConfig, say: Say) -> NmsKind:
    """The form of NMS. Raises `ExportError` if the plugin is asked for and would give other detections."""
    why_not = why_no_plugin(post)
    if not why_not or options.nms not in ("auto", "plugin"):
        return options.nms
    if options.nms == "plugin":
        raise ExportError.of("nms", f"{why_not}; export with --nms portable")
    say(f"NMS: portable, and no plugin, because {why_not}")
    return "portable"


def precision_of(options: OnnxOptions, card: Card) -> Precision:
    """The precision of the file. Raises `ExportError` for one that this checkpoint cannot have."""
    precision = options.precision or ("int8" if card.quantization else "fp32")
    if card.quantization and precision != "int8":
        reason = f"the checkpoint is 8-bit already, so it cannot be exported as {precision}"
        raise ExportError.of("precision", f"{reason}; export the float checkpoint that it came from")
    return precision


def frame_of(options: OnnxOptions, card: Card) -> FrameGeometry | None:
    """The letterbox inside the graph, if it has one."""
    return None if options.source_size_hw is None else framed(options.source_size_hw, card.input_size_hw)


def framed(source_hw: tuple[int, int], size_hw: tuple[int, int]) -> FrameGeometry:
    """The letterbox of raw frames of `source_hw` into `size_hw`. Raises `ExportError` for frames that become a line."""
    placement = Letterbox.fit(source_hw, size_hw)
    if min(placement.resized_hw) < 2:
        (h, w), (height, width) = placement.source_hw, placement.size_hw
        raise ExportError.of("source-size", f"a frame of {h}x{w} becomes a line in an input of {height}x{width}")
    return FrameGeometry(placement.source_hw, placement.resized_hw, placement.size_hw, FILL)
