"""Files of ranges: the ranges of 8-bit activations that calibration found, readable and usable without pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from export.card_paths import private_folders, without_paths
from export.options import CalibrationError
from isodet.strict import ConfigError, converted
from models.quant import METHODS, Ranges
from runtime.card.seal import is_broken, sealed
from runtime.files.write import write_text

FORMAT = 1
_KIND = "isodet int8 ranges"
_SEAL = "sha256"  # key of the hash of all other keys


@dataclass(frozen=True)
class RangesFile:
    """The ranges of one network.

    checkpoint: SHA-256 of its checkpoint. images: how many pictures were observed. source: the pictures' data set.
    created: time in ISO 8601.
    """

    checkpoint: str
    images: int
    source: str
    tensors: Mapping[str, Ranges]
    created: str = ""


def ranges_path(artifact: Path) -> Path:
    """The file of ranges beside an artifact."""
    return artifact.with_suffix(".ranges.json")


def write_ranges(path: Path, ranges: RangesFile) -> Path:
    """Write `ranges` as JSON, atomically, with a line for each tensor."""
    created = ranges.created or datetime.now(timezone.utc).isoformat(timespec="seconds")
    head: dict[str, Any] = {
        "kind": _KIND, "format": FORMAT, "checkpoint_sha256": ranges.checkpoint, "images": ranges.images,
        "source": without_paths(ranges.source, private_folders()), "created": created,
    }  # fmt: skip
    tensors = {name: {"low": r.low, "high": r.high, **r.magnitudes} for name, r in ranges.tensors.items()}
    head[_SEAL] = sealed({**head, "tensors": tensors}, _SEAL)[_SEAL]
    lines = [f"    {json.dumps(name)}: {json.dumps(numbers)}" for name, numbers in tensors.items()]
    body = json.dumps(head, indent=2)[:-2] + ',\n  "tensors": {\n' + ",\n".join(lines) + "\n  }\n}\n"
    return write_text(path, body)


def read_ranges(path: Path, checkpoint: Path, sha256: str) -> RangesFile:
    """The content of the file at `path`. Raises `CalibrationError` if it is not a complete file of ranges, or belongs
    to another checkpoint than the one with the hash `sha256`.
    """
    advice = "; leave --ranges out to observe them anew"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        damaged = isinstance(content, dict) and is_broken(content, _SEAL)
    except FileNotFoundError:
        raise CalibrationError.at(path, f"no such file of ranges{advice}") from None
    except OSError as error:
        raise CalibrationError.at(path, f"cannot read this file of ranges: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # malformed JSON, or bytes that are not UTF-8
        raise CalibrationError.at(path, f"not a whole file of ranges: {error}{advice}") from None
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        raise CalibrationError.at(path, "not a file of ranges; expected one that `exporter onnx --int8` wrote")
    if content.get("format") != FORMAT:
        raise CalibrationError.at(path, f"format {content.get('format')!r}, this isodet reads {FORMAT}{advice}")
    if content.get("checkpoint_sha256") != sha256:
        raise CalibrationError.at(
            path,
            "these are ranges of another network: of the checkpoint with the hash "
            f"{str(content.get('checkpoint_sha256'))[:12]}, and {checkpoint} has {sha256[:12]}{advice}",
        )
    tensors = content.get("tensors")
    if not isinstance(tensors, dict) or not tensors:
        raise CalibrationError.at(path, f"expected an object with a range for each tensor{advice}", key="tensors")
    images = content.get("images")
    if not isinstance(images, int) or images < 1:
        raise CalibrationError.at(path, f"expected how many were observed, got {images!r}{advice}", key="images")
    ranges = {name: _ranges(path, name, values) for name, values in tensors.items()}
    if damaged:  # last, because an error about a key says more
        raise CalibrationError.at(
            path,
            "edited or damaged after it was written: it does not fit its own hash; copy it again, or take the "
            f"line {_SEAL!r} out of a file that was edited on purpose{advice}",
        )
    return RangesFile(sha256, images, str(content.get("source", "")), ranges, str(content.get("created", "")))


def _ranges(path: Path, name: str, values: Any) -> Ranges:
    hints = dict.fromkeys(("low", "high", *METHODS), float)
    try:
        numbers = converted(hints, hints.keys(), values, name)
    except ConfigError as error:
        raise CalibrationError(f"{path}: {error}", key=error.key, path=path) from None
    low, high, *magnitudes = numbers.values()
    if low > 0 or high < 0 or min(magnitudes) < 0:
        raise CalibrationError.at(path, "expected low <= 0 <= high and magnitudes of 0 or more", key=name)
    return Ranges(low, high, dict(zip(METHODS, magnitudes, strict=True)))
