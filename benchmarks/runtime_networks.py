"""The networks of `benchmarks/runtime_aims.py`: isodet's FCOS and torchvision's, of one backbone and equal widths.

ResNet-18 at full width, FPN of 64 channels on P3..P7, two head convolutions, 10 classes, 320 px, random weights. Both
have as many scores above the threshold as `trainer new` gives isodet candidates (300), as a trained detector may: else
torchvision, whose work after the network grows with what it finds, would have none. isodet has its default norm in the
head (`sepbn`, folded for deployment), torchvision its own (GroupNorm).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import export
from benchmarks.untrained import card_of, untrained
from export.options import Int8
from models.backbones import build_backbone
from models.checkpoint import build_detector, save_checkpoint
from models.config.model import BackboneConfig, model_config
from runtime.images.image import Image, write_image

SIZE, CHANNELS, DEPTH, CLASSES, CANDIDATES, THRESHOLD = 320, 64, 2, 10, 300, 0.05


def picture(size: int = SIZE) -> Image:
    """Noise, the same every time: uint8 [size, size, 3]."""
    return np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)


def busy(bias: torch.Tensor, logits: torch.Tensor) -> None:
    """Shift a class bias so that `CANDIDATES` scores are above the threshold, beside a quality of one half."""
    needed = torch.tensor(THRESHOLD**2 / 0.5).logit()
    bias += needed - logits.flatten().topk(CANDIDATES).values[-1]


def checkpoint(folder: Path, size: int = SIZE) -> Path:
    """isodet's detector as a checkpoint, made once. size: the sides of its input."""
    path = folder / ("r18.pt" if size == SIZE else f"r18-{size}.pt")
    if path.exists():
        return path
    config = model_config({
        "classes": [str(i) for i in range(CLASSES)], "detector": "fcos", "input_size_hw": [size, size],
        "backbone": {"name": "resnet18"}, "neck": {"channels": CHANNELS, "levels": [3, 7]}, "head": {"depth": DEPTH},
        "postprocess": {"candidates": CANDIDATES, "score_threshold": THRESHOLD},
    })  # fmt: skip
    detector, _ = build_detector(untrained(folder / "plain.pt", config))
    detector.eval()
    with torch.no_grad():
        assert detector.head.cls.bias is not None
        busy(detector.head.cls.bias, detector(torch.from_numpy(picture(size))[None]).logits)
    save_checkpoint(path, detector.state_dict(), card_of(config).to_json())
    return path


def float_graph(folder: Path, size: int) -> Path:
    """The float32 ONNX file for pictures of size x size, made once."""
    source = checkpoint(folder, size)
    path = source.with_suffix(".onnx")
    if not path.exists():
        export.to_onnx(source, path, gate=export.Gate(verify=False))  # random weights have no mAP
    return path


def graphs(folder: Path) -> dict[str, Path]:
    """The ONNX files for a CPU: float32, and 8 bits with ranges of noise. Made once."""
    source = checkpoint(folder)
    paths = {"fp32": float_graph(folder, SIZE), "int8": folder / "r18.int8-cpu.onnx"}
    gate = export.Gate(verify=False)
    if not paths["int8"].exists():
        pictures = folder / "pictures"
        pictures.mkdir(exist_ok=True)
        write_image(pictures / "noise.png", picture())
        int8 = Int8(pictures=1, calibration_images=pictures, cpu=True)
        export.to_onnx(source, paths["int8"], export.OnnxOptions(precision="int8", int8=int8), gate)
    return paths


def torchvision_fcos() -> nn.Module:
    """torchvision's FCOS in eval mode, around the same backbone."""
    torch.manual_seed(0)
    body = build_backbone(BackboneConfig(name="resnet18"))
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    backbone = BackboneWithFPN(
        body, layers, list(body.channels[1:]), CHANNELS, extra_blocks=LastLevelP6P7(CHANNELS, CHANNELS)
    )
    anchors = AnchorGenerator(((4,), (8,), (16,), (32,), (64,)), ((1.0,),) * 5)
    head = FCOSHead(CHANNELS, 1, CLASSES, num_convs=DEPTH)
    model = FCOS(
        backbone, CLASSES, anchor_generator=anchors, head=head, min_size=SIZE, max_size=SIZE, score_thresh=THRESHOLD
    ).eval()
    with torch.no_grad():
        images, _ = model.transform([planes(picture())])
        logits = model.head(list(model.backbone(images.tensors).values()))["cls_logits"]
        busy(model.head.classification_head.cls_logits.bias, logits)
    return model


def planes(image: Image) -> torch.Tensor:
    """As torchvision takes a picture: float32 [3, H, W], RGB from 0 to 1."""
    return torch.from_numpy(image).permute(2, 0, 1).flip(0).float().div(255)
