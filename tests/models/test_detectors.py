"""Every preset, crossing and backbone through one set of tests: outputs, losses, folding, the graph's contract."""

from __future__ import annotations

import itertools

import pytest
import torch

from isodet.strict import ConfigError
from models.config.model import PRESETS, ModelConfig
from models.deploy.graph import Deploy
from models.detector import Detector
from models.layers.fuse import assert_fused, fuse
from models.loss import detection_loss
from tests.models.small import BOXES, LABELS, SIZE, images, small, with_statistics

BACKBONES = ("resnet18", "resnet34", "resnet50", "repvgg_a0")


def network(config: ModelConfig) -> Detector:
    torch.manual_seed(0)
    return Detector(config)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_outputs_have_one_form_in_training_and_in_inference(preset, backbone):
    config = small(detector=preset, backbone={"name": backbone, "width": 0.125})
    model = network(config)
    grid = model.priors()
    N = len(grid.boxes_xyxy)
    assert N == sum(grid.level_sizes) == (96 + 24 + 6 + 2 + 1) * config.anchors.per_cell
    for raw in (model.train()(images()), model.eval()(images())):
        assert raw.logits.shape == (2, N, 3) and raw.boxes.shape == (2, N, config.box.channels)
        assert all(part.dtype == torch.float32 for part in raw if part is not None)
        assert (raw.quality is None) == (config.quality == "none")
        assert raw.quality is None or raw.quality.shape == (2, N)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_class_starts_at_the_prior(preset):
    config = small(detector=preset, head={"depth": 1, "prior": 0.05})
    probability = network(config).eval()(images()).logits.detach().sigmoid()
    assert abs(float(probability.mean()) - 0.05) < 0.01


@pytest.mark.parametrize("levels", [[3, 7], [2, 5], [4, 6], [5, 5], [2, 7]])
@pytest.mark.parametrize("p6_from", ["p5", "c5"])
def test_any_range_of_levels(levels, p6_from):
    config = small(neck={"channels": 16, "levels": levels, "p6_from": p6_from})
    model = network(config).eval()
    assert model(images()).logits.shape[1] == len(model.priors().boxes_xyxy)


CROSSINGS = itertools.product(("atss", "iou", "center"), ("delta", "ltrb"), ("centerness", "iou", "none"))


@pytest.mark.parametrize("kind, code, quality", list(CROSSINGS))
def test_every_crossing_learns(kind, code, quality):
    """Twenty steps on one batch: each term that there is goes down."""
    config = small(assign={"kind": kind}, box={"code": code}, quality=quality, anchors={"size": 4.0})
    model = network(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    history = []
    for _ in range(20):
        losses = detection_loss(config, model(images()), model.priors(), BOXES, LABELS)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append([term.item() for term in losses])
    first, last = torch.tensor(history[:3]).mean(0), torch.tensor(history[-3:]).mean(0)
    assert last[0] < first[0] and last[1] < first[1]
    assert (last[2] == 0) if quality == "none" else torch.isfinite(last[2])


@pytest.mark.parametrize("preset", PRESETS)
def test_padding_changes_no_loss(preset):
    config = small(detector=preset)
    model = network(config).eval()
    raw, grid = model(images()), model.priors()
    tight = detection_loss(config, raw, grid, BOXES, LABELS)
    wide_boxes = torch.cat([BOXES, torch.tensor([4.0, 6.0, 40.0, 50.0]).expand(2, 3, 4)], dim=1)
    wide_labels = torch.cat([LABELS, torch.full((2, 3), -1)], dim=1)
    for a, b in zip(tight, detection_loss(config, raw, grid, wide_boxes, wide_labels), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_folded_network_computes_the_same_with_no_batchnorm_left(backbone):
    config = small(backbone={"name": backbone, "width": 0.125}, neck={"channels": 16, "norm": "bn"})
    model = with_statistics(network(config))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = fuse(model)
    assert_fused(model, fused, images())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("preset", PRESETS)
def test_the_graph_keeps_its_contract(preset):
    config = small(detector=preset, postprocess={"candidates": 50, "detections": 10, "score_threshold": 0.0})
    deploy = Deploy(network(config).eval()).eval()
    with torch.inference_mode():
        for count in (1, 3):
            num, boxes, scores, labels = deploy(images(count))
            outputs = ((num, torch.int32), (boxes, torch.float32), (scores, torch.float32), (labels, torch.int32))
            assert [tuple(o.shape) for o, _ in outputs] == [(count, 1), (count, 10, 4), (count, 10), (count, 10)]
            assert all(output.dtype == dtype for output, dtype in outputs)
            assert (scores[:, :-1] >= scores[:, 1:]).all()
            assert (boxes >= 0).all() and (boxes[..., ::2] <= SIZE[1]).all() and (boxes[..., 1::2] <= SIZE[0]).all()
            for row, n in enumerate(num[:, 0].tolist()):
                assert n > 0 and (scores[row, :n] > 0).all()
                assert not scores[row, n:].any() and not boxes[row, n:].any() and not labels[row, n:].any()


def test_nothing_above_the_threshold_is_nothing_at_all():
    config = small(postprocess={"candidates": 50, "detections": 10, "score_threshold": 0.99})
    with torch.inference_mode():
        outputs = Deploy(network(config).eval()).eval()(images())
    assert all(not output.any() for output in outputs)


@pytest.mark.parametrize("preset", PRESETS)
def test_candidates_are_the_flat_top_k(preset):
    """The two-step choice against sorting all N x C scores."""
    config = small(detector=preset)
    model = network(config).eval()
    deploy = Deploy(model).eval()
    with torch.inference_mode():
        raw = model(images())
        noise = torch.randn(raw.logits.shape, generator=torch.Generator().manual_seed(3))
        raw = raw._replace(logits=raw.logits + 2 * noise)
        _, scores, labels = deploy.candidates(raw)
        every = raw.logits.sigmoid()
        if raw.quality is not None:
            every = every * raw.quality.sigmoid()[..., None]
            every = every if preset == "gflv2" else every.sqrt()
        expected, index = every.flatten(1).topk(50, dim=1)
    torch.testing.assert_close(scores, expected)
    assert torch.equal(labels, index % 3)


def test_colors_are_ordered_and_normalized_inside():
    """A pure blue BGR picture is, for a network that wants RGB, the last channel."""
    config = small(pixels={"order": "rgb", "mean": [1.0, 2.0, 3.0], "std": [2.0, 4.0, 8.0]})
    blue = torch.zeros(1, *SIZE, 3, dtype=torch.uint8)
    blue[..., 0] = 255
    x = network(config).pixels(blue)
    assert x.shape == (1, 3, *SIZE) and x.dtype == torch.float32
    assert x[0, :, 0, 0].tolist() == [-1 / 2, -2 / 4, (255 - 3) / 8]


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"detectr": "atss"}, r"unknown key 'model.detectr'; did you mean 'detector'"),
        ({"backbone": {"width": "wide"}}, "model.backbone.width: expected a number, got 'wide'"),
        ({"assign": {"kind": "center"}, "detector": "retinanet"}, "assign.kind center needs one anchor per cell"),
        ({"backbone": 3}, "model.backbone: expected a mapping of keys, got 3"),
    ],
)
def test_a_mistake_in_the_config_is_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        small(**keys)


def test_an_inference_first_does_not_spoil_training():
    """Tensors made in inference mode cannot take part in a backward pass; the cached grid must not be one."""
    model = network(small())
    with torch.inference_mode():
        Deploy(model.eval())(images())
        model.priors()
    model.train()
    detection_loss(model.config, model(images()), model.priors(), BOXES, LABELS).total.backward()
