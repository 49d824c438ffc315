"""The deployed graph: pixels to detections in one module.

Validation runs it, an ONNX file contains it, TensorRT compiles it. There is no second decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isodet.shapes import assert_shape
from models.coders import decode
from models.config.model import ModelConfig
from models.deploy.graph_input import GraphInput
from models.deploy.nms import PortableNms
from models.detector import Detector, Raw
from models.layers.fuse import fuse
from models.priors import Priors


class Deploy(nn.Module):
    """Pictures -> the four outputs of EfficientNMS_TRT, or those of another `nms`.

    The pictures are uint8 BGR [B, H, W, 3], letterboxed, unless `graph_input` takes another form. The outputs are
    num_dets int32 [B, 1], boxes float32 [B, D, 4] xyxy pixels of the pictures, scores float32 [B, D] falling, labels
    int32 [B, D]; slots past `num_dets` are zero.
    """

    prior_boxes: Tensor
    prior_strides: Tensor
    box_stds: Tensor
    box_limit: Tensor

    def __init__(self, detector: Detector, graph_input: GraphInput | None = None, nms: nn.Module | None = None):
        """Takes a detector in eval mode and keeps a fused copy of it.

        nms: (boxes [B, K, 4], scores [B, K], labels [B, K]) -> outputs, of which only the boxes have three dimensions.
        None: `PortableNms`.
        """
        super().__init__()
        self.config: ModelConfig = detector.config
        post = self.config.postprocess
        self.detector = fuse(detector)
        self.graph_input = graph_input or GraphInput()
        self.nms = nms or PortableNms(post.nms_iou, post.detections)
        self.body_dtype = torch.float32
        grid = detector.priors()
        self.level_sizes = grid.level_sizes
        self.register_buffer("prior_boxes", grid.boxes_xyxy.clone(), persistent=False)
        self.register_buffer("prior_strides", grid.strides.clone(), persistent=False)
        # Buffers, because they must be on the device: a CUDA graph cannot record a copy from pageable host memory.
        height, width = self.config.input_size_hw
        stds, limit = torch.tensor(self.config.box.stds), torch.tensor([width, height, width, height])
        self.register_buffer("box_stds", stds.float().to(grid.strides.device), persistent=False)
        self.register_buffer("box_limit", limit.float().to(grid.strides.device), persistent=False)

    def halve(self) -> Deploy:
        """Float16 from the normalized picture to the raw outputs; pixels, decoding and NMS stay float32.

        Half has steps of 0.5 px above 512. Raises `ValueError` naming a weight that float16 cannot hold.
        """
        for name, child in self.detector.named_children():
            if name != "pixels":
                child.half()
        for name, tensor in self.detector.state_dict().items():
            if tensor.dtype == torch.float16 and not tensor.isfinite().all():
                raise ValueError(f"{name} holds values above 65504, which float16 cannot; export with --precision fp32")
        self.body_dtype = torch.float16
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.graph_input(images)
        raw = self.detector.network(self.detector.pixels.normalized(x).to(self.body_dtype))
        return self.detections(*self.candidates(raw, (x.shape[2], x.shape[3])))

    def detections(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """The outputs for what `candidates` gives: those above the threshold, after NMS, the best D."""
        assert_shape("boxes", boxes, *scores.shape, 4)
        outputs = self.nms(boxes, self.admitted(boxes, scores), labels)
        return tuple(self.graph_input.to_frame(out) if out.ndim == 3 else out for out in outputs)  # 3: the boxes

    def admitted(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, K] of `candidates`, 0 for those that must not become detections."""
        post = self.config.postprocess
        keep = scores > (post.score_threshold if post.threshold_on == "score" else 0)
        if post.empty_boxes == "drop":  # a box outside the input has no area left after clipping
            keep = keep & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
        return scores * keep

    def candidates(self, raw: Raw, size_hw: tuple[int, int] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The K best of N x C: boxes [B, K, 4] clipped to the input, scores [B, K] falling, labels [B, K].

        With `level_candidates`, at most that many are taken of each level before the K best are chosen. With
        `threshold_on: class`, candidates below the threshold have score 0. size_hw: size of the images that `raw` was
        computed from; None: the configured size.
        """
        post, size_hw = self.config.postprocess, size_hw or self.config.input_size_hw
        grid, B = self.grid(size_hw), raw.logits.shape[0]
        assert_shape("raw.logits", raw.logits, B, len(grid.strides), len(self.config.classes))
        assert_shape("raw.boxes", raw.boxes, B, len(grid.strides), self.config.box.channels)
        if post.level_candidates == 0:
            scores, point, label = self._best(raw.logits, raw.quality, post.candidates)
        else:
            best_of_levels, start = [], 0
            for size in grid.level_sizes:
                level = slice(start, start + size)
                quality = None if raw.quality is None else raw.quality[:, level]
                scores, point, label = self._best(raw.logits[:, level], quality, post.level_candidates)
                best_of_levels.append((scores, point + start, label))
                start += size
            scores, point, label = (torch.cat(parts, dim=1) for parts in zip(*best_of_levels, strict=True))
            scores, order = scores.topk(min(post.candidates, scores.shape[1]), dim=1)  # [B, K]
            point, label = point.gather(1, order), label.gather(1, order)
        grid = Priors(grid.boxes_xyxy[point], grid.strides[point], grid.level_sizes)
        codes = raw.boxes.gather(1, point[..., None].expand(-1, -1, self.config.box.channels))
        boxes = decode(self.config.box, grid, codes, self.box_stds)
        height, width = size_hw
        configured = size_hw == self.config.input_size_hw  # other sizes come from the eager short-side rule
        limit = self.box_limit if configured else boxes.new_tensor([width, height, width, height])
        return boxes.clamp(min=0).minimum(limit), scores, label

    @property
    def candidate_count(self) -> int:
        """K at the configured input size: `postprocess.candidates`, or fewer where the levels have fewer."""
        post, scores_of_levels = self.config.postprocess, [size * len(self.config.classes) for size in self.level_sizes]
        if post.level_candidates > 0:
            scores_of_levels = [min(post.level_candidates, count) for count in scores_of_levels]
        return min(post.candidates, sum(scores_of_levels))

    def grid(self, size_hw: tuple[int, int]) -> Priors:
        """The priors of an input size. Those of the configured size are buffers of the graph."""
        if size_hw == self.config.input_size_hw:
            return Priors(self.prior_boxes, self.prior_strides, self.level_sizes)
        return self.detector.priors(size_hw)

    def _best(self, logits: Tensor, quality: Tensor | None, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, points and labels, [B, k] each, of the `count` best of logits [B, n, C] with quality [B, n].

        First the k points with the best top class are taken, then the k best classes of these points. This equals one
        top-k over all n * C scores at a fraction of its cost.
        """
        post = self.config.postprocess
        by_class = post.level_candidates > 0 and post.level_by == "class"
        best = logits.amax(dim=-1)  # [B, n]
        best = best if by_class else self._score(best, quality)
        index = best.topk(min(count, best.shape[1]), dim=1).indices  # [B, k]
        logits = logits.gather(1, index[..., None].expand(-1, -1, logits.shape[-1]))  # [B, k, C]
        quality = None if quality is None else quality.gather(1, index)[..., None]
        scores = self._score(logits, quality)
        if post.threshold_on == "class":
            scores = scores * (logits.sigmoid() > post.score_threshold)
        ranked = (logits.sigmoid() if by_class else scores).flatten(1)  # [B, k * C]
        ranked, flat = ranked.topk(min(count, ranked.shape[1]), dim=1)  # [B, k]
        scores = scores.flatten(1).gather(1, flat) if by_class else ranked
        return scores, index.gather(1, flat // logits.shape[-1]), flat % logits.shape[-1]

    def _score(self, logits: Tensor, quality: Tensor | None) -> Tensor:
        """Class probability, or with a quality branch its product with the quality, or the root of that."""
        if quality is None:
            return logits.sigmoid()
        product = logits.sigmoid() * quality.sigmoid()
        learned = self.config.quality == "distribution"  # the product itself was taught
        return product.sqrt() if self.config.postprocess.score == "geometric" and not learned else product
