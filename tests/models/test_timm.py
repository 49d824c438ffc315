"""Networks of the package timm: chosen by stride, loaded from its files, refused where they do not fit.

Where timm is not installed, what it gives is pictured as its documentation describes it; the tests at the end are
of timm itself.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isodet.strict import ConfigError
from models.backbones import Backbone, build_backbone
from models.config.model import BackboneConfig, model_config
from models.detector import Detector
from tests.models.small import with_statistics

with_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an extra: isodet[timm]")
# Plain; squeeze and excitation; global context; LayerNorms and a stem of patches; inverted bottlenecks.
NETWORKS = ["resnet18", "seresnet18", "gcresnext26ts", "convnext_atto", "mobilenetv3_small_050"]


def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def backbone(name: str, **keys: Any) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(BackboneConfig(name=name, **keys))


class _Pictured(nn.Module):
    """What timm.create_model(features_only=True) gives, as its documentation describes it."""

    def __init__(self, strides: tuple[int, ...]):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8 + i - 1, 8 + i, 1) for i in range(len(strides)))
        self.strides = strides
        self.norm = nn.BatchNorm2d(3)
        channels = [8 + i for i in range(len(strides))]
        self.feature_info = types.SimpleNamespace(reduction=lambda: list(strides), channels=lambda: channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, features, at = self.norm(x), [], 1
        for layer, stride in zip(self.layers, self.strides, strict=True):
            x, at = layer(x[..., :: stride // at, :: stride // at]), stride
            features.append(x)
        return features


def pretend_timm(monkeypatch: pytest.MonkeyPatch, strides: tuple[int, ...]) -> list[tuple[str, bool]]:
    made = []

    def create_model(name: str, pretrained: bool, features_only: bool, pretrained_cfg_overlay: Any) -> nn.Module:
        assert features_only and pretrained_cfg_overlay is None
        if name == "nothing":
            raise RuntimeError("Unknown model (nothing)")
        made.append((name, pretrained))
        return _Pictured(strides)

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    return made


def test_features_of_timm_are_chosen_by_stride(monkeypatch):
    """Without timm itself: the strides 4..32, the deepest of each, and its weights only where they are wanted."""
    made = pretend_timm(monkeypatch, (2, 4, 8, 16, 16, 32))
    model = backbone("timm:some_net", width=1.0, norm="frozen", weights="imagenet")
    assert model.channels == (9, 10, 12, 13) and [f.shape[-1] for f in model(images())] == [24, 12, 6, 3]
    assert not model.train().network.norm.training and not model.network.norm.weight.requires_grad
    build_backbone(BackboneConfig(name="timm:other", weights="imagenet"), load_weights=False)
    assert made == [("some_net", True), ("other", False)]
    with pytest.raises(ConfigError, match=r"timm could not make 'nothing'.*Unknown model"):
        backbone("timm:nothing", width=1.0)
    pretend_timm(monkeypatch, (16,))
    with pytest.raises(ConfigError, match=r"features at strides \[16\]; needed are 4, 8, 16 and 32"):
        backbone("timm:plain_transformer", width=1.0)


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs the package timm.*pip install 'isodet\[timm\]'"):
        backbone("timm:resnet18", width=1.0)


def test_a_network_that_does_not_keep_its_word_is_refused(monkeypatch):
    pretend_timm(monkeypatch, (4, 8, 16, 32))
    monkeypatch.setattr(_Pictured, "forward", lambda self, x: [x.new_zeros(1, 24, 16, 8)] * 4)
    with pytest.raises(ConfigError, match=r"channels_last gives features \[\(1, 24, 16, 8\), .*needed are \[\(1, 8"):
        backbone("timm:channels_last")

    def only_224(self: Any, x: Tensor) -> Tensor:
        raise AssertionError("Input height (64) doesn't match model (224).")

    monkeypatch.setattr(_Pictured, "forward", only_224)
    with pytest.raises(ConfigError, match=r"timm:fixed does not take pictures of 64x96 pixels: Input height"):
        backbone("timm:fixed")


# ------------------------------------------------------------------------------------ timm itself


@with_timm
@pytest.mark.parametrize("name", NETWORKS)
def test_features_learn_and_frozen_norms_stay(name):
    # timm starts the last norm of a block at zero, behind which a block whose norms are frozen learns nothing.
    model = with_statistics(backbone(f"timm:{name}", norm="frozen")).train()
    features = model(images())
    assert [tuple(f.shape) for f in features] == [
        (2, c, 64 // stride, 96 // stride) for c, stride in zip(model.channels, (4, 8, 16, 32), strict=True)
    ]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sum(f.square().mean() for f in features).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    norms = {id(t) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for t in [*m.parameters(), *m.buffers()]}
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert not (id(tensor) in norms and key in changed), key
    assert bool(norms) == (name != "convnext_atto") and len(changed) > 10


@with_timm
@pytest.mark.parametrize("name", NETWORKS)
def test_timms_own_files_load_and_compute_the_same(name, tmp_path):
    import timm

    torch.manual_seed(5)
    whole = timm.create_model(name).eval()
    path, part = tmp_path / "whole.pth", tmp_path / "part.pth"
    torch.save(whole.state_dict(), path)
    model = backbone(f"timm:{name}", weights=str(path)).eval()
    with torch.no_grad():
        theirs = whole.forward_intermediates(images(), intermediates_only=True)[-4:]
        for ours, expected in zip(model(images()), theirs, strict=True):
            torch.testing.assert_close(ours, expected)
    torch.save(dict(list(whole.state_dict().items())[3:]), part)
    with pytest.raises(ConfigError, match=rf"weights: the file does not fit timm:{name}: \d+ tensors missing"):
        backbone(f"timm:{name}", weights=str(part))
    other = "convnext_atto" if name != "convnext_atto" else "resnet18"
    with pytest.raises(ConfigError, match=f"timm:{other}|timm could not make '{other}'"):
        backbone(f"timm:{other}", weights=str(path))


@with_timm
@pytest.mark.parametrize(
    "name, message",
    [("swin_tiny_patch4_window7_224", "does not take pictures of 64x96 pixels"),
     ("vit_tiny_patch16_224", "has features at strides"), ("not_a_network", "Unknown model")],
)  # fmt: skip
def test_what_timm_has_and_a_detector_cannot_use(name, message):
    with pytest.raises(ConfigError, match=message):
        backbone(f"timm:{name}")


@with_timm
def test_a_detector_on_a_network_of_timm_restores_its_weights_on_its_own():
    config = model_config({"classes": ["a"], "input_size_hw": [64, 96], "backbone": {"name": "timm:seresnet18"},
                           "neck": {"channels": 16}, "head": {"depth": 1}})  # fmt: skip
    one, two = Detector(config).eval(), Detector(config, load_weights=False).eval()
    two.load_state_dict(one.state_dict())
    pictures = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(one(pictures).logits, two(pictures).logits)
