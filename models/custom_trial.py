"""What a user's own part does is tried while the configuration is read, on small inputs on the CPU.

Not on torch's `meta` device: ordinary constructors read values (`torch.linspace(...).tolist()`), values have to be
looked at anyway (finite gradients, matched indices), and a small input costs milliseconds. A trial is kept for each
part and its arguments, because configurations are read often.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from isodet.strict import ConfigError
from models.backbones import build_backbone
from models.config.model import BackboneConfig, BoxConfig, LossConfig, ModelConfig, NeckConfig
from models.config.network import is_own
from models.custom.call import own_box_loss, own_class_loss, own_matches
from models.custom.find import ASSIGNER, BACKBONE, BOX_LOSS, CLASS_LOSS, NECK, failure, own_part
from models.layers.fuse import fuse
from models.layers.necks import build_neck
from models.priors import feature_sizes, priors

T = TypeVar("T")
Shape = tuple[int, ...]

INPUT_HW = (96, 160)
"""Sides that differ and become odd at P5, so that a swapped or a rounded-down side shows."""
_BATCH = 2
_OBJECTS = torch.tensor([
    [[10.0, 12.0, 40.0, 52.0], [60.0, 20.0, 150.0, 90.0], [70.0, 70.0, 70.0, 70.0]],  # the last has no area
    [[1.0, 1.0, 6.0, 5.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]],  # the last two are padding
])  # fmt: skip
_VALID = torch.tensor([[True, True, True], [True, False, False]])


def try_own_parts(config: ModelConfig) -> ModelConfig:
    """`config` with the arguments of its own parts complete, defaults too, each part found, checked and tried.

    Raises `ConfigError` naming the key, what was expected and what came.
    """
    backbone, neck, assign, box, loss = config.backbone, config.neck, config.assign, config.box, config.loss
    widths: tuple[int, ...] | None = None
    with torch.random.fork_rng(devices=[]):
        if is_own(backbone.name):
            part = own_part(BACKBONE, backbone.name, backbone.arguments)
            backbone = replace(backbone, arguments=part.arguments())
            widths = _try_backbone(backbone, part.target)
        if is_own(neck.kind):
            part = own_part(NECK, neck.kind, neck.arguments)
            neck = replace(neck, arguments=part.arguments())
            _try_neck(neck, part.target, widths or _channels(backbone))
        if is_own(assign.kind):
            part = own_part(ASSIGNER, assign.kind, assign.arguments)
            assign = replace(assign, arguments=part.arguments())
            _try_assigner(replace(config, assign=assign))
        if is_own(box.loss):
            part = own_part(BOX_LOSS, box.loss, box.arguments)
            box = replace(box, arguments=part.arguments())
            _try_box_loss(box)
        if is_own(loss.cls):
            part = own_part(CLASS_LOSS, loss.cls, loss.arguments)
            loss = replace(loss, arguments=part.arguments())
            _try_class_loss(loss)
    return replace(config, backbone=backbone, neck=neck, assign=assign, box=box, loss=loss)


# ---------------------------------------------------------------------------------------------
# backbone and neck


@functools.lru_cache(maxsize=32)
def _try_backbone(config: BackboneConfig, target: Callable[..., Any]) -> tuple[int, ...]:
    """Its four widths, after it gave such features at strides 4 to 32 in train and eval mode and after `fuse()`."""
    where = f"{BACKBONE.section}.{BACKBONE.key}: {config.name}"
    backbone = build_backbone(config, load_weights=False)
    sizes = feature_sizes(INPUT_HW, (2, 5))
    expected = [(_BATCH, c, *size) for c, size in zip(backbone.channels, sizes, strict=True)]
    images = torch.randn(_BATCH, 3, *INPUT_HW)
    what = "features at strides 4, 8, 16, 32 with the widths of .channels"
    _try_network(where, backbone, images, expected, what)
    return backbone.channels


@functools.lru_cache(maxsize=32)
def _channels(config: BackboneConfig) -> tuple[int, ...]:
    """Widths of the features of a backbone that isodet or timm has."""
    if config.name.startswith("timm:"):
        return build_backbone(config, load_weights=False).channels
    with torch.device("meta"):
        return build_backbone(config, load_weights=False).channels


@functools.lru_cache(maxsize=32)
def _try_neck(config: NeckConfig, target: Callable[..., Any], c_in: tuple[int, ...]) -> None:
    """Each level with `config.channels` channels, rounded up where a side is odd; in every form."""
    where = f"{NECK.section}.{NECK.key}: {config.kind}"
    neck = build_neck(config, c_in)
    features = [torch.randn(_BATCH, c, *size) for c, size in zip(c_in, feature_sizes(INPUT_HW, (2, 5)), strict=False)]
    expected = [(_BATCH, config.channels, *size) for size in feature_sizes(INPUT_HW, config.levels)]
    first, last = config.levels
    what = f"levels {first} to {last} of {config.channels} channels, level l at stride 2**l, sides rounded up"
    _try_network(where, neck, features, expected, what)


def _try_network(where: str, network: nn.Module, given: Any, expected: Sequence[Shape], what: str) -> None:
    """Raise `ConfigError` unless `network` gives the `expected` shapes in each of the forms that it has."""
    forms = (
        ("in train mode", lambda: network.train()),
        ("in eval mode", lambda: network.eval()),
        ("after fuse()", lambda: fuse(nn.Sequential(copy.deepcopy(network)).eval())),
    )
    before: list[Tensor] = []
    for form, make in forms:
        ready = called(f"{where} {form}", make)
        with torch.no_grad():
            outputs = called(f"{where} {form}", ready, copy.deepcopy(given))
        if not isinstance(outputs, (list, tuple)) or not all(isinstance(x, Tensor) for x in outputs):
            raise ConfigError(f"{where} {form}: expected a list of {what}, got {_kind_of(outputs)}")
        shapes = [tuple(x.shape) for x in outputs]
        if shapes != list(expected):
            raise ConfigError(
                f"{where} {form}: expected {what}: for an input of {INPUT_HW[0]}x{INPUT_HW[1]} px the shapes "
                f"{_listed(expected)}; got {_listed(shapes)}"
            )
        for x in outputs:
            if x.dtype != torch.float32 or not x.isfinite().all():
                got = "numbers that are not finite" if x.dtype == torch.float32 else str(x.dtype)
                raise ConfigError(f"{where} {form}: expected finite float32, got {got}")
        if form == "after fuse()":
            pairs = zip(outputs, before, strict=True)
            apart = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-6)) for a, b in pairs)
            if not apart <= 1e-3:
                raise ConfigError(f"{where}: fuse() changes what it computes, by {apart:.1e} of its scale")
        before = list(outputs)


# ---------------------------------------------------------------------------------------------
# assigner and losses


def _try_assigner(config: ModelConfig) -> None:
    """Matches on the configuration's own priors; with no box too, and none for a box without area."""
    where = f"{ASSIGNER.section}.{ASSIGNER.key}: {config.assign.kind}"
    first, last = config.neck.levels
    strides = [2**level for level in range(first, last + 1)]
    grid = priors(feature_sizes(INPUT_HW, (first, last)), strides, config.anchors, input_hw=INPUT_HW)
    called(f"{where} without boxes", own_matches, config.assign, grid, _OBJECTS[:, :0].clone(), _VALID[:, :0].clone())
    matched = called(where, own_matches, config.assign, grid, _OBJECTS.clone(), _VALID.clone())
    taken = {(image, index) for image, row in enumerate(matched.tolist()) for index in row if index >= 0}
    if (0, 2) in taken:
        raise ConfigError(f"{where}: it gave a point to a box without area, which has no centerness and no code")
    if not taken:
        sizes = ", ".join(f"{x2 - x1:g}x{y2 - y1:g}" for x1, y1, x2, y2 in _OBJECTS[_VALID].tolist() if x2 > x1)
        raise ConfigError(f"{where}: it gave no point to any of the boxes of {sizes} px in {INPUT_HW[0]}x{INPUT_HW[1]}")


# Pairs of boxes as they come up in training: the target has an area, the prediction may have lost it to rounding.
_PREDICTED = torch.tensor([
    [10.0, 10.0, 50.0, 40.0], [10.0, 10.0, 50.0, 40.0], [20.0, 20.0, 30.0, 30.0], [100.0, 100.0, 110.0, 110.0],
    [30.0, 30.0, 30.0, 30.0], [-5000.0, -5000.0, 9000.0, 9000.0], [600.0, 600.0, 600.01, 600.01],
])  # fmt: skip
_TARGETS = torch.tensor([
    [12.0, 8.0, 45.0, 44.0], [10.0, 10.0, 50.0, 40.0], [10.0, 10.0, 50.0, 40.0], [10.0, 10.0, 12.0, 13.0],
    [10.0, 10.0, 50.0, 40.0], [10.0, 10.0, 50.0, 40.0], [10.0, 10.0, 50.0, 40.0],
])  # fmt: skip
_PAIRS = ("overlapping boxes", "identical boxes", "a prediction inside", "boxes far apart", "a prediction without area",
          "a huge prediction", "a prediction of 0.01 px")  # fmt: skip


def _try_box_loss(config: BoxConfig) -> None:
    """Finite with finite gradients for every pair, and for no pair at all."""
    where = f"{BOX_LOSS.section}.{BOX_LOSS.key}: {config.loss}"
    none = torch.zeros(0, 4, requires_grad=True)
    called(f"{where} of no boxes", own_box_loss, config, none, torch.zeros(0, 4))
    each, slope = _slopes(where, functools.partial(own_box_loss, config), _PREDICTED, _TARGETS)
    for name, value, row in zip(_PAIRS, each, slope, strict=True):
        _require_finite(where, name, value, row)


def _try_class_loss(config: LossConfig) -> None:
    """Finite with finite gradients for logits from -50 to 50, right and wrong."""
    where = f"{CLASS_LOSS.section}.{CLASS_LOSS.key}: {config.cls}"
    logits = torch.tensor([-50.0, -20.0, -1.0, 0.0, 1.0, 20.0, 50.0]).repeat(2, 2, 1)  # [B, N, C]
    targets = torch.zeros_like(logits)
    targets[:, 1] = 1
    each, slope = _slopes(where, functools.partial(own_class_loss, config), logits, targets)
    for b, n, c in torch.cartesian_prod(*(torch.arange(size) for size in logits.shape)).tolist():
        case = f"a logit of {logits[b, n, c]:g} and the target {targets[b, n, c]:g}"
        _require_finite(where, case, each[b, n, c], slope[b, n, c])


def _slopes(
    where: str, loss: Callable[[Tensor, Tensor], Tensor], given: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Values of a loss, and the gradient of their sum."""
    given = given.clone().requires_grad_()
    each = called(where, loss, given, targets.clone())
    if not each.requires_grad:
        raise ConfigError(f"{where}: it has no gradient, so nothing is learned from it; was it detached?")
    slope = called(f"{where} backwards", torch.autograd.grad, each.sum(), given, allow_unused=True)[0]
    if slope is None:
        raise ConfigError(f"{where}: it has no gradient with respect to the predictions")
    return each.detach(), slope


def _require_finite(where: str, case: str, value: Tensor, slope: Tensor) -> None:
    if not value.isfinite():
        raise ConfigError(f"{where}: for {case} it is {float(value)}; expected a finite number")
    if not slope.isfinite().all():
        raise ConfigError(f"{where}: for {case} its gradient is {slope.tolist()}; expected finite numbers")


# ---------------------------------------------------------------------------------------------
# words


def called(where: str, function: Callable[..., T], *given: Any, **options: Any) -> T:
    """What `function` returns; what somebody's code raises becomes a `ConfigError` that says where in it."""
    try:
        return function(*given, **options)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: {failure(error)}") from error


def _kind_of(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a list of {', '.join(sorted({type(x).__name__ for x in value}))}"
    return type(value).__name__


def _listed(shapes: Sequence[Shape]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "none"
