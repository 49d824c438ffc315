"""How a box is written relative to a prior: `delta` from an anchor, `ltrb` from a point, `dfl` by distributions.

For the first two, `decode(encode(box)) == box` wherever the box can be expressed. A distribution is not encoded: many
have the same mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from isodet.shapes import assert_shape
from models.config.model import BoxConfig
from models.priors import Priors

_MAX_LOG_RATIO = math.log(1000 / 16)  # a decoded side is at most 62.5 anchor sides, and exp stays finite
_MAX_LOG_PIXELS = math.log(1e6)  # for distances in pixels, beyond any picture


def encode_delta(anchors_xyxy: Tensor, boxes_xyxy: Tensor, stds: Sequence[float]) -> Tensor:
    """Codes [..., 4] of boxes relative to anchors: (dx, dy) in anchor sides, (dw, dh) as logs, over `stds`.

    R-CNN (Girshick et al., 2014), appendix C. Boxes and anchors must have positive sides.
    """
    assert_shape("anchors_xyxy", anchors_xyxy, ..., 4)
    assert_shape("boxes_xyxy", boxes_xyxy, ..., 4)
    anchor_wh = anchors_xyxy[..., 2:] - anchors_xyxy[..., :2]
    box_wh = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    shift = (boxes_xyxy[..., :2] + boxes_xyxy[..., 2:] - anchors_xyxy[..., :2] - anchors_xyxy[..., 2:]) / 2 / anchor_wh
    return torch.cat([shift, (box_wh / anchor_wh).log()], dim=-1) / boxes_xyxy.new_tensor(stds)


def decode_delta(
    anchors_xyxy: Tensor, codes: Tensor, stds: Sequence[float] | Tensor, clamp: Literal["both", "upper"] = "both"
) -> Tensor:
    """Boxes [..., 4] xyxy of codes [..., 4].

    stds: four numbers, or a tensor [4] on the device of `codes`, which saves a copy from the host. clamp: whether log
    sizes are limited to +-ln(1000 / 16) on both ends, or on the upper one.
    """
    assert_shape("anchors_xyxy", anchors_xyxy, ..., 4)
    assert_shape("codes", codes, ..., 4)
    codes = codes * (stds if isinstance(stds, Tensor) else codes.new_tensor(stds))
    anchor_wh = anchors_xyxy[..., 2:] - anchors_xyxy[..., :2]
    center = (anchors_xyxy[..., :2] + anchors_xyxy[..., 2:]) / 2 + codes[..., :2] * anchor_wh
    lowest = -_MAX_LOG_RATIO if clamp == "both" else None
    half = anchor_wh * codes[..., 2:].clamp(lowest, _MAX_LOG_RATIO).exp() / 2
    return torch.cat([center - half, center + half], dim=-1)


def encode_ltrb(points_xy: Tensor, strides: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Distances [..., 4] from points [..., 2] to the left, top, right, bottom sides, in strides [...].

    The loss of `dfl` needs them. For `ltrb` training decodes only, and golden tests compare the convention with other
    projects' codes.
    """
    assert_shape("points_xy", points_xy, *strides.shape, 2)
    assert_shape("boxes_xyxy", boxes_xyxy, ..., 4)
    near = points_xy - boxes_xyxy[..., :2]
    far = boxes_xyxy[..., 2:] - points_xy
    return torch.cat([near, far], dim=-1) / strides[..., None]


def decode_ltrb(points_xy: Tensor, strides: Tensor, dist_ltrb: Tensor) -> Tensor:
    """Boxes [..., 4] xyxy of distances [..., 4] in strides."""
    assert_shape("points_xy", points_xy, *strides.shape, 2)
    assert_shape("dist_ltrb", dist_ltrb, ..., 4)
    return _around(points_xy, dist_ltrb * strides[..., None])


def mean_distances(codes: Tensor, bins: int) -> Tensor:
    """Distances [..., 4] in strides of the codes [..., 4 * bins] of `dfl`, left, top, right, bottom.

    Each side has the logits of the distances 0, 1, ..., bins - 1, and its distance is their mean (Li et al.,
    "Generalized Focal Loss", NeurIPS 2020, equation 5).
    """
    probabilities = codes.unflatten(-1, (4, bins)).softmax(dim=-1)
    return (probabilities * torch.arange(bins, device=codes.device, dtype=codes.dtype)).sum(dim=-1)


def _around(points_xy: Tensor, dist_px: Tensor) -> Tensor:
    return torch.cat([points_xy - dist_px[..., :2], points_xy + dist_px[..., 2:]], dim=-1)


def decode(config: BoxConfig, priors: Priors, codes: Tensor, stds: Tensor | None = None) -> Tensor:
    """Boxes [..., N, 4] xyxy pixels of the network's codes [..., N, `config.channels`], as `config.code` reads them.

    ltrb codes are logs of distances by default: an exponential is always positive, and unlike a ReLU it has a gradient
    everywhere. stds: `config.stds` as a tensor [4] on the device of `codes`; None copies them there.
    """
    assert_shape("codes", codes, ..., *priors.strides.shape, config.channels)
    if config.code == "delta":
        return decode_delta(priors.boxes_xyxy, codes, config.stds if stds is None else stds, config.clamp)
    if config.code == "dfl":
        return decode_ltrb(priors.points, priors.strides, mean_distances(codes, config.bins))
    if config.activation == "relu":
        dist = codes.relu()
    else:
        dist = codes.clamp(max=_MAX_LOG_PIXELS if config.unit == "pixel" else _MAX_LOG_RATIO).exp()
    if config.unit == "pixel":
        return _around(priors.points, dist)
    if config.unit == "anchor":
        wh = priors.boxes_xyxy[..., 2:] - priors.boxes_xyxy[..., :2]
        return _around(priors.points, dist * torch.cat([wh, wh], dim=-1))
    return decode_ltrb(priors.points, priors.strides, dist)
