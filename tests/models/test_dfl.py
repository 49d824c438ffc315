"""Boxes as distributions: the loss and the mean against loops written from GFL, and what decodes them."""

from __future__ import annotations

import math
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from export.graph.form import _trace
from export.options import OnnxOptions
from isodet.strict import ConfigError
from models.assigners import assign
from models.checkpoint import build_detector
from models.coders import decode, mean_distances
from models.config.model import ModelConfig
from models.deploy.graph import Deploy
from models.detector import Detector, Raw
from models.loss import detection_loss
from models.losses.boxes import centerness, giou_loss
from models.losses.distribution import distribution_focal_loss
from models.quant import QuantConv2d, quantize
from tests.export.networks import save_network
from tests.models.small import BOXES, LABELS, SIZE, descend, grid_for, images, losses_without_objects, small

PRESETS: dict[str, dict[str, Any]] = {
    "gfl": {"detector": "gfl"},
    "atss": {"detector": "atss", "box": {"code": "dfl"}},
    "fcos": {"detector": "fcos", "box": {"code": "dfl", "bins": 8}},
    "tood": {"detector": "tood", "box": {"code": "dfl"}},
}


def loop_dfl(logits: list[float], y: float) -> float:
    """GFL, equation 6, for one side in float64."""
    largest = max(logits)
    total = sum(math.exp(x - largest) for x in logits)
    log_p = [x - largest - math.log(total) for x in logits]
    y = min(max(y, 0.0), len(logits) - 1.0)
    i = min(int(y), len(logits) - 2)
    return -((i + 1 - y) * log_p[i] + (y - i) * log_p[i + 1])


@given(st.integers(0, 2**20), st.sampled_from([2, 8, 17]))
def test_the_loss_is_the_papers(seed, bins):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(6, 4, bins, generator=generator)
    y = (torch.rand(6, 4, generator=generator) * 1.4 - 0.2) * bins  # some outside the range
    y[0] = torch.tensor([0.0, 1.0, bins - 1.0, bins - 2.0])
    loss = distribution_focal_loss(logits, y)
    expected = [[loop_dfl(logits[p, s].tolist(), float(y[p, s])) for s in range(4)] for p in range(6)]
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("y", [-1e6, -0.0, 0.5, 6.999999, 7.0, 1e6])
def test_the_loss_is_finite_and_least_where_the_mean_is_right(dtype, y):
    logits = torch.tensor([[6e4, -6e4, 0.0, 0, 0, 0, 0, 1.0]], dtype=dtype, requires_grad=True)
    loss = distribution_focal_loss(logits, torch.tensor([y]))
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.isfinite().all() and logits.grad.isfinite().all()
    free = torch.zeros(1, 8, requires_grad=True)
    optimizer = torch.optim.Adam([free], 0.3)
    for _ in range(200):
        optimizer.zero_grad()
        distribution_focal_loss(free, torch.tensor([y])).sum().backward()
        optimizer.step()
    mean = float((free.detach().softmax(-1) * torch.arange(8)).sum())
    assert mean == pytest.approx(min(max(y, 0), 7), abs=0.05)


def test_a_box_is_the_means_in_strides_around_its_point():
    """One point at a time, in float64: left, top, right, bottom."""
    config = small(**PRESETS["atss"])
    grid = grid_for(SIZE, config.anchors)
    codes = 3 * torch.randn(2, len(grid.strides), 64, generator=torch.Generator().manual_seed(0))
    boxes = decode(config.box, grid, codes)
    assert torch.equal(mean_distances(torch.zeros(1, 64), 16), torch.full((1, 4), 7.5))
    for n in range(0, len(grid.strides), 7):
        sides = []
        for s in range(4):
            weights = [math.exp(x) for x in codes[1, n, 16 * s : 16 * s + 16].tolist()]
            sides.append(sum(i * w for i, w in enumerate(weights)) / sum(weights) * float(grid.strides[n]))
        x, y = grid.points[n].tolist()
        expected = torch.tensor([x - sides[0], y - sides[1], x + sides[2], y + sides[3]])
        torch.testing.assert_close(boxes[1, n], expected, rtol=1e-5, atol=1e-3)


def outputs(config: ModelConfig) -> tuple[Raw, Any]:
    grid, generator = grid_for(SIZE, config.anchors), torch.Generator().manual_seed(0)
    N = len(grid.strides)
    quality = None if config.quality == "none" else torch.randn(2, N, generator=generator).requires_grad_()
    codes = torch.randn(2, N, config.box.channels, generator=generator)
    return Raw(torch.randn(2, N, 3, generator=generator).requires_grad_(), codes.requires_grad_(), quality), grid


@pytest.mark.parametrize("preset", ["gfl", "fcos"])
def test_the_loss_of_boxes_has_both_parts_with_the_same_weights_and_divisor(preset):
    config = small(**PRESETS[preset])
    raw, grid = outputs(config)
    matched = assign(config.assign, grid, BOXES, LABELS >= 0)
    boxes = decode(config.box, grid, raw.boxes)
    weighted, weights = torch.zeros(()), 0.0
    for b, n in (matched >= 0).nonzero().tolist():
        target = BOXES[b, matched[b, n]]
        scores = [1 / (1 + math.exp(-x)) for x in raw.logits[b, n].tolist()]
        weight = max(scores) if preset == "gfl" else float(centerness(grid.points[n], target))
        stride, (x, y) = float(grid.strides[n]), grid.points[n].tolist()
        distances = [x - target[0], y - target[1], target[2] - x, target[3] - y]
        bins = config.box.bins
        sides = [
            loop_dfl(raw.boxes[b, n, bins * s : bins * s + bins].tolist(), float(d) / stride)
            for s, d in enumerate(distances)
        ]
        weighted = weighted + weight * (config.box.weight * giou_loss(boxes[b, n], target) + 0.25 * sum(sides) / 4)
        weights += weight
    losses = detection_loss(config, raw, grid, BOXES, LABELS)
    torch.testing.assert_close(losses.box, weighted / max(weights, 1.0 if preset == "gfl" else 1e-6))
    losses.total.backward()
    assert raw.boxes.grad[matched >= 0].any(dim=-1).all() and not raw.boxes.grad[matched < 0].any()
    without = small(**{**PRESETS[preset], "box": {**PRESETS[preset].get("box", {}), "dfl_weight": 0}})
    assert detection_loss(without, raw, grid, BOXES, LABELS).box < losses.box


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("G", [0, 2])
def test_empty_pictures_have_no_box_loss(preset, G):
    config = small(**PRESETS[preset])
    raw, grid = outputs(config)
    losses = losses_without_objects(config, raw, grid, G)
    assert losses.box == 0 and not raw.boxes.grad.any()


@pytest.mark.parametrize("preset", PRESETS)
def test_it_learns_and_a_checkpoint_brings_it_back(preset, tmp_path):
    torch.manual_seed(0)
    config = small(**PRESETS[preset])
    model = Detector(config).train()
    assert model.head.box.out_channels == 4 * config.box.bins
    history = [sum(losses) for losses in descend(model, 25)]
    assert sum(history[-3:]) < 0.8 * sum(history[:3])
    again, _ = build_detector(save_network(tmp_path / "a.pt", model))
    with torch.no_grad():
        assert again.config == config and torch.equal(model.eval()(images()).boxes, again.eval()(images()).boxes)


def test_8_bits_leave_the_distributions_in_float():
    torch.manual_seed(0)
    model = Detector(small(**PRESETS["gfl"])).eval()
    ours = quantize(model)
    modules = dict(ours.graph.named_modules())
    assert not isinstance(modules["head.box"], QuantConv2d)
    assert isinstance(modules["head.box_tower.0.conv"], QuantConv2d)
    ours.calibrate([images(4)], "minmax")
    with torch.no_grad():
        plain, rounded = (mean_distances(network(images()).boxes, 17) for network in (model, ours))
        assert (plain - rounded).abs().max() < 0.05  # strides
        assert [out.shape for out in Deploy(ours)(images())] == [out.shape for out in Deploy(model)(images())]


def test_the_graph_has_a_softmax_over_candidates_only():
    deploy = Deploy(Detector(small(**PRESETS["gfl"])).eval()).eval()
    model = onnx.shape_inference.infer_shapes(_trace(deploy, OnnxOptions(batch=2), "portable"), data_prop=True)
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    assert shapes[softmax.output[0]] == [2, 50, 4, 17]


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"box": {"code": "dfl", "loss": "l1"}}, "box.loss: l1 is defined on delta codes; use giou with code: dfl"),
        ({"box": {"code": "dfl", "unit": "pixel"}}, "model.box.activation: it and unit belong to code: ltrb; dfl"),
        ({"box": {"code": "dfl", "activation": "relu"}}, "model.box.activation: it and unit belong to code: ltrb; dfl"),
        ({"box": {"code": "dfl", "clamp": "upper"}}, "model.box.clamp: upper belongs to code: delta; dfl"),
        ({"box": {"code": "dfl", "bins": 1}}, "model.box.bins: expected 2 to 256"),
        ({"box": {"code": "dfl", "dfl_weight": -1}}, "model.box.dfl_weight: expected 0 or a positive number"),
        ({"detector": "retinanet", "box": {"code": "dfl", "loss": "giou"}}, "anchors: box.code dfl needs one anchor"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(keys, message):
    with pytest.raises(ConfigError, match=message):
        small(**keys)
