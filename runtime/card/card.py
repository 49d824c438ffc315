"""The card: what a checkpoint or an artifact says of itself, so that nobody has to retype its settings.

JSON with `"format": 1`: under the key `isodet` of an ONNX file's `metadata_props`, under `card` in a checkpoint, and
beside an engine (`runtime.card.sidecar`). It is read here without torch, onnx or onnxruntime.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isodet.errors import IsodetError
from runtime.card.seal import is_broken, sealed
from runtime.images.image import FILL, FixedSize, Resize, ShortSide

if TYPE_CHECKING:
    from typing_extensions import Self

FORMAT = 1
METADATA_KEY = "isodet"
NMS_KINDS = ("auto", "portable", "loop", "onnx", "plugin", "none")
COLORS = {"uint8-nhwc": "bgr", "float-nchw": "rgb"}
"""Forms of a graph's input and their channel order: uint8 [B, H, W, 3], 0 to 255, or float32 [B, 3, H, W], 0 to 1."""
LETTERBOX = {"align": "top-left", "fill": FILL, "interpolation": "linear"}


LOAD_ANYWAY = "take it as it is with BackendOptions(check_hashes=False), on the command line --skip-hashes"
_SEAL = "card"  # its name among the hashes


class CardError(IsodetError, ValueError):
    """A card that is not there or cannot be used; the message names the file and the key."""

    @classmethod
    def at(cls, path: str | PathLike[str], reason: str, *, key: str | None = None) -> Self:
        """The error of the file `path`, or of `key` of the card in it; the message begins with them."""
        return super().at(path, reason) if key is None else cls(f"{path}: card: {key}: {reason}", key=key, path=path)


@dataclass(frozen=True)
class Card:
    """Everything that is needed to run a model and to know where it comes from. Raises `CardError` for bad values."""

    kind: Literal["checkpoint", "onnx", "engine"]
    classes: tuple[str, ...]
    """Names of labels 0..C-1."""
    input_size_hw: tuple[int, int]
    """Pixels."""
    score_threshold: float
    """Lowest score the graph keeps."""
    nms: Mapping[str, Any]
    """kind, iou, candidates (K) and detections (D); certificate (true) where there is an output `nms_exact`. The kind
    `plugin` needs TensorRT; with `none` the graph gives candidates, which the runtime suppresses."""
    batch: int | Literal["dynamic"] = "dynamic"
    input: str = "uint8-nhwc"
    """Form of the graph's input, see `COLORS`."""
    color: str = "bgr"
    """Channel order that the graph takes."""
    source_size_hw: tuple[int, int] | None = None
    """Pixels of the raw frames that the graph takes, where it holds the letterbox; its boxes are in their pixels."""
    letterbox: Mapping[str, Any] = field(default_factory=lambda: dict(LETTERBOX))
    resize: Mapping[str, Any] = field(default_factory=dict)
    """{} for the letterbox into `input_size_hw`, else the short-side rule of a checkpoint: short, long, multiple,
    floor, fill_bgr (see `runtime.images.image.ShortSide`)."""
    precision: str = "fp32"
    quantization: Mapping[str, Any] = field(default_factory=dict)
    """{} for floats, else of int8: kind (ptq or qat), method of the ranges, images that were observed, float_layers
    (convolutions that stay in float besides the predictions)."""
    threshold: float = 0.3
    """Recommended threshold of an application; applied by the runtime after the graph."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Recommended threshold of single classes, by name; `threshold` is that of the others. Applied where asked for:
    `Detector(..., threshold="card")`."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of packages, by name; git_commit and git_dirty (yes or no) of the folder that the training was started in."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """sha256, by what was hashed. In a file `card` is that of the card itself (`card_text`)."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """The ModelConfig as a mapping."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """The resolved TrainConfig as a mapping; {} when unknown."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    """ISO 8601."""
    verification: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    """{} but for an engine: what it was built by, for and from; the keys are `runtime.card.sidecar.ENGINE_KEYS`."""

    def __post_init__(self) -> None:
        for name in ("classes", "input_size_hw", "source_size_hw"):
            value = getattr(self, name)
            if isinstance(value, list):  # JSON has no tuples
                object.__setattr__(self, name, tuple(value))
        for name in ("score_threshold", "threshold"):
            if _is_int(getattr(self, name)) and 0 <= getattr(self, name) <= 1:
                object.__setattr__(self, name, float(getattr(self, name)))
        self._check("kind", self.kind in ("checkpoint", "onnx", "engine"), "checkpoint, onnx or engine")
        names_ok = isinstance(self.classes, tuple) and all(isinstance(c, str) and c for c in self.classes)
        self._check("classes", names_ok and bool(self.classes), "a list of at least one class name")
        self._check("classes", len(set(self.classes)) == len(self.classes), "class names that differ")
        for name in ("input_size_hw", "source_size_hw"):
            size = getattr(self, name)
            size_ok = isinstance(size, tuple) and len(size) == 2 and all(_is_int(s) and 1 <= s <= 1 << 16 for s in size)
            none_ok = name == "source_size_hw" and size is None
            self._check(name, size_ok or none_ok, "[height, width] in pixels")
        self._check(
            "batch", self.batch == "dynamic" or (_is_int(self.batch) and self.batch >= 1), "dynamic or 1 and more"
        )
        self._check("input", isinstance(self.input, str) and self.input in COLORS, " or ".join(COLORS))
        self._check("color", self.color == COLORS[self.input], f"{COLORS[self.input]}, the order of {self.input}")
        self._check("precision", self.precision in ("fp32", "fp16", "int8"), "fp32, fp16 or int8")
        for name in ("score_threshold", "threshold"):
            value = getattr(self, name)
            self._check(name, isinstance(value, float) and 0 <= value <= 1, "a score from 0 to 1")
        for name in ("letterbox", "nms", "versions", "hashes", "model", "training", "metrics", "verification"):
            self._check(name, isinstance(getattr(self, name), Mapping), "an object with keys")
        for name in ("resize", "quantization"):
            self._check(name, isinstance(getattr(self, name), Mapping), "an object with keys")
        layers = self.quantization.get("float_layers", ())
        layers_ok = isinstance(layers, (list, tuple)) and all(isinstance(layer, str) for layer in layers)
        self._check("quantization", layers_ok, "names of layers as its float_layers")
        known = {"short", "long", "multiple", "floor", "fill_bgr"}
        self._check(
            "resize", not self.resize or set(self.resize) == known, f"{{}} or the keys {', '.join(sorted(known))}"
        )
        numbers = [self.resize.get(key, 1) for key in ("short", "long", "multiple")]
        fill = self.resize.get("fill_bgr", (0, 0, 0))
        good = all(_is_int(n) and 1 <= n <= 1 << 20 for n in numbers) and isinstance(fill, (list, tuple))
        good = good and len(fill) == 3 and all(_is_int(n) and 0 <= n <= 255 for n in fill)
        self._check("resize", good, "short, long and multiple in pixels, and fill_bgr as three numbers from 0 to 255")
        self._check("resize", not self.resize or self.kind == "checkpoint", "{}: a graph has one input size")
        self._check("letterbox", dict(self.letterbox) == LETTERBOX, f"{LETTERBOX}, the one that this version does")
        for key in ("kind", "iou", "candidates", "detections"):
            self._check(f"nms.{key}", key in self.nms, "a value (kind, iou, candidates and detections are needed)")
        self._check("nms.kind", self.nms["kind"] in NMS_KINDS, f"one of {', '.join(NMS_KINDS)}")
        unknown = sorted(set(self.nms) - {"kind", "iou", "candidates", "detections", "certificate"})
        self._check("nms", not unknown, f"keys that this isodet knows, not {unknown}; a newer isodet may read it")
        self._check("nms.certificate", self.nms.get("certificate", False) in (True, False), "true or false")
        iou = self.nms["iou"]  # not a number compares with nothing: NMS would keep everything
        self._check("nms.iou", isinstance(iou, (int, float)) and 0 <= iou <= 1, "a number from 0 to 1")
        for key in ("candidates", "detections"):
            self._check(f"nms.{key}", _is_int(self.nms[key]) and self.nms[key] >= 1, "a whole number of at least 1")
        for name in ("versions", "hashes"):
            texts = getattr(self, name).values()
            self._check(name, all(isinstance(v, str) for v in texts), "an object of texts")
        self._check("created", isinstance(self.created, str), "a time as text")
        is_engine = isinstance(self.engine, Mapping) and bool(self.engine) == (self.kind == "engine")
        self._check("engine", is_engine, "an object with keys for an engine, {} for anything else")
        self._check("thresholds", isinstance(self.thresholds, Mapping), "an object with keys")
        for name, value in self.thresholds.items():
            score = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
            self._check("thresholds", name in self.classes and score, "scores from 0 to 1 by the names of classes")

    def _check(self, key: str, good: bool, expected: str) -> None:
        if not good:
            value = self.nms.get(key[4:]) if key.startswith("nms.") else getattr(self, key)
            raise CardError.of(key, f"expected {expected}, got {value!r}")

    @property
    def frame_hw(self) -> tuple[int, int]:
        """Pixels [H, W] of what the graph takes: raw frames, or letterboxed ones."""
        return self.source_size_hw or self.input_size_hw

    def resize_rule(self) -> Resize:
        """How frames become this model's input. Where the letterbox is in the graph, a frame of another size than
        it takes is letterboxed into that size first.
        """
        if not self.resize:
            return FixedSize(self.frame_hw)
        r = self.resize
        b, g, red = r["fill_bgr"]
        return ShortSide(int(r["short"]), int(r["long"]), int(r["multiple"]), bool(r["floor"]), (b, g, red))

    def to_json(self) -> dict[str, Any]:
        """The card as JSON-ready objects; `Card.from_json` of it gives an equal card."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if not self.thresholds:  # then a runtime that does not know the key reads the card, too
            del plain["thresholds"]
        if self.source_size_hw is None:
            del plain["source_size_hw"]
        if not self.engine:
            del plain["engine"]
        return {"format": FORMAT, **json.loads(json.dumps(plain, default=_plain))}

    @classmethod
    def from_json(cls, content: str | Mapping[str, Any], source: str | Path, check_hashes: bool = True) -> Card:
        """A card from its JSON, as text or parsed. Raises `CardError` naming `source` and the key.

        check_hashes: refuse a card that is another than the one that was written, where it has a hash of itself.
        """
        try:
            content = json.loads(content) if isinstance(content, str) else content
            damaged = check_hashes and isinstance(content, Mapping) and is_broken(content, _SEAL, "hashes")
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits and deep nesting, too
            raise CardError.at(source, f"its card is not valid JSON ({error})") from None
        if not isinstance(content, Mapping) or "format" not in content:
            raise CardError.at(source, "not an isodet card (expected a JSON object with the key 'format')")
        version = content["format"]
        if not _is_int(version) or version < 1:
            raise CardError.at(source, f"expected a whole number of at least 1, got {version!r}", key="format")
        if version > FORMAT:
            raise CardError(
                f"{source}: card: format {version} is newer than the {FORMAT} that this isodet reads; upgrade isodet",
                key="format",
                path=source,
            )
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(content) - set(fields) - {"format"})
        if unknown:
            raise CardError(
                f"{source}: card: unknown key {unknown[0]!r}; valid: {', '.join(fields)}", key=unknown[0], path=source
            )
        for name, f in fields.items():
            if name not in content and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise CardError(f"{source}: card: missing key {name!r}", key=name, path=source)
        values = {key: value for key, value in content.items() if key != "format"}
        if isinstance(values.get("hashes"), Mapping):  # a seal is of a file; who writes the card anew makes another
            values["hashes"] = {key: value for key, value in values["hashes"].items() if key != _SEAL}
        try:
            card = cls(**values)
        except CardError as error:
            raise CardError(f"{source}: card: {error}", key=error.key, path=source) from None
        if damaged:  # after what is wrong with a key, which says more
            raise CardError.at(
                source,
                "its card was edited or damaged after it was written: it does not fit its own hash, "
                f"hashes.{_SEAL}; copy the file again or make it anew; where it was edited on purpose, take that key "
                f"out, or {LOAD_ANYWAY}",
            )
        return card


def card_text(card: Card, indent: int | None = None) -> str:
    """The card as the JSON text of an artifact, with the hash of itself in it."""
    return json.dumps(sealed(card.to_json(), _SEAL, "hashes"), indent=indent)


def file_kind(path: str | Path) -> Literal["checkpoint", "onnx", "engine"]:
    """What the file at `path` is, by its content. Raises `CardError` for a missing or an unknown file."""
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        raise CardError.at(path, "no such model file") from None
    except IsADirectoryError:
        raise CardError.at(path, "is a folder, expected a model file (.onnx, .engine or .pt)") from None
    except OSError as error:
        raise CardError.at(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in it
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


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a card holds JSON values only, not {type(value).__name__}")
