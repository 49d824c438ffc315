"""The deployed graph: pixels to detections in one module.

Validation runs it, ONNX contains it, TensorRT compiles it. There is no second decoder anywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.coders import decode
from models.config import ModelConfig
from models.detector import Detector, Raw
from models.fuse import fuse
from models.nms import portable_nms
from models.points import Priors


class Deploy(nn.Module):
    """uint8 BGR images [B, H, W, 3], letterboxed -> EfficientNMS_TRT's four outputs.

    num_dets int32 [B, 1], boxes float32 [B, D, 4] xyxy input pixels, scores float32 [B, D] falling, labels
    int32 [B, D]; slots past `num_dets` are zero.
    """

    prior_boxes: Tensor
    prior_strides: Tensor

    def __init__(self, detector: Detector):
        """Takes a detector in eval mode and keeps a fused copy of it."""
        super().__init__()
        self.config: ModelConfig = detector.config
        self.detector = fuse(detector)
        grid = detector.priors()
        self.level_sizes = grid.level_sizes
        self.register_buffer("prior_boxes", grid.boxes_xyxy.clone(), persistent=False)
        self.register_buffer("prior_strides", grid.strides.clone(), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        boxes, scores, labels = self.candidates(self.detector(images), (images.shape[1], images.shape[2]))
        post = self.config.postprocess
        # Clipping to the input leaves nothing of a box that lies outside.
        keep = (scores > post.score_threshold) & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
        keep = keep & portable_nms(boxes, labels, post.nms_iou)
        # Kept candidates are in order of score already; topk brings them to the front.
        scores, index = torch.where(keep, scores, -1.0).topk(min(post.detections, scores.shape[1]), dim=1)
        kept = scores >= 0
        boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4)) * kept[..., None]
        labels = (labels.gather(1, index) * kept).int()
        return kept.sum(dim=1, keepdim=True).int(), boxes, scores.clamp(min=0), labels

    def candidates(self, raw: Raw, size_hw: tuple[int, int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The K best of N x C: boxes [B, K, 4] clipped to the input, scores [B, K] falling, labels [B, K].

        In two steps that together equal the flat top-K and cost a fraction: the K points whose best class is
        best, then the K best of those points' classes. size_hw: of the images that `raw` is of; None means the
        configured size.
        """
        count = self.config.postprocess.candidates
        best = raw.logits.amax(dim=-1)  # [B, N]
        k = min(count, best.shape[1])
        index = _score(best, raw.quality).topk(k, dim=1).indices  # [B, k]
        logits = raw.logits.gather(1, index[..., None].expand(-1, -1, raw.logits.shape[-1]))
        quality = None if raw.quality is None else raw.quality.gather(1, index)[..., None]
        scores = _score(logits, quality).flatten(1)  # [B, k * C]
        scores, flat = scores.topk(min(count, scores.shape[1]), dim=1)  # [B, K]
        classes = raw.logits.shape[-1]
        point = index.gather(1, flat // classes)  # [B, K]
        size_hw = size_hw or self.config.input_size_hw
        grid = self.grid(size_hw)
        grid = Priors(grid.boxes_xyxy[point], grid.strides[point], grid.level_sizes)
        boxes = decode(self.config.box, grid, raw.boxes.gather(1, point[..., None].expand(-1, -1, 4)))
        height, width = size_hw
        limit = boxes.new_tensor([width, height, width, height])
        return boxes.clamp(min=0).minimum(limit), scores, flat % classes

    def grid(self, size_hw: tuple[int, int]) -> Priors:
        """The priors of an input size: the graph's own are buffers, others are for the eager short-side rule."""
        if size_hw == self.config.input_size_hw:
            return Priors(self.prior_boxes, self.prior_strides, self.level_sizes)
        return self.detector.priors(size_hw)


def _score(logits: Tensor, quality: Tensor | None) -> Tensor:
    """Class probability, or its geometric mean with the quality (FCOS authors' code; the order is the product's)."""
    if quality is None:
        return logits.sigmoid()
    return (logits.sigmoid() * quality.sigmoid()).sqrt()
