"""The card: how to run a checkpoint or an artifact, and where it comes from, so that nobody has to retype it.

JSON with `"format": 1`: under the key `isodet` of an ONNX file's `metadata_props`, under `card` in a checkpoint, and
beside an engine (`runtime.card.sidecar`). It is read here without torch, onnx or onnxruntime.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from isodet.errors import IsodetError
from isodet.strict import ConfigError, UnknownKeyError, build, converted, nearest, require
from runtime.card.seal import is_broken, sealed
from runtime.images.image import FILL, FixedSize, Resize, ShortSide
from runtime.tiles import Tiles

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = 1
METADATA_KEY = "isodet"
COLORS = {"uint8-nhwc": "bgr", "float-nchw": "rgb"}
"""Forms of a graph's input and their channel order: uint8 [B, H, W, 3], 0 to 255, or float32 [B, 3, H, W], 0 to 1."""
LETTERBOX = {"align": "top-left", "fill": FILL, "interpolation": "linear"}


MOST_BOXES = 1 << 20
"""Limit for the candidates and the detections of an image: far more than any graph can have."""
LOAD_ANYWAY = "take it as it is with BackendOptions(check_hashes=False), on the command line --skip-hashes"
_SEAL = "card"  # its name among the hashes


class CardError(IsodetError, ValueError):
    """A card that is missing or cannot be used; the message names the file and the key."""

    @classmethod
    def at(cls, path: str | PathLike[str], reason: str, *, key: str | None = None) -> Self:
        """The error of the file `path`, or of `key` of the card in it; the message begins with them."""
        return super().at(path, reason) if key is None else cls(f"{path}: card: {key}: {reason}", key=key, path=path)


class _Nms(TypedDict):
    kind: Literal["auto", "portable", "loop", "onnx", "plugin", "none"]
    iou: float
    candidates: int
    detections: int


class Nms(_Nms, total=False):
    """NMS of a graph: K candidates enter it, D detections are kept.

    The kind `plugin` needs TensorRT; with `none` the graph gives candidates, which the runtime suppresses. With
    `certificate: true` there is an output `nms_exact`.
    """

    certificate: bool


@dataclass(frozen=True)
class Card:
    """Everything needed to run a model and to know its origin. Raises `CardError` for bad values.

    classes: Names of labels 0..C-1.
    input_size_hw: Pixels.
    score_threshold: Lowest score the graph keeps.
    input: Form of the graph's input, see `COLORS`.
    color: Channel order that the graph takes.
    source_size_hw: Pixels of the raw frames that the graph takes, where the letterbox is inside; its boxes are in
        pixels of these frames.
    resize: {} for the letterbox into `input_size_hw`, else the fields of a checkpoint's
        `runtime.images.image.ShortSide`.
    tiles: {} where pictures were trained on whole, else the fields of the `runtime.tiles.Tiles` that training cut them
        into; a `Detector` cuts frames in the same way unless told otherwise.
    quantization: {} for floats. For int8: kind (ptq or qat), method of the ranges, images that were observed,
        float_layers (convolutions that stay in float besides the predictions), bias_correction (images for it).
    threshold: Recommended threshold of an application; applied by the runtime after the graph.
    thresholds: Recommended threshold of single classes, by name; other classes have `threshold`. Applied on request:
        `Detector(..., threshold="card")`.
    versions: Of packages, by name; git_commit and git_dirty (yes or no) of the folder that the training was started in.
    hashes: sha256, by the name of what was hashed. In a file, `card` is that of the card itself (`card_text`).
    model: The ModelConfig as a mapping.
    training: The resolved TrainConfig as a mapping; {} when unknown.
    created: ISO 8601.
    engine: How and for which GPUs an engine was built, else {}; the keys are `runtime.card.sidecar.ENGINE_KEYS`.
    """

    kind: Literal["checkpoint", "onnx", "engine"]
    classes: tuple[str, ...]
    input_size_hw: tuple[int, int]
    score_threshold: float
    nms: Nms
    batch: int | Literal["dynamic"] = "dynamic"
    input: Literal["uint8-nhwc", "float-nchw"] = "uint8-nhwc"
    color: Literal["bgr", "rgb"] = "bgr"
    source_size_hw: tuple[int, int] | None = None
    letterbox: Mapping[str, Any] = field(default_factory=lambda: dict(LETTERBOX))
    resize: Mapping[str, Any] = field(default_factory=dict)
    tiles: Mapping[str, Any] = field(default_factory=dict)
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    quantization: Mapping[str, Any] = field(default_factory=dict)
    threshold: float = 0.3
    thresholds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    verification: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            for name, value in converted(typing.get_type_hints(Card), set(), values, "").items():
                object.__setattr__(self, name, value)  # lists of JSON are tuples now, whole numbers floats
            self._check()
        except ConfigError as error:
            raise CardError(str(error), key=error.key) from None

    def _check(self) -> None:
        require(bool(self.classes) and all(self.classes), "classes", "a list of at least one class name", self.classes)
        require(len(set(self.classes)) == len(self.classes), "classes", "class names that differ", self.classes)
        for key, size in (("input_size_hw", self.input_size_hw), ("source_size_hw", self.source_size_hw)):
            fits = size is None or all(1 <= side <= 1 << 16 for side in size)
            require(fits, key, "[height, width] in pixels", size)
        fits = self.batch == "dynamic" or 1 <= self.batch <= 1 << 16
        require(fits, "batch", f"dynamic or 1 to {1 << 16}", self.batch)
        order = COLORS[self.input]
        require(self.color == order, "color", f"{order}, the order of {self.input}", self.color)
        for name, score in {"score_threshold": self.score_threshold, "threshold": self.threshold}.items():
            require(0 <= score <= 1, name, "a score from 0 to 1", score)
        for name, score in self.thresholds.items():
            if name not in self.classes:
                key = f"thresholds.{name}"
                raise ConfigError(f"{key}: there is no class of this name{nearest(name, self.classes)}", key=key)
            require(0 <= score <= 1, f"thresholds.{name}", "a score from 0 to 1", score)
        require(0 <= self.nms["iou"] <= 1, "nms.iou", "a number from 0 to 1", self.nms["iou"])
        for name, count in (("candidates", self.nms["candidates"]), ("detections", self.nms["detections"])):
            require(1 <= count <= MOST_BOXES, f"nms.{name}", f"a whole number from 1 to {MOST_BOXES}", count)
        layers = self.quantization.get("float_layers", ())
        layers_ok = isinstance(layers, (list, tuple)) and all(isinstance(layer, str) for layer in layers)
        require(layers_ok, "quantization.float_layers", "names of layers", layers)
        require(not self.resize or self.kind == "checkpoint", "resize", "{}: a graph has one input size", self.resize)
        rule = self.resize_rule()
        if isinstance(rule, ShortSide):
            sides_ok = all(1 <= pixels <= 1 << 20 for pixels in (rule.short, rule.long, rule.multiple))
            require(sides_ok, "resize", "short, long and multiple in pixels", self.resize)
            fill_ok = all(0 <= value <= 255 for value in rule.fill_bgr)
            require(fill_ok, "resize.fill_bgr", "numbers from 0 to 255", rule.fill_bgr)
        self.tiling()
        known_letterbox = f"{LETTERBOX}, the one that this version does"
        require(dict(self.letterbox) == LETTERBOX, "letterbox", known_letterbox, self.letterbox)
        is_engine = bool(self.engine) == (self.kind == "engine")
        require(is_engine, "engine", "an object with keys for an engine, {} for anything else", self.engine)

    @property
    def frame_hw(self) -> tuple[int, int]:
        """Pixels [H, W] of the frames that the graph takes, raw or letterboxed."""
        return self.source_size_hw or self.input_size_hw

    def resize_rule(self) -> Resize:
        """How frames become this model's input. A graph with the letterbox inside takes frames of one size: a frame of
        another size is first letterboxed into that size.
        """
        return build(ShortSide, self.resize, "resize") if self.resize else FixedSize(self.frame_hw)

    def tiling(self) -> Tiles | None:
        """How training cut pictures into tiles, and detection cuts frames by default; None: not at all."""
        return build(Tiles, self.tiles, "tiles") if self.tiles else None

    def tile_hw(self, tiles: Tiles) -> tuple[int, int]:
        """Height and width of `tiles` for this model, in frame pixels. Raises ValueError for too small ones."""
        neck = self.model.get("neck")
        levels = neck.get("levels") if isinstance(neck, Mapping) else None
        return tiles.size_hw(self.frame_hw, 2 ** int(levels[1]) if levels else 1)

    def to_json(self) -> dict[str, Any]:
        """The card as JSON-ready objects; `Card.from_json` of it gives an equal card."""
        # Left out where they say nothing, so that a runtime without these keys can read the others.
        optional = ("thresholds", "source_size_hw", "tiles", "engine")
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {name: value for name, value in values.items() if value or name not in optional}
        return {"format": FORMAT, **json.loads(json.dumps(plain, default=_plain))}

    @classmethod
    def from_json(cls, content: str | Mapping[str, Any], source: str | Path, check_hashes: bool = True) -> Card:
        """A card from its JSON, as text or parsed. Raises `CardError` naming `source` and the key.

        check_hashes: refuse a card that has a hash of itself and was changed after it was written.
        """
        try:
            content = json.loads(content) if isinstance(content, str) else content
            damaged = check_hashes and isinstance(content, Mapping) and is_broken(content, _SEAL, "hashes")
        except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits, and deep nesting
            raise CardError.at(source, f"its card is not valid JSON ({error})") from None
        if not isinstance(content, Mapping) or "format" not in content:
            raise CardError.at(source, "not an isodet card (expected a JSON object with the key 'format')")
        version = content["format"]
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise CardError.at(source, f"expected a whole number of at least 1, got {version!r}", key="format")
        if version > FORMAT:
            reason = f"format {version} is newer than the {FORMAT} that this isodet reads; upgrade isodet"
            raise CardError(f"{source}: card: {reason}", key="format", path=source)
        values = {key: value for key, value in content.items() if key != "format"}
        if isinstance(values.get("hashes"), Mapping):  # a seal belongs to a file; writing the card makes a new one
            values["hashes"] = {key: value for key, value in values["hashes"].items() if key != _SEAL}
        try:
            card = build(cls, values)
        except (ConfigError, CardError) as error:
            newer = "; a newer isodet may read it" if isinstance(error, UnknownKeyError) else ""
            raise CardError(f"{source}: card: {error}{newer}", key=error.key, path=source) from None
        if damaged:  # last, since an error of a key says more
            raise CardError.at(
                source,
                "its card was edited or damaged after it was written: it does not fit its own hash, "
                f"hashes.{_SEAL}; copy the file again or make it anew; where it was edited on purpose, take that key "
                f"out, or {LOAD_ANYWAY}",
            )
        return card


def card_text(card: Card, indent: int | None = None) -> str:
    """The card as the JSON text of an artifact, with its own hash in it."""
    return json.dumps(sealed(card.to_json(), _SEAL, "hashes"), indent=indent)


def file_kind(path: str | Path) -> Literal["checkpoint", "onnx", "engine"]:
    """The kind of the file at `path`, by its content. Raises `CardError` for a missing or an unknown file."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        raise CardError.at(path, "no such model file") from None
    except IsADirectoryError:
        raise CardError.at(path, "is a folder, expected a model file (.onnx, .engine or .pt)") from None
    except OSError as error:
        raise CardError.at(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise CardError(f"{str(path)!r}: no name that a file can have: {error}", path=path) from None
    if start == b"PK\x03\x04":  # torch.save writes a zip archive
        return "checkpoint"
    if start[:1] == b"\x08":  # ModelProto begins with its field 1, ir_version
        return "onnx"
    if start[1:] == b"trt":  # ftrt, TensorRT; vtrt, TensorRT-RTX
        return "engine"
    raise CardError.at(
        path, f"neither an ONNX file, nor an engine, nor a PyTorch checkpoint (it starts with {start!r})"
    )


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of the file at `path`. Raises OSError when it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a card holds JSON values only, not {type(value).__name__}")
