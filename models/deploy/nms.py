"""Non-maximum suppression from standard tensor operators with fixed shapes: what every backend can build."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from isodet.errors import ArgumentError
from isodet.shapes import assert_shape
from models.boxes import box_area

_STRIP = 150
"""Rows of a strip, at least: more strips are more operations, each of which costs something by itself."""


class PortableNms(nn.Module):
    """Candidates to detections: boxes [B, K, 4] xyxy, scores [B, K] falling, labels [B, K] -> the four outputs.

    A score of 0 marks what is no candidate: it suppresses nothing (it comes last, or its box is empty) and is never
    kept. num_dets int32 [B, 1], boxes [B, D, 4], scores [B, D] falling, labels int32 [B, D]; slots past `num_dets` are
    zero. Equal scores keep the order of the candidates.
    """

    def __init__(
        self, iou_threshold: float, detections: int, certificate: bool = False, dtype: torch.dtype = torch.float32
    ):
        """certificate: a fifth output, bool [B, 1], that is true where the result is certainly greedy NMS's.

        dtype: of the products of zeros and ones. Half is exact here for any K: a sum of ones stops growing at 2048
        but never comes back to zero, and zero or not is all that is asked.
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
    """[B, K, K] bool: candidate i, if it is kept, suppresses j. It is better, of the same class, and overlaps it by
    more than `iou_threshold`.
    """
    assert_shape("boxes_xyxy", boxes_xyxy, *labels.shape, 4)
    count, area, labels = boxes_xyxy.shape[1], box_area(boxes_xyxy), labels.int()
    # Operations on K x K numbers are what NMS costs, and i only suppresses what comes after it: strips of rows
    # leave out what lies left of them, and their intermediate results are small enough for a cache.
    height = max(_STRIP, -(-count // 4))
    strips = []
    for top in range(0, count, height):
        rows, columns = slice(top, top + height), slice(top, None)
        overlap = _overlap(boxes_xyxy[:, rows], boxes_xyxy[:, columns])
        # No guard against 0 / 0: NaN > threshold is false, and a box of no area suppresses nothing.
        iou = overlap / (area[:, rows, None] + area[:, None, columns] - overlap)
        same = labels[:, rows, None] == labels[:, None, columns]
        strip = (iou > float32_below(iou_threshold)) & same
        strips.append(pad(strip, (top, 0)) if top else strip)
    return torch.cat(strips, dim=1).triu(diagonal=1)


def _overlap(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Of boxes [B, I, 4] and [B, J, 4]: [B, I, J], not above zero where they do not overlap.

    One side is clamped and not both: what is below zero then makes an IoU below zero, which is above no threshold.
    """
    a_x1, a_y1, a_x2, a_y2 = a_xyxy.split(1, dim=2)
    b_x1, b_y1, b_x2, b_y2 = b_xyxy.transpose(1, 2).split(1, dim=1)
    width = (a_x2.minimum(b_x2) - a_x1.maximum(b_x1)).relu()
    return width * (a_y2.minimum(b_y2) - a_y1.maximum(b_y1))


def keep_until_stable(suppresses: Tensor, rounds: int = 16) -> tuple[Tensor, Tensor]:
    """Which candidates are kept, [B, K] bool, and whether that is certainly final, [B, 1] bool.

    suppresses [B, K, K]: 1 where i suppresses j, else 0. Starting from "all are kept" and applying the rule to all
    at once, candidate i is final after as many rounds as its chain of suppressors is long; the fixed point is exactly
    the sequential greedy result ("cluster NMS", Zheng et al., 2021), and two equal rounds in succession prove it.
    Chains on real candidates are a few links long (at most 11 among thousands of random sets); one longer than
    `rounds` would leave boxes too many, never too few, because `rounds` is even.
    """
    if rounds < 2 or rounds % 2:
        raise ArgumentError.of("rounds", f"expected an even number, at least 2, got {rounds}")
    kept = before = torch.ones_like(suppresses[:, :1])  # [B, 1, K]
    for _ in range(rounds):
        before, kept = kept, none_of(torch.matmul(kept, suppresses))
    return kept[:, 0] > 0.5, (kept == before).all(dim=-1)


def none_of(counts: Tensor) -> Tensor:
    """1 where a count is zero, 0 where it is one or more; of the type of `counts`."""
    if torch.compiler.is_exporting():  # one node instead of a comparison and a cast, 16 times
        return torch.onnx.ops.symbolic(
            "HardSigmoid", (counts,), {"alpha": -1.0, "beta": 1.0}, dtype=counts.dtype, shape=counts.shape
        )
    return (1 - counts).clamp(min=0)


def best(kept: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, detections: int) -> tuple[Tensor, ...]:
    """The four outputs: of the candidates [B, K] that are `kept` and have a score, the first D = min(detections, K)."""
    count = scores.shape[1]
    # Ranks, not scores: topk may order equal scores as it likes, and differs between backends.
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
    """The largest float32 not above `threshold`, so that comparing float32 IoUs with it is comparing exactly."""
    rounded = np.float32(threshold)
    return float(rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf)))


def float32_above(threshold: float) -> float:
    """The next float32 after `float32_below`: `x >= float32_above(t)` says what `x > float32_below(t)` says."""
    return float(np.nextafter(np.float32(float32_below(threshold)), np.float32(np.inf)))
