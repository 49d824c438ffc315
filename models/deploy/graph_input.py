"""How pictures enter a graph: the form of its input, and the letterbox if the graph contains it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isodet.shapes import assert_shape

InputForm = Literal["uint8-nhwc", "float-nchw"]
"""uint8 [B, H, W, 3], BGR, 0 to 255 as cameras give it; or float32 [B, 3, H, W], RGB, 0 to 1."""


@dataclass(frozen=True)
class FrameGeometry:
    """The letterbox of frames of one size, as `runtime.images.image.Letterbox` does it.

    source_hw: size of the frame. resized_hw: its size in the network's input. size_hw: size of that input. fill: gray
    level of the border, which is at the right and at the bottom.
    """

    source_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    size_hw: tuple[int, int]
    fill: int


class GraphInput(nn.Module):
    """The graph's input -> float32 [B, 3, H, W], BGR, 0 to 255, of the network's input size."""

    scale: Tensor
    limit: Tensor

    def __init__(self, form: InputForm = "uint8-nhwc", frame: FrameGeometry | None = None):
        """frame: the graph takes raw frames of `frame.source_hw` and letterboxes them; None: they are letterboxed."""
        super().__init__()
        self.form, self.frame = form, frame
        if frame is not None:
            (h, w), (height, width) = frame.source_hw, frame.resized_hw
            scale = torch.tensor([width / w, height / h] * 2, dtype=torch.float32)
            self.register_buffer("scale", scale, persistent=False)
            self.register_buffer("limit", torch.tensor([w, h] * 2, dtype=torch.float32), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        sides = (None, None) if self.frame is None else self.frame.source_hw
        assert_shape("images", images, None, *((*sides, 3) if self.form == "uint8-nhwc" else (3, *sides)))
        # The cast comes first: TensorRT supports uint8 only for inputs and outputs.
        x = images.float().permute(0, 3, 1, 2) if self.form == "uint8-nhwc" else images.flip(1) * 255
        if self.frame is None:
            return x
        (h, w), (height, width) = self.frame.resized_hw, self.frame.size_hw
        if (h, w) != self.frame.source_hw:
            # Rounded to whole gray levels as OpenCV does it for the letterbox outside of the graph. OpenCV truncates
            # its integer arithmetic, on average by an eighth of a level; a mean of 2 x 2 pixels it rounds to nearest.
            offset = 0.5 if self.frame.source_hw == (2 * h, 2 * w) else 0.375
            x = (F.interpolate(x, size=(h, w), mode="bilinear", align_corners=False) + offset).floor()
        return F.pad(x, (0, width - w, 0, height - h), value=float(self.frame.fill))

    def to_frame(self, boxes: Tensor) -> Tensor:
        """Boxes [..., 4] in pixels of the network's input -> in pixels of the graph's input, clipped to a raw frame."""
        return boxes if self.frame is None else (boxes / self.scale).clamp(min=0).minimum(self.limit)
