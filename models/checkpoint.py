"""Checkpoints: plain tensors and a card, which load without running pickled code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from isodet.errors import IsodetError
from isodet.strict import ConfigError
from models.config.model import custom_parts_of, model_config
from models.custom.find import CustomPartMissing, require_environment
from models.deploy.graph import Deploy
from models.detector import Detector
from models.quant import QuantDetector, QuantError, quantize
from models.tensor_files import TensorFileError, first_mismatches, load_tensors, not_dense

FORMAT = 1


class CheckpointError(IsodetError, ValueError):
    """A file that is not a usable isodet checkpoint; the message names the file and the reason."""


def save_checkpoint(
    path: str | Path, model: dict[str, torch.Tensor], card: dict[str, Any], resume: dict[str, Any] | None = None
) -> None:
    """Write a checkpoint atomically: the weights to deploy, the card, and what `trainer fit --resume` needs.

    A process killed at any moment leaves either the old file or the new one. Raises `CheckpointError` if the new file
    cannot be written, as on a full disk; the old file is then unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "card": card, "model": model, "resume": resume}
    temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.partial")  # within the length limit of names
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer turns an OSError into a RuntimeError
        raise CheckpointError(_not_written(path, temporary, model, error), path=path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _not_written(path: Path, partial: Path, model: dict[str, torch.Tensor], error: Exception) -> str:
    """The message for a failed write: the reason, the sizes, and the state of the old file."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    reason = (cause.strerror if isinstance(cause, OSError) else None) or str(error).split("\n")[0]
    written = partial.stat().st_size if partial.exists() else 0
    weights = sum(tensor.nbytes for tensor in model.values())
    free = shutil.disk_usage(path.parent).free
    kept = "the file that was there before is unchanged" if path.exists() else "nothing is left of it"
    return (
        f"{path}: cannot write this checkpoint: {reason}, after {written / 2**20:.1f} MiB (its weights alone are "
        f"{weights / 2**20:.1f} MiB; {free / 2**20:.1f} MiB were free then); make room there; {kept}"
    )


def read_checkpoint(path: str | Path, mapped: bool = False, check_hashes: bool = True) -> dict[str, Any]:
    """The content of a checkpoint: `format`, `card`, `model`, `resume`. Raises `CheckpointError`.

    mapped, check_hashes: as in `load_tensors`; `mapped` is for callers that need the card and not the weights.
    """
    path = Path(path)
    try:
        content = load_tensors(path, mapped, check_hashes)
    except TensorFileError as error:
        raise CheckpointError.at(path, f"cannot read this checkpoint: {error}") from error
    if not isinstance(content, dict) or not {"format", "card", "model"} <= content.keys():
        keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError.at(path, f"not an isodet checkpoint (it holds: {keys}); expected one from `trainer fit`")
    if not isinstance(content["card"], dict):
        raise CheckpointError.at(path, f"card: expected keys and values, got {type(content['card']).__name__}")
    if not isinstance(content["format"], int) or content["format"] != FORMAT:
        raise CheckpointError.at(
            path, f"checkpoint format {content['format']!r}, this isodet reads {FORMAT}; use the isodet that wrote it"
        )
    _require_weights(path, content["model"])
    return {"resume": None, **content}


def _require_weights(path: Path, model: Any) -> None:
    if not isinstance(model, dict):
        raise CheckpointError.at(path, f"expected tensors by name, got {type(model).__name__}", key="model")
    for name, tensor in model.items():
        if not isinstance(name, str):
            raise CheckpointError.at(
                path, f"{name!r}: expected text as the name of a tensor, got {type(name).__name__}", key="model"
            )
        if other := not_dense(tensor):
            raise CheckpointError.at(path, f"{name!r}: expected a dense tensor, got {other}", key="model")


def _require_finite(path: str | Path, model: Mapping[str, torch.Tensor]) -> None:
    broken = [name for name, tensor in model.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        reason = f"{len(broken)} of its tensors hold NaN or infinite numbers, the first: {broken[0]}"
        raise CheckpointError.at(path, f"{reason}; such a detector finds nothing: take an earlier checkpoint")


def build_detector(path: str | Path, check_hashes: bool = True) -> tuple[Detector, dict[str, Any]]:
    """The detector of a checkpoint in its training form, in eval mode, and its card.

    It is a `QuantDetector` if the card names a quantization. Raises `CheckpointError`.
    """
    content = read_checkpoint(path, check_hashes=check_hashes)
    try:
        config = model_config(content["card"].get("model"), "card.model")
        require_environment(name for _, name in custom_parts_of(config, network_only=True))
        detector = Detector(config, load_weights=False)
    except CustomPartMissing as error:
        training = content["card"].get("training")
        folders = training.get("code") if isinstance(training, dict) else None
        raise CheckpointError.at(
            path,
            f"{error}. This detector's network has code of its maker's own, which a checkpoint names but does not "
            f"bring; install it, or put its folder on PYTHONPATH (its training looked in {folders or 'no folder'}). "
            "An ONNX file exported from the checkpoint needs none of it",
        ) from error
    except (ConfigError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}", key=getattr(error, "key", None), path=path) from error
    if quantization := content["card"].get("quantization"):
        detector = _quantized(path, detector, quantization)
    expected, weights = detector.state_dict(), content["model"]
    if mismatches := first_mismatches(weights, expected):
        raise CheckpointError.at(path, f"its weights do not fit its own card: {mismatches}")
    for name, tensor in weights.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise CheckpointError.at(path, f"{name}: expected {expected[name].dtype}, got {tensor.dtype}", key="model")
    _require_finite(path, weights)
    detector.load_state_dict(weights)
    return detector.eval(), content["card"]


def _quantized(path: str | Path, detector: Detector, quantization: Any) -> QuantDetector:
    """The 8-bit form of `detector` that a card's `quantization` describes. Raises `CheckpointError`."""
    key = "card.quantization"
    if not isinstance(quantization, dict):
        raise CheckpointError.at(path, f"expected an object with keys, got {type(quantization).__name__}", key=key)
    layers = quantization.get("float_layers", ())
    if not isinstance(layers, (list, tuple)) or not all(isinstance(layer, str) for layer in layers):
        reason = f"expected names of layers, got {str(layers)[:80]}"
        raise CheckpointError.at(path, reason, key=f"{key}.float_layers")
    try:
        return quantize(detector.eval(), layers)
    except QuantError as error:
        raise CheckpointError.at(path, str(error), key=key) from error


def start_from(detector: Detector, path: str | Path) -> str:
    """Give `detector` the weights of a checkpoint, to continue training; returns a sentence about what was loaded.

    Prediction layers that do not fit keep the values that they have, and so does that of the classes if the class list
    differs. Everything else must fit, or `CheckpointError` is raised and nothing is loaded.
    """
    content = read_checkpoint(path)
    if content["card"].get("quantization"):
        raise CheckpointError.at(path, "it is 8-bit already; start from the float checkpoint that it came from")
    weights, current = dict(content["model"]), detector.state_dict()
    classes, own_classes = content["card"].get("classes"), list(detector.config.classes)
    fresh = {}
    for layer in ("head.cls", "head.box", "head.quality"):
        loaded, kept = ({k: v.shape for k, v in s.items() if k.startswith(f"{layer}.")} for s in (weights, current))
        if layer == "head.cls" and classes != own_classes:
            fresh[layer] = f"{len(classes or ())} classes there, {len(own_classes)} here"
            if classes is not None and len(classes) == len(own_classes):
                fresh[layer] = "classes of other names or order"
        elif loaded != kept:
            fresh[layer] = "of another shape"
        if layer in fresh:
            weights = {key: value for key, value in weights.items() if key not in loaded}
            weights |= {key: current[key] for key in kept}
    if mismatches := first_mismatches(weights, current):
        raise CheckpointError.at(path, f"its weights do not fit this model beyond the prediction layers: {mismatches}")
    _require_finite(path, weights)
    detector.load_state_dict(weights)
    anew = "; ".join(f"{layer} starts anew ({why})" for layer, why in fresh.items())
    count = sum(not key.startswith(tuple(f"{layer}." for layer in fresh)) for key in current)
    return f"weights from {path}: {count} of {len(current)} tensors; {anew or 'the classes are the same'}"


def load_detector(path: str | Path, check_hashes: bool = True) -> tuple[Deploy, dict[str, Any]]:
    """The deployable form of a checkpoint (fused, eval mode, on the CPU) and its card. Raises `CheckpointError`."""
    detector, card = build_detector(path, check_hashes)
    return Deploy(detector).eval(), card
