"""Imported torchvision models find what the originals find; mmdetection's names arrive where they belong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from isodet.strict import merge
from models.config.model import model_config
from models.deploy.graph import Deploy
from models.detector import Detector
from models.importers import Imported, ImportRefused, coco, import_checkpoint, mmdet
from models.importers import torchvision as importer

SIZES = ((96, 160), (128, 128), (192, 96))  # in the first, P6 and P7 stand 48 x 53 and 96 x 80 px apart
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    name: getattr(torchvision.models.detection, name) for name in importer.NAMES
}
CLASSES = ["background", "ant", "bee", "cat", "dog"]


def make(architecture: str, classes: int) -> nn.Module:
    """A torchvision model with random weights and statistics, whose outputs are about as wide as a trained one's."""
    torch.manual_seed(7)
    return with_random_weights(BUILDERS[architecture](weights=None, weights_backbone=None, num_classes=classes))


def with_random_weights(model: nn.Module) -> nn.Module:
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.3, 0.9)
            module.bias.data.normal_(0, 0.1)
    seen: dict[nn.Module, Tensor] = {}
    heads = {"cls_logits": (-4.0, 1.0), "bbox_reg": (0.4, 0.4), "bbox_ctrness": (0.5, 1.0)}
    predictions = {m: heads[n.split(".")[-1]] for n, m in model.named_modules() if n.split(".")[-1] in heads}

    def remember(module: nn.Module, _: object, out: Tensor) -> None:
        if module not in seen:  # P3 comes first
            seen[module] = out.std()

    hooks = [module.register_forward_hook(remember) for module in predictions]
    with torch.no_grad():
        for module in predictions:
            module.weight.normal_(0, 0.01)
            module.bias.zero_()
        original_detections(model, picture((128, 128)))
        for module, (mean, std) in predictions.items():
            module.weight.mul_(std / seen[module])
            module.bias.normal_(mean, 0.1)
    for hook in hooks:
        hook.remove()
    return model


@pytest.fixture(scope="module", params=importer.NAMES)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Module, Path]:
    model = make(request.param, len(CLASSES))
    path = tmp_path_factory.mktemp("torchvision") / f"{request.param}.pth"
    torch.save(model.state_dict(), path)
    return request.param, model, path


def detector_of(imported: Imported) -> Detector:
    detector = Detector(imported.config, load_weights=False)
    detector.load_state_dict(imported.state)
    return detector.eval()


def picture(size_hw: tuple[int, int]) -> Tensor:
    """A blurred random uint8 BGR picture [H, W, 3]."""
    small = np.random.default_rng(3).integers(0, 256, (3, size_hw[0] // 8, size_hw[1] // 8), dtype=np.uint8)
    large = torch.nn.functional.interpolate(torch.from_numpy(small)[None].float(), size=size_hw, mode="bilinear")
    return large[0].permute(1, 2, 0).round().to(torch.uint8)


def original_detections(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """torchvision's own, on the picture as it is: its sides are multiples of 32, and it is told not to resize."""
    model.transform.min_size, model.transform.max_size = (min(image.shape[:2]),), max(image.shape[:2])
    with torch.inference_mode():
        return model([image.flip(-1).permute(2, 0, 1).float() / 255])[0]


@pytest.mark.parametrize("size_hw", SIZES)
def test_the_same_detections_in_the_same_order(original, size_hw):
    architecture, model, path = original
    imported = import_checkpoint(path, classes=CLASSES, input_size_hw=size_hw)
    assert (imported.source, imported.architecture) == ("torchvision", architecture)
    image = picture(size_hw)
    theirs = original_detections(model, image)
    with torch.inference_mode():
        count, boxes, scores, labels = Deploy(detector_of(imported)).eval()(image[None])
    n = int(count)
    assert n == len(theirs["scores"]) > 50
    assert scores[0, :n].unique().numel() > n // 2, "scores that differ, or the order would say nothing"
    sides = theirs["boxes"][:, 2:] - theirs["boxes"][:, :2]
    assert (sides > 4).all(dim=1).sum() > n // 2, "boxes with an extent"
    np.testing.assert_allclose(scores[0, :n], theirs["scores"], rtol=0, atol=1e-4)
    # Folded BatchNorms round differently: among scores within 1e-5 of their neighbor any order is the same order.
    tie = np.cumsum(-np.diff(theirs["scores"].numpy(), prepend=np.inf) > 1e-5)
    assert tie[-1] > 0.9 * n
    ours, original_ones = (
        _rows(tie, one.numpy(), label.numpy())
        for one, label in ((boxes[0, :n], labels[0, :n]), (theirs["boxes"], theirs["labels"]))
    )
    np.testing.assert_allclose(ours, original_ones, rtol=0, atol=0.05)


def _rows(tie: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Label and box, [n, 5], sorted within ties only."""
    return np.column_stack([labels, boxes])[np.lexsort((*boxes.T, labels, tie))]


def test_without_the_background_output(original):
    """A model trained on four classes has five outputs, of which torchvision never trains the first."""
    _, model, path = original
    whole, four = (import_checkpoint(path, classes=names, input_size_hw=(96, 160)) for names in (CLASSES, CLASSES[1:]))
    assert four.config.classes == tuple(CLASSES[1:])
    image = picture((96, 160))[None]
    with torch.inference_mode():
        ours, all_outputs = (detector_of(one)(image).logits for one in (four, whole))
    torch.testing.assert_close(ours, all_outputs[..., 1:])


def test_cocos_91_outputs_become_its_80_classes(tmp_path):
    model = make("fcos_resnet50_fpn", 91)
    torch.save({"model": model.state_dict(), "epoch": 25}, tmp_path / "c.pth")
    imported = import_checkpoint(tmp_path / "c.pth", input_size_hw=(96, 96))
    names = torchvision.models.detection.FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert imported.config.classes == coco.NAMES == tuple(names[i] for i in coco.IDS) and len(coco.NAMES) == 80
    assert all(names[i] in ("__background__", "N/A") for i in coco.UNUSED_IDS)
    image = picture((96, 96))
    with torch.inference_mode():
        original_detections(model, image)  # sets the sizes
        features = model.backbone(model.transform([image.flip(-1).permute(2, 0, 1).float() / 255])[0].tensors)
        theirs = model.head(list(features.values()))["cls_logits"]
        ours = detector_of(imported)(image[None]).logits
    torch.testing.assert_close(ours, theirs[..., list(coco.IDS)], rtol=1e-4, atol=1e-4)


def test_old_spellings_of_torchvision(original, tmp_path):
    """In older versions the pyramid's convolutions, and RetinaNet's towers, stood bare in their lists."""
    architecture, model, path = original
    old = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[1] == "fpn" and "extra_blocks" not in key:
            parts.pop(4)
        if architecture == "retinanet_resnet50_fpn" and parts[:1] == ["head"] and parts[2] == "conv":
            parts[3:5] = [str(2 * int(parts[3]))]
        if "num_batches_tracked" not in key:  # as where BatchNorms were frozen
            old[".".join(["module", *parts])] = value
    torch.save({"state_dict": old}, tmp_path / "old.pth")
    new, older = (import_checkpoint(p, classes=CLASSES) for p in (path, tmp_path / "old.pth"))
    assert new.config == older.config and new.state.keys() == older.state.keys()
    assert all(torch.equal(value, older.state[key]) for key, value in new.state.items() if "num_batches" not in key)


def test_the_epsilon_that_torchvision_sets_for_its_own_retinanet(original, tmp_path, monkeypatch):
    architecture, _, path = original
    assert import_checkpoint(path, classes=CLASSES).config.backbone.norm_eps is None
    monkeypatch.setattr("models.importers.torchvision.sha256_starts", lambda path, digits: digits == "eeacb38b")
    eps = import_checkpoint(path, classes=CLASSES).config.backbone.norm_eps
    assert eps == (0.0 if architecture == "retinanet_resnet50_fpn" else None)
    assert import_checkpoint(path, classes=CLASSES, norm_eps=1e-3).config.backbone.norm_eps == 1e-3


def mmdet_state(architecture: str, backbone: str = "resnet50", classes: int = 80) -> dict[str, Tensor]:
    """Weights with mmdetection's names, made by renaming a detector of ours that has its conventions."""
    rules = merge(mmdet.conventions(architecture), {"backbone": {"name": backbone}})
    detector = Detector(model_config({**rules, "classes": [str(i) for i in range(classes)]}))
    kind = architecture.partition("-")[0]
    name = {"atss": "atss", "retinanet": "retina", "fcos": "conv"}[kind]
    renames = {
        "neck.laterals": "neck.lateral_convs", "neck.outputs": "neck.fpn_convs", "neck.extra.0": "neck.fpn_convs.3",
        "neck.extra.1": "neck.fpn_convs.4", "head.cls.": f"bbox_head.{name}_cls.",
        "head.box.": f"bbox_head.{name}_reg.",
        "head.quality.": f"bbox_head.{name}_centerness.", "head.cls_tower": "bbox_head.cls_convs",
        "head.box_tower": "bbox_head.reg_convs", ".norm.": ".gn.",
    }  # fmt: skip
    state = {}
    for key, value in detector.state_dict().items():
        if key == "head.scales":
            state |= {f"bbox_head.scales.{i}.scale": value[i] + i for i in range(5) if kind != "retinanet"}
            continue
        for ours, theirs in renames.items():
            key = key.replace(ours, theirs)
        state[key] = value
    return state


@pytest.mark.parametrize("architecture, backbone", [
    ("atss", "resnet50"), ("atss", "resnet101"), ("fcos", "resnet50"), ("fcos-improved", "resnet50"),
    ("retinanet", "resnet50"), ("retinanet", "resnet101"),
])  # fmt: skip
def test_mmdetections_architectures(tmp_path, architecture, backbone):
    state = mmdet_state(architecture, backbone)
    torch.save({"state_dict": state, "meta": {"epoch": 12}}, tmp_path / "m.pth")
    imported = import_checkpoint(tmp_path / "m.pth")
    assert (imported.source, imported.architecture) == ("mmdet", architecture)
    assert imported.config.classes == coco.NAMES and imported.config.backbone.name == backbone
    assert "style" in imported.notes[0]  # what else it says is in configs/peers: test_peer_configs.py
    assert imported.state["head.scales"].tolist() == ([1.0] * 5 if architecture == "retinanet" else [1, 2, 3, 4, 5])
    assert torch.equal(imported.state["neck.extra.1.conv.weight"], state["neck.fpn_convs.4.conv.weight"])
    detector_of(imported)


def test_old_spelling_and_what_mmdetections_files_say_of_themselves(tmp_path):
    state = {k.replace("bbox_head.conv_", "bbox_head.fcos_"): v for k, v in mmdet_state("fcos", classes=3).items()}
    text = ("model = dict(backbone=dict(style='pytorch'))\n"
            "img_norm_cfg = dict(\n    mean=[1.0, 2.5, 3.0], std=[4.0, 5.0, 6.0], to_rgb=True)\n"
            "train_pipeline = [dict(type='Resize', img_scale=[(1333, 640), (1333, 800)])]\n"
            "test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(1000, 600))]\n")  # fmt: skip
    torch.save({"state_dict": state, "meta": {"CLASSES": ("ant", "bee", "cat"), "config": text}}, tmp_path / "m.pth")
    config = import_checkpoint(tmp_path / "m.pth").config
    assert config.classes == ("ant", "bee", "cat") and config.backbone.style == "pytorch"
    assert (config.resize.rule, config.resize.short, config.resize.long) == ("short-side", 600, 1000)
    assert (config.pixels.order, config.pixels.mean, config.pixels.std) == ("rgb", (1.0, 2.5, 3.0), (4.0, 5.0, 6.0))
    torch.save({"state_dict": state, "meta": {"dataset_meta": {"classes": ["x", "y", "z"]}}}, tmp_path / "m.pth")
    imported = import_checkpoint(tmp_path / "m.pth", style="pytorch")
    assert imported.config.classes == ("x", "y", "z") and imported.notes == ()
    assert imported.config.pixels.order == "rgb"
    assert (imported.config.resize.short, imported.config.resize.rounding) == (800, "nearest")  # as published
    assert import_checkpoint(tmp_path / "m.pth", resize=(480, 640)).config.resize.long == 640
    with pytest.raises(ImportRefused, match="3 class outputs, but 2 class names"):
        import_checkpoint(tmp_path / "m.pth", classes=["x", "y"])
