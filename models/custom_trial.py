"""A model with a user's own parts is tried while the configuration is read: a training step on two small pictures.

On the CPU, not on torch's `meta` device: ordinary constructors read values (`torch.linspace(...).tolist()`), and finite
gradients and matched indices can only be seen in values. A trial is kept for each model and its parts, because
configurations are read often.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from isodet.strict import ConfigError
from models.config.model import ModelConfig
from models.config.network import is_own
from models.custom.call import own_matches
from models.custom.find import ASSIGNER, BACKBONE, BOX_LOSS, CLASS_LOSS, NECK, Kind, failure, own_part
from models.detector import Detector
from models.layers.fuse import fuse
from models.loss import detection_loss
from models.priors import feature_sizes

INPUT_HW = (96, 160)
"""Sides that differ and become odd at P5, so that a swapped or a rounded-down side shows."""
_BOXES = torch.tensor([
    [[10.0, 12.0, 40.0, 52.0], [60.0, 20.0, 150.0, 90.0], [70.0, 70.0, 70.0, 70.0]],  # the last has no area
    [[1.0, 1.0, 6.0, 5.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],  # the last two are padding
])  # fmt: skip
_LABELS = torch.tensor([[0, 0, 0], [0, -1, -1]])
_LARGEST_FUSE_ERROR = 1e-3
"""Of the output's scale."""


def try_own_parts(config: ModelConfig) -> ModelConfig:
    """`config` with the arguments of its own parts complete, defaults too, each part found, checked and tried.

    Raises `ConfigError` naming the key, what was expected and what came.
    """
    targets = []
    for kind in (BACKBONE, NECK, ASSIGNER, BOX_LOSS, CLASS_LOSS):
        section_name = kind.section.removeprefix("model.")
        section = getattr(config, section_name)
        if is_own(_name(config, kind)):
            part = own_part(kind, _name(config, kind), section.arguments)
            config = replace(config, **{section_name: replace(section, arguments=part.arguments())})
            targets.append((part.target, repr(part.arguments())))
    if targets:
        _try_step(config, tuple(targets))
    return config


def _name(config: ModelConfig, kind: Kind) -> str:
    return str(getattr(getattr(config, kind.section.removeprefix("model.")), kind.key))


@functools.lru_cache(maxsize=32)
def _try_step(config: ModelConfig, targets: tuple[tuple[Callable[..., Any], str], ...]) -> None:
    """Raise `ConfigError` unless a step of training works, and eval mode and `fuse()` do. `targets`: for the cache."""
    with torch.random.fork_rng(devices=[]):
        detector, images = Detector(config, load_weights=False), torch.randn(2, 3, *INPUT_HW)
        levels = _pyramid(detector.train(), "in train mode", images)[NECK]
        raw, priors = detector.read(levels), detector.priors(INPUT_HW)
        if is_own(config.assign.kind):
            _try_assigner(config, own_matches(config.assign, priors, _BOXES, _LABELS >= 0))
        for objects, factor in ((0, 1), (2, -10), (2, 1)):  # nothing to find; surely wrong; as training begins
            scaled = raw._replace(logits=factor * raw.logits)
            losses = detection_loss(config, scaled, priors, _BOXES[:, :objects], _LABELS[:, :objects])
            for kind, loss, output in ((CLASS_LOSS, losses.cls, raw.logits), (BOX_LOSS, losses.box, raw.boxes)):
                if objects and is_own(_name(config, kind)):
                    _require_gradient(kind.where(_name(config, kind)), loss, output)
        with _saying("model backwards"):
            losses.total.backward()
        if networks := [kind for kind in (BACKBONE, NECK) if is_own(_name(config, kind))]:
            with torch.no_grad():
                plain = _pyramid(detector.eval(), "in eval mode", images)
                with _saying("model after fuse()"):
                    fused_detector = fuse(detector)
                fused = _pyramid(fused_detector, "after fuse()", images)
    for kind in networks:
        pairs = zip(fused[kind], plain[kind], strict=True)
        error = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in pairs)
        if not error <= _LARGEST_FUSE_ERROR:
            raise ConfigError(f"{kind.where(_name(config, kind))}: fuse() changes what it computes, by {error:.1e} of "
                              "its scale")  # fmt: skip


def _pyramid(detector: Detector, form: str, images: Tensor) -> dict[Kind, list[Tensor]]:
    """What backbone and neck make of normalised images [2, 3, H, W], of the shapes that they promise."""
    config, channels = detector.config, detector.backbone.channels
    first, last = config.neck.levels
    features = "features at strides 4, 8, 16, 32 with the widths of .channels"
    levels = f"levels {first} to {last} of {config.neck.channels} channels, level l at stride 2**l, sides rounded up"
    steps: tuple[tuple[Kind, nn.Module, str, Sequence[int]], ...] = (
        (BACKBONE, detector.backbone, features, channels),
        (NECK, detector.neck, levels, [config.neck.channels] * (last - first + 1)),
    )
    outputs: dict[Kind, list[Tensor]] = {}
    value: Any = images
    for (kind, module, promise, widths), ends in zip(steps, ((2, 5), config.neck.levels), strict=True):
        where = f"{kind.where(_name(config, kind))} {form}"
        with _saying(where):
            value = module(copy.copy(value))
        if is_own(_name(config, kind)):
            shapes = [[2, width, *size] for width, size in zip(widths, feature_sizes(INPUT_HW, ends), strict=True)]
            _require_outputs(where, value, promise, shapes)
        outputs[kind] = list(value)
    return outputs


def _require_outputs(where: str, outputs: Any, promise: str, shapes: list[list[int]]) -> None:
    if not isinstance(outputs, (list, tuple)) or not all(isinstance(x, Tensor) for x in outputs):
        raise ConfigError(f"{where}: expected a list of {promise}, got {type(outputs).__name__}")
    if [list(x.shape) for x in outputs] != shapes:
        raise ConfigError(
            f"{where}: expected {promise}: for an input of {INPUT_HW[0]}x{INPUT_HW[1]} px the shapes "
            f"{', '.join(map(str, shapes))}; got {', '.join(str(list(x.shape)) for x in outputs) or 'none'}"
        )
    for x in outputs:
        if x.dtype != torch.float32 or not x.isfinite().all():
            got = "numbers that are not finite" if x.dtype == torch.float32 else str(x.dtype)
            raise ConfigError(f"{where}: expected finite float32, got {got}")


def _try_assigner(config: ModelConfig, matched: Tensor) -> None:
    where = ASSIGNER.where(config.assign.kind)
    if (matched[0] == 2).any():
        raise ConfigError(f"{where}: it gave a point to a box without area, which has no centerness and no code")
    if not (matched >= 0).any():
        raise ConfigError(f"{where}: it gave no point to any of the boxes of 30x40, 90x70, 5x4 px in "
                          f"{INPUT_HW[0]}x{INPUT_HW[1]}")  # fmt: skip


def _require_gradient(where: str, loss: Tensor, output: Tensor) -> None:
    """Raise `ConfigError` unless a `loss` and its gradient with respect to the network's `output` are finite."""
    slope = torch.autograd.grad(loss, output, retain_graph=True, allow_unused=True)[0] if loss.requires_grad else None
    if slope is None:
        raise ConfigError(f"{where}: it has no gradient with respect to the predictions, so nothing is learned from "
                          "it; was it detached?")  # fmt: skip
    if not (loss.isfinite() and slope.isfinite().all()):
        raise ConfigError(f"{where}: for two small pictures it is {loss.item()}, its gradient up to "
                          f"{float(slope.abs().max())}; expected finite numbers")  # fmt: skip


@contextmanager
def _saying(where: str) -> Iterator[None]:
    """What somebody's code raises becomes a `ConfigError` that says where in it."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: {failure(error)}") from error
