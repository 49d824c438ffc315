"""Backbones: shapes, torchvision's mathematics, norms that stay, stages that stay, dilation, folding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from isodet.strict import ConfigError
from models.backbones import Backbone, build_backbone
from models.config.choices import BACKBONES
from models.config.model import BackboneConfig, model_config
from models.detector import Detector
from models.layers.fuse import FuseError, assert_fused, fuse
from models.loss import detection_loss
from tests.models.small import BOXES, LABELS, small, with_statistics
from tests.models.small import images as pictures
from trainer.optim import parameter_groups


def images(height: int = 64, width: int = 96, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def backbone(name: str, **keys: Any) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(BackboneConfig(name=name, **{"width": 0.125, **keys}))


@pytest.mark.parametrize("name", BACKBONES)
def test_features_and_folding(name):
    model = backbone(name)
    features = model(images(64, 96))
    assert [tuple(f.shape) for f in features] == [
        (2, c, 64 // stride, 96 // stride) for c, stride in zip(model.channels, (4, 8, 16, 32), strict=True)
    ]
    sum(f.sum() for f in features).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    # As a child, as in a detector: the walker replaces children.
    whole = with_statistics(nn.Sequential(model))
    fused = fuse(whole)
    assert any(isinstance(m, nn.BatchNorm2d) for m in whole.modules())
    assert not any(isinstance(m, _BatchNorm) for m in fused.modules())
    assert_fused(whole[0], fused[0], images())
    with pytest.raises(FuseError, match="eval"):
        fuse(whole.train())


@pytest.mark.parametrize("height, width", [(65, 97), (90, 71)])
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_lite0", "qarepvgg_a0"]
)
def test_odd_sizes_round_up(name, height, width):
    for feature, stride in zip(backbone(name).eval()(images(height, width)), (4, 8, 16, 32), strict=True):
        assert tuple(feature.shape[-2:]) == (-(-height // stride), -(-width // stride))


def torchvision_features(name: str, x: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Weights and C2..C5 of torchvision's own network with random weights and statistics."""
    torch.manual_seed(3)
    network = with_statistics(torchvision.models.get_model(name, weights=None))
    features: list[Tensor] = []
    if name.startswith("mobilenet"):
        y = x
        for i, layer in enumerate(network.features):
            y = layer(y)
            if i in {"mobilenet_v2": (3, 6, 13, 18), "mobilenet_v3_large": (3, 6, 12, 16)}[name]:
                features.append(y)
    else:
        y = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        for layer in (network.layer1, network.layer2, network.layer3, network.layer4):
            y = layer(y)
            features.append(y)
    return network.state_dict(), features


@pytest.mark.parametrize("name", ["resnet34", "resnet101", "resnext50_32x4d", "mobilenet_v2", "mobilenet_v3_large"])
def test_torchvisions_files_load_and_compute_the_same(name, tmp_path):
    x = images(64, 64, 1)
    with torch.inference_mode():
        state, theirs = torchvision_features(name, x)
        torch.save(state, tmp_path / "w.pth")
        model = build_backbone(BackboneConfig(name=name, weights=str(tmp_path / "w.pth"))).eval()
        for ours, expected in zip(model(x), theirs, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().amax()))


@pytest.mark.parametrize("name", [name for name, part in BACKBONES.items() if part.imagenet == "torchvision"])
def test_torchvision_has_weights_for_every_name_that_may_ask(name):
    assert BackboneConfig(name=name, weights="imagenet")
    enums = torchvision.models.get_model_weights(name)
    assert enums.DEFAULT.url.startswith("https://")
    if name != "resnext101_64x4d":
        assert enums["IMAGENET1K_V1"].url.startswith("https://")


def test_imagenet_v1_is_torchvisions_first_file(monkeypatch):
    asked = []

    def fetch(weights: Any, *_: Any, **__: Any) -> dict[str, Tensor]:
        asked.append(weights.name)
        return torchvision.models.get_model("resnet50", weights=None).state_dict()

    monkeypatch.setattr("torchvision.models.ResNet50_Weights.get_state_dict", fetch)
    for weights in ("imagenet", "imagenet_v1"):
        build_backbone(BackboneConfig(weights=weights))
    assert asked == ["IMAGENET1K_V2", "IMAGENET1K_V1"]


def test_caffe_style_strides_in_the_first_1x1():
    pytorch, caffe = backbone("resnet50"), backbone("resnet50", style="caffe")
    assert pytorch.layer2[0].conv2.stride == caffe.layer2[0].conv1.stride == (2, 2)
    assert pytorch.layer2[0].conv1.stride == caffe.layer2[0].conv2.stride == (1, 1)
    caffe.load_state_dict(pytorch.state_dict())
    # By hand: the same bottleneck, with the picture of a strided 1x1 taken by slicing.
    block = with_statistics(caffe).layer2[0]
    x = caffe(images())[0]
    y = torch.relu(block.bn1(nn.functional.conv2d(x[..., ::2, ::2], block.conv1.weight)))
    y = torch.relu(block.bn2(nn.functional.conv2d(y, block.conv2.weight, padding=1)))
    y = block.bn3(block.conv3(y)) + block.downsample[1](
        nn.functional.conv2d(x[..., ::2, ::2], block.downsample[0].weight)
    )
    torch.testing.assert_close(block(x), torch.relu(y))


@pytest.mark.parametrize(
    "name, keys",
    [("resnet18", {}), ("resnet50", {}), ("resnet50", {"style": "caffe"}), ("resnext50_32x4d", {}),
     ("mobilenet_v2", {}), ("mobilenet_v3_large", {})],
)  # fmt: skip
def test_a_dilated_last_stage_computes_the_same_at_every_second_cell(name, keys):
    plain = with_statistics(backbone(name, **keys))
    dilated = backbone(name, dilated=True, **keys)
    dilated.load_state_dict(plain.state_dict())
    for model in (plain, dilated):  # a squeeze over the whole map sees other maps at another stride
        for module in model.modules():
            if isinstance(module, torchvision.ops.SqueezeExcitation):
                module.avgpool = _First()
    dilated.eval()
    with torch.inference_mode():
        (c2, c3, _, c5), (d2, d3, d5) = plain(images()), dilated(images())
    assert torch.equal(c2, d2) and torch.equal(c3, d3) and d5.shape[-2:] == (64 // 16, 96 // 16)
    assert dilated.channels == (plain.channels[0], plain.channels[1], plain.channels[3])
    torch.testing.assert_close(d5[..., ::2, ::2], c5, rtol=1e-4, atol=1e-5 * float(c5.abs().amax()))


class _First(nn.Module):
    """Instead of an average over the map, its first cell, which both resolutions share."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :1, :1]


@pytest.mark.parametrize("kind", ["fpn", "pafpn", "bifpn", "reppan"])
@pytest.mark.parametrize("p6_from", ["p5", "c5"])
def test_levels_keep_their_strides_above_a_dilated_backbone(kind, p6_from):
    neck = {"kind": kind, "channels": 16, "p6_from": p6_from}
    model = Detector(small(backbone={"name": "resnet18", "width": 0.125, "dilated": True}, neck=neck)).eval()
    assert model(pictures(1)).logits.shape[1] == len(model.priors().boxes_xyxy)


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "mobilenet_v2", "repvgg_a0", "qarepvgg_a0"])
@pytest.mark.parametrize("stages", [0, 1, 3, 5])
def test_frozen_stages_never_change(name, stages):
    model = backbone(name, frozen_stages=stages).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    parts = model.stem_and_stages()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if parameters:
        optimizer = torch.optim.SGD(parameters, 0.1)
        sum(f.square().mean() for f in model(images())).backward()
        optimizer.step()
    changed = moved(model, before)
    for i, part in enumerate(parts):
        ids = {id(t) for module in part for t in [*module.parameters(), *module.buffers()]}
        names = {name for name, t in [*model.named_parameters(), *model.named_buffers()] if id(t) in ids}
        assert names and (not names & changed if i < stages else names & changed), f"part {i}"
        assert all(p.requires_grad == (i >= stages) for module in part for p in module.parameters())


def test_frozen_norms_neither_count_nor_learn_and_the_optimizer_never_sees_them():
    frozen = {"name": "resnet18", "width": 0.125, "norm": "frozen", "frozen_stages": 1}
    model = Detector(small(backbone=frozen, neck={"channels": 16, "norm": "bn"})).train()
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms) and model.neck.laterals[0].norm.training
    fixed = {id(p) for m in [*norms, model.backbone.conv1] for p in m.parameters()}
    given = {id(p) for group in parameter_groups(model, 0.1) for p in group["params"]}
    assert not fixed & given and given == {id(p) for p in model.parameters() if p.requires_grad}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    detection_loss(model.config, model(pictures()), model.priors(), BOXES, LABELS).total.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    changed = moved(model, before)
    assert not {n for n in changed if n.startswith("backbone") and ("bn" in n or "downsample.1" in n or ".conv1." in n
                                                                    and "layer" not in n)}  # fmt: skip
    assert {"backbone.layer1.0.conv1.weight", "neck.laterals.0.norm.running_mean"} <= changed
    fuse(model.eval())
    assert not any(m.training for m in norms) and all(not m.training for m in model.train().backbone.modules()
                                                      if isinstance(m, nn.BatchNorm2d))  # fmt: skip


@pytest.mark.parametrize("norm, kind", [("sync", nn.SyncBatchNorm), ("gn", nn.GroupNorm), ("bn", nn.BatchNorm2d)])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_large"])
def test_kinds_of_norm(name, norm, kind):
    model = backbone(name, norm=norm, norm_eps=0.25)
    norms = [m for m in model.modules() if isinstance(m, (_BatchNorm, nn.GroupNorm))]
    assert norms and {type(m) for m in norms} == {kind} and {m.eps for m in norms} == {0.25}
    features = model.train()(images())
    sum(f.sum() for f in features).backward()
    whole = with_statistics(nn.Sequential(model))
    fused = fuse(whole)
    assert any(isinstance(m, kind) for m in fused.modules()) == (norm == "gn")
    assert_fused(whole[0], fused[0], images())


def test_epsilon_is_the_networks_own_unless_told():
    for name, eps in (("resnet18", 1e-5), ("mobilenet_v3_large", 1e-3)):
        assert {m.eps for m in backbone(name).modules() if isinstance(m, nn.BatchNorm2d)} == {eps}
    model = backbone("resnet18", norm="frozen", norm_eps=0.0)  # as torchvision's first RetinaNet
    whole = with_statistics(nn.Sequential(model))
    assert_fused(whole[0], fuse(whole)[0], images())


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"name": "resnet19"}, "did you mean 'resnet18'"),
        ({"name": "timm:"}, "name: expected a backbone or timm:NAME"),
        ({"name": "resnet18", "style": "caffe"}, "style: caffe is about bottlenecks, of which resnet18 has none"),
        ({"name": "mobilenet_v2", "style": "caffe"}, "set style: pytorch"),
        ({"name": "repvgg_b1", "norm": "gn"}, "norm: gn does not fit repvgg_b1"),
        ({"name": "qarepvgg_a0", "dilated": True}, "dilated: true does not fit qarepvgg_a0"),
        ({"name": "repvgg_a0", "weights": "imagenet_v1"}, "nobody publishes imagenet_v1 weights for repvgg_a0"),
        ({"name": "resnext101_32x4d", "weights": "imagenet"}, "nobody publishes imagenet weights for resnext101_32x4d"),
        ({"style": "caffe", "weights": "imagenet"}, "not made for style: caffe; give a path"),
        ({"norm": "gn", "weights": "imagenet_v1"}, "not made for GroupNorms; give a path"),
        ({"name": "timm:resnet18", "norm": "gn"}, "a network of timm comes as it is"),
        ({"name": "timm:resnet18", "frozen_stages": 2}, "a network of timm comes as it is"),
        ({"frozen_stages": 6}, "frozen_stages: expected 0 to 5"),
        ({"norm_eps": -1.0}, "norm_eps: expected null, or 0 up to 1"),
        ({"width": 0.5, "weights": "imagenet"}, "needs width 1.0"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(keys, message):
    with pytest.raises(ConfigError, match=message):
        BackboneConfig(**keys)


def test_a_dilated_backbone_has_nothing_at_stride_32_to_begin_with():
    with pytest.raises(ConfigError, match="neck.levels: a dilated backbone ends at stride 16"):
        model_config({"classes": ["a"], "backbone": {"dilated": True}, "neck": {"levels": [5, 7]}})
