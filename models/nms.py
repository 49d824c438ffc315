"""Non-maximum suppression from standard tensor operators with fixed shapes: what every backend can build."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.boxes import box_area


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
        suppresses = suppression(boxes_xyxy, labels, self.iou_threshold).to(self.dtype)
        stands, exact = iterate(suppresses)
        outputs = best(stands, boxes_xyxy, scores, labels, self.detections)
        return (*outputs, exact) if self.certificate else outputs


def portable_nms(boxes_xyxy: Tensor, labels: Tensor, iou_threshold: float, rounds: int = 16) -> Tensor:
    """Which candidates greedy class-aware NMS keeps, [B, K] bool; candidates are sorted by falling score.

    boxes_xyxy [B, K, 4], labels [B, K]. See `suppression` and `iterate`.
    """
    return iterate(suppression(boxes_xyxy, labels, iou_threshold).float(), rounds)[0]


def suppression(boxes_xyxy: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """[B, K, K] bool: candidate i, if it stands, fells j. It is better, of the same class, and overlaps it by more
    than `iou_threshold`.
    """
    a, b = boxes_xyxy[:, :, None], boxes_xyxy[:, None]  # i suppresses j: [B, K, 1, 4], [B, 1, K, 4]
    # Each operation is one on K x K numbers, and they are what NMS costs. So one side is clamped and not both: what is
    # below zero then makes an IoU below zero, which is above no threshold.
    width = (a[..., 2].minimum(b[..., 2]) - a[..., 0].maximum(b[..., 0])).clamp(min=0)
    overlap = width * (a[..., 3].minimum(b[..., 3]) - a[..., 1].maximum(b[..., 1]))
    area = box_area(boxes_xyxy)
    # No guard against 0 / 0: NaN > threshold is false, and a box of no area suppresses nothing.
    iou = overlap / (area[:, :, None] + area[:, None] - overlap)
    labels = labels.int()
    same = labels[:, :, None] == labels[:, None]
    return ((iou > float32_below(iou_threshold)) & same).triu(diagonal=1)


def iterate(suppresses: Tensor, rounds: int = 16) -> tuple[Tensor, Tensor]:
    """Which candidates stand, [B, K] bool, and whether that is certainly final, [B, 1] bool.

    suppresses [B, K, K]: 1 where i fells j, else 0. Starting from "all stand" and applying the rule to all at once,
    candidate i is final after as many rounds as its chain of suppressors is long; the fixed point is exactly the
    sequential greedy result ("cluster NMS", Zheng et al., 2021), and two equal rounds in succession prove it. Chains on
    real candidates are a few links long (at most 11 among thousands of random sets); one longer than `rounds` would
    leave boxes too many, never too few, because `rounds` is even.
    """
    if rounds < 2 or rounds % 2:
        raise ValueError(f"rounds: expected an even number, at least 2, got {rounds}")
    stands = before = torch.ones_like(suppresses[:, :1])  # [B, 1, K]
    for _ in range(rounds):
        before, stands = stands, (torch.matmul(stands, suppresses) < 0.5).to(suppresses.dtype)
    return stands[:, 0] > 0.5, (stands == before).all(dim=-1)


def best(stands: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor, detections: int) -> tuple[Tensor, ...]:
    """The four outputs: of the candidates [B, K] that stand and have a score, the first D = min(detections, K)."""
    count = scores.shape[1]
    # Ranks, not scores: topk may order equal scores as it likes, and differs between backends.
    ranks = torch.arange(count, 0, -1, dtype=torch.float32, device=scores.device)
    ranks, index = torch.where(stands & (scores > 0), ranks, 0.0).topk(min(detections, count), dim=1)  # [B, D]
    kept = ranks > 0
    boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4)) * kept[..., None]
    return (
        kept.sum(dim=1, keepdim=True).int(),
        boxes,
        scores.gather(1, index) * kept,
        (labels.gather(1, index) * kept).int(),
    )


def float32_below(threshold: float) -> float:
    """The largest float32 not above `threshold`, so that comparing float32 IoUs with it is comparing exactly."""
    rounded = np.float32(threshold)
    return float(rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(-np.inf)))


def float32_above(threshold: float) -> float:
    """The next float32 after `float32_below`: `x >= float32_above(t)` says what `x > float32_below(t)` says."""
    return float(np.nextafter(np.float32(float32_below(threshold)), np.float32(np.inf)))
