"""Non-maximum suppression in standard tensor operators with fixed shapes, which every backend can build."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from isodet.errors import ArgumentError
from isodet.shapes import assert_shape
from models.boxes import box_area

_STRIP = 150
"""Least number of rows in a strip of `suppression`: each strip adds operations, which have a fixed cost."""


class PortableNms(nn.Module):
    """Candidates to detections: boxes [B, K, 4] xyxy, scores [B, K] falling, labels [B, K] -> the four outputs.

    The outputs are num_dets int32 [B, 1], boxes [B, D, 4], scores [B, D] falling, labels int32 [B, D]; slots past
    `num_dets` are zero. Candidates of equal scores keep their order. A score of 0 means that the slot holds no
    candidate: it is never kept, and suppresses nothing, because it comes last or its box is empty.
    """

    def __init__(
        self, iou_threshold: float, detections: int, certificate: bool = False, dtype: torch.dtype = torch.float32
    ):
        """certificate: add a fifth output, bool [B, 1]: True where the result is proven equal to that of greedy NMS.

        dtype: of the matrix product that counts suppressors. float16 is exact enough for any K: a sum of ones stops
        growing at 2048, but only zero or not zero matters.
        """
        super().__init__()
        self.iou_threshold, self.detections = iou_threshold, detections
        self.certificate, self.dtype = certificate, dtype

    def forward(self, boxes_xyxy: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        assert_shape("scores", scores, *labels.shape)
        suppresses = suppression(boxes_xyxy, labels, self.iou_threshold).to(self.dtype)
        kept, exact = keep_until_stable(suppresses)
        outputs = best(kept, boxes_xyxy, scores, labels, self.detections)
        return (*outputs, exact) if self.certificate else outputs


def suppression(boxes_xyxy: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """[B, K, K] bool, True at [i, j] where candidate i would suppress j if i is kept.

    That is where i has the higher score, both have the same class, and their IoU is above `iou_threshold`.
    """
    assert_shape("boxes_xyxy", boxes_xyxy, *labels.shape, 4)
    count, area, labels = boxes_xyxy.shape[1], box_area(boxes_xyxy), labels.int()
    # Operations on K x K numbers dominate the cost of NMS. Candidate i suppresses only later ones, so each strip of
    # rows skips the columns left of it; its intermediate results also fit into a cache.
    height = max(_STRIP, -(-count // 4))
    strips = []
    for top in range(0, count, height):
        rows, columns = slice(top, top + height), slice(top, None)
        overlap = _overlap(boxes_xyxy[:, rows], boxes_xyxy[:, columns])
        # 0 / 0 needs no guard: NaN > threshold is False, so a box without area suppresses nothing.
        iou = overlap / (area[:, rows, None] + area[:, None, columns] - overlap)
        same = labels[:, rows, None] == labels[:, None, columns]
        strip = (iou > float32_below(iou_threshold)) & same
        strips.append(pad(strip, (top, 0)) if top else strip)
    return torch.cat(strips, dim=1).triu(diagonal=1)


def _overlap(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Area of overlap [B, I, J] of boxes [B, I, 4] and [B, J, 4]; zero or negative where they do not overlap.

    Only the width is clamped at zero. A negative height then gives a negative IoU, which is below every threshold.
    """
    a_x1, a_y1, a_x2, a_y2 = a_xyxy.split(1, dim=2)
    b_x1, b_y1, b_x2, b_y2 = b_xyxy.transpose(1, 2).split(1, dim=1)
    width = (a_x2.minimum(b_x2) - a_x1.maximum(b_x1)).relu()
    return width * (a_y2.minimum(b_y2) - a_y1.maximum(b_y1))


def keep_until_stable(suppresses: Tensor, rounds: int = 16) -> tuple[Tensor, Tensor]:
    """Which candidates are kept, [B, K] bool, and whether that is proven to be the final result, [B, 1] bool.

    suppresses: [B, K, K], 1 where i suppresses j, else 0. Raises `ArgumentError` unless `rounds` is even and positive.

    This is "cluster NMS" (Zheng et al., 2021). At first all candidates are kept. In each round, a candidate is kept if
    no candidate that was kept in the round before suppresses it. A candidate is final after as many rounds as its chain
    of suppressors is long. The fixed point is exactly the result of sequential greedy NMS, and two equal rounds in
    succession prove that it is reached. Chains of real candidates are short (at most 11 in thousands of random sets).
    Where one is longer than `rounds`, too many boxes are kept and never too few, because `rounds` is even.
    """
    if rounds < 2 or rounds % 2:
        raise ArgumentError.of("rounds", f"expected an even number, at least 2, got {rounds}")
    kept = before = torch.ones_like(suppresses[:, :1])  # [B, 1, K]
    for _ in range(rounds):
        before, kept = kept, none_of(torch.matmul(kept, suppresses))
    return kept[:, 0] > 0.5, (kept == before).all(dim=-1)


def none_of(counts: Tensor) -> Tensor:
    """1 where a count is zero, 0 where it is one or more, in the dtype of `counts`."""
    if torch.compiler.is_exporting():  # one node instead of a comparison and a cast, in each of the 16 rounds
        return torch.onnx.ops.symbolic(
            "HardSigmoid", (counts,), {"alpha": -1.0, "beta": 1.0}, dtype=counts.dtype, shape=counts.shape
        )
    return (1 - counts).clamp(min=0)


def best(kept: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, detections: int) -> tuple[Tensor, ...]:
    """The four outputs: the first D = min(detections, K) of the candidates [B, K] that are `kept` and have a score."""
    count = scores.shape[1]
    # topk of ranks instead of scores: the order of equal scores is undefined, and differs between backends.
    ranks = torch.arange(count, 0, -1, dtype=torch.float32, device=scores.device)
    ranks, index = torch.where(kept & (scores > 0), ranks, 0.0).topk(min(detections, count), dim=1)  # [B, D]
    filled = ranks > 0
    ones, counted = filled.to(boxes.dtype), filled.int()
    return (
        counted.sum(dim=1, keepdim=True, dtype=torch.int32),
        boxes.gather(1, index[..., None].expand(-1, -1, 4)) * ones[..., None],
        scores.gather(1, index) * ones,
        labels.int().gather(1, index) * counted,
    )


def float32_below(threshold: float) -> float:
    """The largest float32 not above `threshold`: a float32 is above it exactly where it is above `threshold`."""
    rounded = np.float32(threshold)
    return float(rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf)))


def float32_above(threshold: float) -> float:
    """The float32 after `float32_below(t)`: for a float32 x, `x >= float32_above(t)` is `x > float32_below(t)`."""
    return float(np.nextafter(np.float32(float32_below(threshold)), np.float32(np.inf)))
