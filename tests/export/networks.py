"""Checkpoints of networks, and the comparison of a graph with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from export.verification.detection_diff import compare_detections
from isodet.strict import to_mapping
from models.checkpoint import load_detector, save_checkpoint
from models.config.model import ModelConfig, model_config
from models.detector import Detector as Network
from runtime import Card, Detections
from tests.export.edges import BOX_PX, SCORE, unexplained


def save_network(path: Path, model: Network) -> Path:
    """Writes a checkpoint of a network with its card, nothing validated, and returns its path."""
    config, post = model.config, model.config.postprocess
    nms = {"kind": "portable", "iou": post.nms_iou, "candidates": post.candidates, "detections": post.detections}
    card = Card(
        kind="checkpoint", classes=config.classes, input_size_hw=config.input_size_hw,
        score_threshold=post.score_threshold, nms=nms, model=to_mapping(config),
    )  # fmt: skip
    save_checkpoint(path, model.state_dict(), card.to_json())
    return path


def save_untrained(path: Path, config: ModelConfig, drawn: Callable[[str], bool], batches: tuple[int, ...]) -> Path:
    """A checkpoint of random weights that finds something everywhere.

    `drawn` says by their names which of the head's convolutions get larger weights, and the norms get the statistics
    of the last of `batches` pictures.
    """
    torch.manual_seed(3)
    model = Network(config)
    with torch.no_grad():
        for name, p in model.head.named_parameters():
            if p.ndim == 4 and drawn(name):
                p.normal_(std=0.1)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # statistics of one batch; moving averages would let activations fade away
        for batch in batches:
            model(torch.randint(0, 256, (batch, *config.input_size_hw, 3), dtype=torch.uint8))
    return save_network(path, model)


def untrained(path: Path, detector: str = "atss", backbone: str = "resnet18", **keys: object) -> Path:
    """`save_untrained` of a small detector, on a thin backbone, without validation data."""
    config = model_config({
        "classes": ["a", "b", "c"], "detector": detector, "input_size_hw": [96, 128],
        "backbone": {"name": backbone, "width": 0.125}, "neck": {"channels": 32, "levels": [3, 6], "norm": "bn"},
        "head": {"depth": 1, "prior": 0.2}, "postprocess": {"candidates": 60, "detections": 25}, **keys,
    })  # fmt: skip
    return save_untrained(path, config, lambda name: name.endswith("weight"), (4, 4, 4))


def assert_same(checkpoint: Path, graph: Path, batches: tuple[int, ...]) -> None:
    """Asserts that a graph finds what its checkpoint finds, on batches of these sizes."""
    deploy, card = load_detector(checkpoint)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    classes = tuple(card["classes"])
    for batch in batches:
        size = (batch, *card["input_size_hw"], 3)
        images = np.random.default_rng(batch).integers(0, 256, size, dtype=np.uint8)
        with torch.inference_mode():
            expected = [t.numpy() for t in deploy(torch.from_numpy(images))]
        assert expected[0].sum() > 5 * batch  # otherwise this would compare nothing
        pairs = [
            {i: Detections(boxes[: n[0]], scores[: n[0]], labels[: n[0]], classes) for i, (n, boxes, scores, labels)
             in enumerate(zip(*outputs, strict=True))}
            for outputs in (expected, session.run(None, {"images": images}))
        ]  # fmt: skip
        apart = compare_detections(*pairs)
        assert apart.box_max_px < BOX_PX and apart.score_max < SCORE and apart.unmatched < 0.1 * apart.boxes
        for one, other in (pairs, pairs[::-1]):
            assert not any(unexplained(one[i], other[i], Card.from_json(card, checkpoint)) for i in one)
