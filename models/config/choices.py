"""The parts that a configuration can name: a table for each choice, a line for each part.

A line says where a part is, as `package.module:name`, which keys of its section it reads and what it fits. The
configuration asks these tables which names there are and what goes together; who uses a part asks them for it. So a
new part is its own code and one line here. Reading a configuration needs no torch: a part is imported by `load`.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias


@dataclass(frozen=True)
class Part:
    """A function or a class of isodet. A user's own part has the needs that a line without any has.

    where: `package.module:name`.
    reads: the keys of its section of the configuration that it takes, as keyword arguments of the same names; a key
        that is null is left to the argument's default.
    """

    where: str
    reads: tuple[str, ...] = ()

    def load(self) -> Callable[..., Any]:
        """The function or class, imported when it is first asked for."""
        module, _, name = self.where.partition(":")
        part: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return part

    def configured(self, section: Any) -> Callable[..., Any]:
        """`load`, with the keys that it reads taken from its `section`, a dataclass of the configuration."""
        values = {key: getattr(section, key) for key in self.reads}
        return functools.partial(self.load(), **{key: value for key, value in values.items() if value is not None})


@dataclass(frozen=True)
class Limit:
    """What one part asks of the value of a `key`, beyond what every part does: `fits(value)`, in words `expected`."""

    key: str
    fits: Callable[[Any], bool]
    expected: str


@dataclass(frozen=True)
class BoxLossPart(Part):
    """(predicted [P, 4], target [P, 4]) -> losses [P] of decoded boxes xyxy, or [P, 4] of delta codes.

    of: what it compares. Codes are those of `box.code: delta`.
    """

    of: Literal["boxes", "codes"] = "boxes"


@dataclass(frozen=True)
class ClassLossPart(Part):
    """(logits [B, N, C], targets [B, N, C] in 0..1) -> losses [B, N, C], which are divided by the positives.

    of_batch: it weighs each element by all of the batch, and its sum is the loss. It takes two more arguments: which
        elements count, bool [B, N, 1], and `total`, which sums over processes.
    teaches_iou: the target of an object's class is the IoU of the predicted box, so there is no quality branch.
    takes_smoothing: targets of objects may be moved towards 1/2 (`loss.smoothing`).
    """

    of_batch: bool = False
    teaches_iou: bool = False
    takes_smoothing: bool = False
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True)
class AssignerPart(Part):
    """(priors of N, boxes [B, G, 4], valid [B, G], available=[B, N] or None) -> matches [B, N]; see `models.assigners`.

    of_points: it asks where a prior's center is and not how large the prior is: one anchor per cell.
    counts_over: positives are counted as at least 1 in each image, as anchor heads do, or in the batch, as FCOS does.
    grown, shrunk: the keys that allow more positives when they are larger, or smaller (`auxiliary.coarse`).
    """

    of_points: bool = False
    counts_over: Literal["image", "batch"] = "image"
    grown: tuple[str, ...] = ()
    shrunk: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeckPart(Part):
    """A class of modules: (NeckConfig, widths of the backbone's features) -> features to levels.

    repeats: `neck.depth` may be above 1.
    one_level: it works with a single level, because it exchanges nothing between levels.
    """

    repeats: bool = False
    one_level: bool = False


@dataclass(frozen=True)
class BackbonePart(Part):
    """A class of `models.backbones.Backbone`: (BackboneConfig) -> images to features.

    imagenet: torchvision has ImageNet weights under its name.
    bottlenecks: `style` applies.
    folds: its branches fold into one convolution by their BatchNorms, so it has neither GroupNorms nor dilation.
    """

    imagenet: bool = True
    bottlenecks: bool = False
    folds: bool = False


_BOXES, _CLASSES = "models.losses.boxes", "models.losses.classification"
BOX_LOSSES: dict[str, BoxLossPart] = {
    "giou": BoxLossPart(f"{_BOXES}:giou_loss"),
    "diou": BoxLossPart(f"{_BOXES}:diou_loss"),
    "ciou": BoxLossPart(f"{_BOXES}:ciou_loss"),
    "eiou": BoxLossPart(f"{_BOXES}:eiou_loss"),
    "alpha_diou": BoxLossPart(f"{_BOXES}:alpha_diou_loss"),
    "iou_log": BoxLossPart(f"{_BOXES}:iou_log_loss"),
    "iou_linear": BoxLossPart(f"{_BOXES}:iou_linear_loss"),
    "l1": BoxLossPart(f"{_BOXES}:l1_loss", of="codes"),
    "smooth_l1": BoxLossPart(f"{_BOXES}:smooth_l1_loss", ("beta",), of="codes"),
    "balanced_l1": BoxLossPart(f"{_BOXES}:balanced_l1_loss", ("beta",), of="codes"),
}

_ALPHA_BELOW_1 = Limit("alpha", lambda a: a is None or a < 1, "null or a number above 0 and below 1")
_GAMMA_0_OR_1 = Limit("gamma", lambda g: g == 0 or g >= 1, "0 or 1 to 10, because qfl has an endless slope below 1")
CLASS_LOSSES: dict[str, ClassLossPart] = {
    "focal": ClassLossPart(f"{_CLASSES}:focal_loss", ("alpha", "gamma"), limits=(_ALPHA_BELOW_1,)),
    "qfl": ClassLossPart(f"{_CLASSES}:quality_focal_loss", ("gamma",), teaches_iou=True, limits=(_GAMMA_0_OR_1,)),
    "vfl": ClassLossPart(f"{_CLASSES}:varifocal_loss", ("alpha", "gamma"), teaches_iou=True),
    "ghm": ClassLossPart(f"{_CLASSES}:ghm_loss", ("bins",), of_batch=True),
    "bce": ClassLossPart(f"{_CLASSES}:bce_loss", takes_smoothing=True),
}

ASSIGNERS: dict[str, AssignerPart] = {
    "atss": AssignerPart("models.assigners.atss:assign_atss", ("topk",), grown=("topk",)),
    "iou": AssignerPart(
        "models.assigners.iou:assign_iou", ("pos_iou", "neg_iou", "rescue"), shrunk=("pos_iou", "neg_iou")
    ),
    "center": AssignerPart(
        "models.assigners.center:assign_center", ("radius", "range_factor", "range_ends"),
        of_points=True, counts_over="batch", grown=("radius",),
    ),
    "topk": AssignerPart("models.assigners.topk:assign_topk", ("topk",), of_points=True, grown=("topk",)),
}  # fmt: skip

NECKS: dict[str, NeckPart] = {
    "fpn": NeckPart("models.layers.necks:FPN", one_level=True),
    "pafpn": NeckPart("models.layers.necks:PAFPN"),
    "bifpn": NeckPart("models.layers.necks:BiFPN", repeats=True),
    "reppan": NeckPart("models.layers.necks:RepPAN", repeats=True),
}

_RESNET, _MOBILENET = "models.backbones.resnet:ResNet", "models.backbones.mobilenet:MobileNet"
BACKBONES: dict[str, BackbonePart] = {
    "resnet18": BackbonePart(_RESNET),
    "resnet34": BackbonePart(_RESNET),
    "resnet50": BackbonePart(_RESNET, bottlenecks=True),
    "resnet101": BackbonePart(_RESNET, bottlenecks=True),
    "resnext50_32x4d": BackbonePart(_RESNET, bottlenecks=True),
    "resnext101_32x4d": BackbonePart(_RESNET, bottlenecks=True, imagenet=False),
    "resnext101_32x8d": BackbonePart(_RESNET, bottlenecks=True),
    "resnext101_64x4d": BackbonePart(_RESNET, bottlenecks=True),
    "mobilenet_v2": BackbonePart(_MOBILENET),
    "mobilenet_v3_large": BackbonePart(_MOBILENET),
    **{
        f"{family}_{size}": BackbonePart("models.backbones.repvgg:RepVGG", imagenet=False, folds=True)
        for family in ("repvgg", "qarepvgg") for size in ("a0", "a1", "a2", "b0", "b1")
    },
}  # fmt: skip


if TYPE_CHECKING:  # to a type checker a name is text, because it does not read tables
    BoxLossName: TypeAlias = str
    ClassLossName: TypeAlias = str
    AssignerName: TypeAlias = str
    NeckName: TypeAlias = str
else:  # to whoever reads type hints, as the configuration does, it is one of the table
    BoxLossName = Literal[tuple(BOX_LOSSES)]
    ClassLossName = Literal[tuple(CLASS_LOSSES)]
    AssignerName = Literal[tuple(ASSIGNERS)]
    NeckName = Literal[tuple(NECKS)]


def either(names: Iterable[str]) -> str:
    """`a, b or c`, for a message that says which parts to use instead."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
