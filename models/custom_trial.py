"""Trying a model with custom parts while its configuration is read: one training step on two small pictures.

It runs on the CPU and not on torch's `meta` device: ordinary constructors read values
(`torch.linspace(...).tolist()`), and only values show whether gradients are finite and indices valid. The result is
cached for each model and its parts, because configurations are read often.
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
from models.config.network import is_custom
from models.custom.call import custom_box_loss, custom_class_loss, custom_matches
from models.custom.find import ASSIGNER, BACKBONE, BOX_LOSS, CLASS_LOSS, NECK, Kind, custom_part, failure
from models.detector import Detector
from models.layers.fuse import fuse
from models.loss import detection_loss
from models.priors import feature_sizes

INPUT_HW = (96, 160)
"""The sides differ and become odd at P5, so that swapped sides and sides rounded down are noticed."""
_BOXES = torch.tensor(
    [
        [[10.0, 12.0, 40.0, 52.0], [60.0, 20.0, 150.0, 90.0], [70.0, 70.0, 70.0, 70.0]],  # the last has no area
        [[1.0, 1.0, 6.0, 5.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],  # the last two are padding
    ]
)
_LABELS = torch.tensor([[0, 0, 0], [0, -1, -1]])
_PAIRS = {
    "overlapping boxes": ((10.0, 10.0, 50.0, 40.0), (12.0, 8.0, 45.0, 44.0)),
    "identical boxes": ((10.0, 10.0, 50.0, 40.0), (10.0, 10.0, 50.0, 40.0)),
    "a prediction inside": ((20.0, 20.0, 30.0, 30.0), (10.0, 10.0, 50.0, 40.0)),
    "boxes far apart": ((100.0, 100.0, 110.0, 110.0), (10.0, 10.0, 12.0, 13.0)),
    "a prediction without area": ((30.0, 30.0, 30.0, 30.0), (10.0, 10.0, 50.0, 40.0)),
    "a huge prediction": ((-5000.0, -5000.0, 9000.0, 9000.0), (10.0, 10.0, 50.0, 40.0)),
    "a prediction of 0.01 px": ((600.0, 600.0, 600.01, 600.01), (10.0, 10.0, 50.0, 40.0)),
}
"""Pairs of a predicted and a target box. A target has an area; a prediction may have none after rounding."""
_LOGITS = (-50.0, -20.0, -1.0, 0.0, 1.0, 20.0, 50.0)
_LARGEST_FUSE_ERROR = 1e-3
"""As a share of the output's scale."""


def try_custom_parts(config: ModelConfig) -> ModelConfig:
    """Find, check and try the custom parts of `config`; gives `config` with their arguments complete, including
    defaults.

    Raises `ConfigError` naming the key, what was expected and what it was instead.
    """
    targets = []
    for kind in (BACKBONE, NECK, ASSIGNER, BOX_LOSS, CLASS_LOSS):
        section_name = kind.section.removeprefix("model.")
        section = getattr(config, section_name)
        if is_custom(_name(config, kind)):
            part = custom_part(kind, _name(config, kind), section.arguments)
            config = replace(config, **{section_name: replace(section, arguments=part.arguments())})
            targets.append((part.target, repr(part.arguments())))
    if targets:
        _try_step(config, tuple(targets))
    return config


def _name(config: ModelConfig, kind: Kind) -> str:
    return str(getattr(getattr(config, kind.section.removeprefix("model.")), kind.key))


@functools.lru_cache(maxsize=32)
def _try_step(config: ModelConfig, targets: tuple[tuple[Callable[..., Any], str], ...]) -> None:
    """Raise `ConfigError` unless a training step, eval mode and `fuse()` work. targets: a part of the cache's key."""
    with torch.random.fork_rng(devices=[]):
        detector, images = Detector(config, load_weights=False), torch.randn(2, 3, *INPUT_HW)
        levels = _pyramid(detector.train(), "in train mode", images)[NECK]
        raw, priors = detector.read(levels), detector.priors(INPUT_HW)
        if is_custom(config.assign.kind):
            _try_assigner(config, custom_matches(config.assign, priors, _BOXES, _LABELS >= 0))
        for objects in (0, 2):
            losses = detection_loss(config, raw, priors, _BOXES[:, :objects], _LABELS[:, :objects])
        with _saying("model backwards"):
            losses.total.backward()
        _try_losses(config)
        if networks := [kind for kind in (BACKBONE, NECK) if is_custom(_name(config, kind))]:
            with torch.no_grad():
                plain = _pyramid(detector.eval(), "in eval mode", images)
                with _saying("model after fuse()"):
                    fused_detector = fuse(detector)
                fused = _pyramid(fused_detector, "after fuse()", images)
    for kind in networks:
        pairs = zip(fused[kind], plain[kind], strict=True)
        error = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in pairs)
        if not error <= _LARGEST_FUSE_ERROR:
            raise ConfigError(
                f"{kind.where(_name(config, kind))}: fuse() changes what it computes, by {error:.1e} of its scale"
            )


def _pyramid(detector: Detector, form: str, images: Tensor) -> dict[Kind, list[Tensor]]:
    """The outputs of backbone and neck for normalized images [2, 3, H, W], after a check of their shapes."""
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
        if is_custom(_name(config, kind)):
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
        raise ConfigError(
            f"{where}: it gave no point to any of the boxes of 30x40, 90x70, 5x4 px in {INPUT_HW[0]}x{INPUT_HW[1]}"
        )


def _try_losses(config: ModelConfig) -> None:
    """Try custom losses on pairs of boxes and on logits that occur in training, but perhaps not in a single step."""
    if is_custom(config.box.loss):
        predicted, targets = torch.tensor(list(_PAIRS.values())).unbind(dim=1)
        where = BOX_LOSS.where(config.box.loss)
        _require_finite(where, functools.partial(custom_box_loss, config.box), predicted, targets, list(_PAIRS))
    if is_custom(config.loss.cls):
        logits = torch.tensor(_LOGITS).repeat(2, 2, 1)  # [B, N, C]
        targets = torch.zeros_like(logits)
        targets[:, 1] = 1
        pairs = zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True)
        cases = [f"a logit of {logit:g} and the target {target:g}" for logit, target in pairs]
        where = CLASS_LOSS.where(config.loss.cls)
        _require_finite(where, functools.partial(custom_class_loss, config.loss), logits, targets, cases)


def _require_finite(
    where: str, loss: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, targets: Tensor, cases: list[str]
) -> None:
    """Raise `ConfigError` unless each value of a loss, one for each of the `cases`, and its gradient are finite."""
    each = loss(predicted.requires_grad_(), targets)
    with _saying(f"{where} backwards"):
        slopes = torch.autograd.grad(each.sum(), predicted, allow_unused=True)[0] if each.requires_grad else None
    if slopes is None:
        raise ConfigError(
            f"{where}: it has no gradient with respect to the predictions, so nothing is learned from "
            "it; was it detached?"
        )
    for case, value, slope in zip(cases, each.flatten(), slopes.reshape(len(cases), -1), strict=True):
        if not value.isfinite():
            raise ConfigError(f"{where}: for {case} it is {float(value)}; expected a finite number")
        if not slope.isfinite().all():
            raise ConfigError(f"{where}: for {case} its gradient is {slope.tolist()}; expected finite numbers")


@contextmanager
def _saying(where: str) -> Iterator[None]:
    """Turn errors of custom code into a `ConfigError` that says where they were raised."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: {failure(error)}") from error
