"""The grid of priors: where a detector looks, as anchors (boxes) and as points (their centers)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.config.model import AnchorConfig


class Priors(NamedTuple):
    """N priors in the order level, row, column, anchor within the cell (ratio outer, scale inner)."""

    boxes_xyxy: Tensor  # [N, 4] float32 pixels
    strides: Tensor  # [N] float32 pixels, nominal: 2**level
    level_sizes: tuple[int, ...]  # priors in each level, summing to N
    level_shapes: tuple[tuple[int, int, int], ...] = ()  # rows, columns, anchors per cell; () for a part of a grid

    @property
    def points(self) -> Tensor:
        """Centers, [N, 2] float32 x, y."""
        return (self.boxes_xyxy[..., :2] + self.boxes_xyxy[..., 2:]) / 2

    def within(self, sizes_hw: Tensor) -> Tensor:
        """Which priors lie on the grids of images of sizes [B, 2] in pixels, bool [B, N].

        Such an image has ceil(side / stride) rows and columns of the batch's grid. Raises `ValueError` where these
        priors are not complete grids.
        """
        if not self.level_shapes:
            raise ValueError("which priors lie within an image is known of whole grids only (level_shapes)")
        device = self.strides.device
        cells = [torch.cartesian_prod(torch.arange(h, device=device), torch.arange(w, device=device)).view(-1, 2)
                 .repeat_interleave(anchors, dim=0) for h, w, anchors in self.level_shapes]  # fmt: skip
        starts_yx = torch.cat(cells) * self.strides[:, None]  # [N, 2] pixels
        return (starts_yx < sizes_hw[:, None]).all(dim=-1)

    def to(self, device: torch.device) -> Priors:
        return self._replace(boxes_xyxy=self.boxes_xyxy.to(device), strides=self.strides.to(device))


def feature_sizes(size_hw: tuple[int, int], levels: tuple[int, int]) -> list[tuple[int, int]]:
    """Height and width of levels `levels[0]..levels[1]` for an input of `size_hw` pixels.

    Level l is the input over 2**l, rounded up, as l convolutions of stride 2 and padding k // 2 make it.
    """
    H, W = size_hw
    return [(-(-H // 2**level), -(-W // 2**level)) for level in range(levels[0], levels[1] + 1)]


def priors(
    sizes_hw: Sequence[tuple[int, int]],
    strides: Sequence[int],
    anchors: AnchorConfig,
    offset: float | None = None,
    input_hw: tuple[int, int] | None = None,
) -> Priors:
    """Priors of levels with the given grid sizes and nominal strides.

    A prior's center is `(column + offset, row + offset) * stride`; with 0.5 it is the center of the cell's pixels.
    offset: None: `anchors.offset`. input_hw: size of the padded input in pixels, which the rule `padded_over_grid`
    needs and divides by the grid's size. Raises `ValueError` where that rule has no `input_hw`.
    """
    offset = anchors.offset if offset is None else offset
    if anchors.stride_rule == "padded_over_grid" and input_hw is None:
        raise ValueError("anchors.stride_rule padded_over_grid needs input_hw, the size of the padded input")
    boxes, per_prior_strides = [], []
    for (h, w), stride in zip(sizes_hw, strides, strict=True):
        step_y, step_x = stride, stride
        if anchors.stride_rule == "padded_over_grid" and input_hw is not None:
            step_y, step_x = input_hw[0] // h, input_hw[1] // w
        x = (torch.arange(w, dtype=torch.float32) + offset) * step_x
        y = (torch.arange(h, dtype=torch.float32) + offset) * step_y
        centers = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 1, 2)  # [h*w, 1, 2]
        half = _anchor_sizes_wh(anchors, stride) / 2  # [A, 2]
        half = half.round() if anchors.whole_pixels else half
        boxes.append(torch.cat([centers - half, centers + half], dim=-1).reshape(-1, 4))  # [h*w*A, 4]
        per_prior_strides.append(torch.full((len(boxes[-1]),), float(stride)))
    shapes = tuple((h, w, anchors.per_cell) for h, w in sizes_hw)
    return Priors(torch.cat(boxes), torch.cat(per_prior_strides), tuple(len(b) for b in boxes), shapes)


def _anchor_sizes_wh(anchors: AnchorConfig, stride: int) -> Tensor:
    """Width and height of a cell's anchors, [A, 2]; anchors of one scale have the same area."""
    octave = torch.arange(anchors.scales_per_octave, dtype=torch.float32) / anchors.scales_per_octave
    sides = anchors.size * stride * 2**octave
    sides = sides.floor() if anchors.whole_pixels else sides
    root = torch.tensor(anchors.ratios).sqrt()[:, None]  # ratio = h / w
    return torch.stack([sides / root, sides * root], dim=-1).reshape(-1, 2)
