"""Small detectors of random weights, pictures for them, and when two answers are the same."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from isodet.strict import to_mapping
from models.config.model import ModelConfig, model_config
from models.deploy.graph import Deploy
from models.detector import Detector as Network
from runtime import BackendOptions, Detections, Detector
from runtime.backends.torch.backend import TorchBackend
from runtime.card.card import Card

DETECTORS = ("atss", "retinanet", "fcos")
SIZE = (128, 160)


def config(detector: str, size_hw: tuple[int, int] = SIZE) -> ModelConfig:
    return model_config({
        "detector": detector, "classes": ["ant", "bee", "cat"], "input_size_hw": list(size_hw),
        "backbone": {"name": "resnet18", "width": 0.25}, "neck": {"channels": 32}, "head": {"depth": 1, "prior": 0.1},
        "postprocess": {"candidates": 100, "detections": 20},
    })  # fmt: skip


def deployed(config: ModelConfig) -> Deploy:
    """On the CPU. The same weights at every call, with scores that are far enough from each other."""
    torch.manual_seed(0)
    network = Network(config, load_weights=False)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        images = torch.from_numpy(np.stack(pictures(4, config.input_size_hw, seed=99)))
        network.train()(images)
        network.head.cls.weight.mul_(1 / network.eval()(images).logits.std())
        bias = dict(network.named_parameters())["head.cls.bias"]
        bias.sub_(1 + network(images).logits.mean())
    return Deploy(network.eval()).eval()


def card(config: ModelConfig) -> Card:
    post = config.postprocess
    nms = {"kind": "portable", "iou": post.nms_iou, "candidates": post.candidates, "detections": post.detections}
    return Card("checkpoint", config.classes, config.input_size_hw, post.score_threshold, nms, model=to_mapping(config))


def backend(
    detector: str, device: str, options: BackendOptions | None = None, size_hw: tuple[int, int] = SIZE
) -> TorchBackend:
    how = config(detector, size_hw)
    return TorchBackend(deployed(how), card(how), device, options or BackendOptions())


def detector(
    name: str, device: str, options: BackendOptions | None = None, size_hw: tuple[int, int] = SIZE
) -> Detector:
    """With all that the graph lets through."""
    return Detector(backend(name, device, options, size_hw), threshold=0.0)


def pictures(count: int, size_hw: tuple[int, int] = SIZE, seed: int = 0) -> list[np.ndarray]:
    """Colored blobs, uint8 [H, W, 3]: each another one."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    return [
        cv2.resize(rng.integers(0, 256, (8, 10, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(count)
    ]


def assert_same(
    given: Sequence[Detections], expected: Sequence[Detections], pixels: float = 0.05, score: float = 1e-4
) -> None:
    """Each detection has one of its label in the other answer, at most `pixels` and `score` away.

    One in fifty may miss it: where two scores, or an overlap and the NMS's limit, are closer than rounding. Those that
    score hardly more than the lowest are not looked at, since the number of detections is cut there.
    """
    assert len(given) == len(expected)
    looked_at = missed = 0
    for ours, theirs in zip(given, expected, strict=True):
        for some, others in ((ours, theirs), (theirs, ours)):
            lowest = max((float(d.scores.min()) for d in (ours, theirs) if len(d)), default=0.0)
            for i in np.flatnonzero(some.scores > lowest + 2 * score):
                near = (others.labels == some.labels[i]) & (np.abs(others.scores - some.scores[i]) <= score)
                near &= np.abs(others.boxes_xyxy - some.boxes_xyxy[i]).max(axis=1, initial=0.0) <= pixels
                looked_at += 1
                missed += not near.any()
    assert looked_at >= len(given), "pictures without detections prove nothing"
    assert missed <= looked_at / 50, f"{missed} of {looked_at} detections have no counterpart"
