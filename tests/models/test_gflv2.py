"""The quality that is read off distributions (GFLv2): against loops, in the loss, in scores, as a graph, in 8 bits."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from export.graph.form import _trace
from export.graph.form import simplified as _simplified
from export.options import OnnxOptions
from isodet.strict import ConfigError
from models.assigners import assign
from models.boxes import iou
from models.checkpoint import build_detector, start_from
from models.coders import decode
from models.config.model import ModelConfig
from models.deploy.graph import Deploy
from models.detector import Detector, Raw
from models.layers.distribution import DistributionQuality
from models.layers.fuse import fuse
from models.loss import detection_loss, score_logits
from models.losses.boxes import giou_loss
from models.losses.classification import joint_logits, quality_focal_loss
from models.quant import QuantConv2d, cpu_form, quantize
from tests.export.networks import save_network
from tests.models.small import (
    BOXES,
    LABELS,
    SIZE,
    descend,
    grid_for,
    images,
    losses_without_objects,
    small,
    with_statistics,
)
from tests.models.test_dfl import loop_dfl


def gflv2(**keys: Any) -> ModelConfig:
    return small(detector="gflv2", **keys)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def detector(**keys: Any) -> Detector:
    """Random weights under which distributions, and what is read off them, differ from point to point."""
    torch.manual_seed(0)
    model = Detector(gflv2(**keys))
    for p in model.head.parameters():
        if p.ndim >= 2:
            nn.init.normal_(p, std=0.2)
    for layer in (model.head.quality.hidden, model.head.quality.out):
        nn.init.normal_(layer.weight, std=1.0)
        nn.init.normal_(layer.bias)
    model = with_statistics(model)
    with torch.no_grad():
        model.head.quality.out.bias -= model(images()).quality.mean()
    return model


def loop_quality(branch: DistributionQuality, codes: list[float]) -> float:
    """GFLv2, section 3.2, for one point in float64: 4 largest of each side and their mean, two layers, no sigmoid."""
    bins, statistics = branch.bins, []
    for side in range(4):
        logits = codes[bins * side : bins * side + bins]
        weights = [math.exp(x - max(logits)) for x in logits]
        largest = sorted((w / sum(weights) for w in weights), reverse=True)[:4]
        statistics += [*largest, sum(largest) / 4]
    hidden = [
        max(0.0, sum(w * s for w, s in zip(row, statistics, strict=True)) + b)
        for row, b in zip(branch.hidden.weight.tolist(), branch.hidden.bias.tolist(), strict=True)
    ]
    return sum(w * h for w, h in zip(branch.out.weight[0].tolist(), hidden, strict=True)) + branch.out.bias.item()


@pytest.mark.parametrize("shape", [(0, 129), (2, 0)])
def test_nothing_has_no_quality(shape):
    assert DistributionQuality(17)(torch.zeros(*shape, 68)).shape == shape


@given(st.integers(0, 2**20), st.sampled_from([4, 8, 17]))
def test_the_quality_is_the_papers(seed, bins):
    torch.manual_seed(seed)
    branch = DistributionQuality(bins)
    assert sum(p.numel() for p in branch.parameters() if p.ndim == 2) == 1344
    codes = 3 * torch.randn(2, 5, 4 * bins)
    expected = [[loop_quality(branch, point.tolist()) for point in picture] for picture in codes]
    torch.testing.assert_close(branch(codes).detach(), torch.tensor(expected), rtol=1e-4, atol=1e-5)


EXTREMES = [-6e4, -200.0, -30.0, -1.0, 0.0, 2.0, 30.0, 200.0, 6e4]


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=2), st.floats(0, 1), st.sampled_from([0.0, 1.0, 2.0]))
def test_the_loss_is_that_of_the_product(pair, target, gamma):
    """The authors' form: cross entropy of the probability, times |t - p|^gamma; in float64, where p is no 0 or 1."""
    (x, y), t = pair, target
    p = sigmoid(x) * sigmoid(y)
    no = sigmoid(-x) + sigmoid(x) * sigmoid(-y)  # 1 - p, exactly also where p rounds to 1
    expected = abs(t - p) ** gamma * -(t * math.log(p) + (1 - t) * math.log(no))
    logits = joint_logits(torch.tensor([x]), torch.tensor([y]))
    assert float(logits.double().sigmoid()) == pytest.approx(p, rel=1e-4, abs=1e-30)
    assert float(quality_focal_loss(logits, torch.tensor([t]), gamma)) == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_the_loss_of_the_product_is_finite_where_the_product_is_0_or_1(dtype, target):
    x = torch.tensor(EXTREMES, dtype=dtype)[:, None].requires_grad_()
    y = torch.tensor(EXTREMES, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        logits = joint_logits(x, y)
        loss = quality_focal_loss(logits, torch.full_like(logits, target))
    loss.sum().backward()
    assert logits.dtype == loss.dtype == torch.float32 and loss.isfinite().all()
    assert x.grad.isfinite().all() and y.grad.isfinite().all() and x.grad.any()


# ---------------------------------------------------------------------------------------------
# in the loss


def outputs(config: ModelConfig) -> tuple[Raw, Any]:
    grid, generator = grid_for(SIZE, config.anchors), torch.Generator().manual_seed(0)
    N = len(grid.strides)
    sizes = ((2, N, 3), (2, N, config.box.channels), (2, N))
    return Raw(*(torch.randn(size, generator=generator).requires_grad_() for size in sizes)), grid


@pytest.mark.parametrize("G", [0, 2])
def test_empty_pictures_teach_background_only(G):
    raw, grid = outputs(gflv2())
    losses = losses_without_objects(gflv2(), raw, grid, G)
    assert losses.cls > 0 and losses.box == losses.quality == 0
    assert not raw.boxes.grad.any() and raw.quality.grad.all() and raw.logits.grad.all()


def test_classes_learn_the_iou_by_the_product_and_boxes_count_by_it():
    """Point by point and class by class, as in the authors' code."""
    config = gflv2()
    raw, grid = outputs(config)
    matched = assign(config.assign, grid, BOXES, LABELS >= 0)
    boxes = decode(config.box, grid, raw.boxes)
    cls, weighted, weights = 0.0, 0.0, 0.0
    for b in range(2):
        for n in range(len(grid.strides)):
            product = [sigmoid(x) * sigmoid(raw.quality[b, n].item()) for x in raw.logits[b, n].tolist()]
            target, g = [0.0, 0.0, 0.0], int(matched[b, n])
            if g >= 0:
                overlap = float(iou(boxes[b, n].detach(), BOXES[b, g]))
                target[int(LABELS[b, g])] = overlap
                (x, y), stride, box = grid.points[n].tolist(), float(grid.strides[n]), BOXES[b, g].tolist()
                sides = [
                    loop_dfl(raw.boxes[b, n, 17 * s : 17 * s + 17].tolist(), distance / stride)
                    for s, distance in enumerate([x - box[0], y - box[1], box[2] - x, box[3] - y])
                ]
                loss = 2 * float(giou_loss(boxes[b, n].detach(), BOXES[b, g])) + 0.25 * sum(sides) / 4
                weighted, weights = weighted + max(product) * loss, weights + max(product)
            for p, t in zip(product, target, strict=True):
                cls += (t - p) ** 2 * -(t * math.log(p) + (1 - t) * math.log(1 - p))
    divisor = int((matched >= 0).sum(dim=1).clamp(min=1).sum())
    losses = detection_loss(config, raw, grid, BOXES, LABELS)
    assert losses.cls.item() == pytest.approx(cls / divisor, rel=1e-4)
    assert losses.box.item() == pytest.approx(weighted / max(weights, 1.0), rel=1e-4)
    assert losses.quality == 0
    losses.cls.backward()
    assert raw.quality.grad.all() and raw.boxes.grad is None


def test_the_score_of_another_quality_is_the_classes_own():
    config = small()
    raw, _ = outputs(config)
    assert score_logits(config, raw) is raw.logits


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_the_loss_of_classes_reaches_the_distributions(amp):
    """As in the authors' code nothing is detached, and every gradient is finite under autocast too."""
    model = detector().train()
    with torch.autocast("cpu", amp, enabled=amp is not None):
        raw = model(images())
    assert all(part.dtype == torch.float32 for part in raw)
    losses = detection_loss(model.config, raw, model.priors(), BOXES, LABELS)
    losses.cls.backward()
    head = model.head
    for p in (head.box.weight, head.quality.hidden.weight, head.quality.out.weight, head.cls.weight):
        assert p.grad.isfinite().all() and p.grad.any()


def test_the_product_is_learned_to_be_the_iou():
    """Descending on logits and quality alone ends at the IoU of each positive's box."""
    config = gflv2(loss={"cls": "qfl", "gamma": 1.0})
    raw, grid = outputs(config)
    matched = assign(config.assign, grid, BOXES, LABELS >= 0)
    optimizer = torch.optim.Adam([raw.logits, raw.quality], 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        detection_loss(config, raw, grid, BOXES, LABELS).cls.backward()
        optimizer.step()
    image, prior = (matched >= 0).nonzero(as_tuple=True)
    owner = matched[image, prior]
    overlap = iou(decode(config.box, grid, raw.boxes.detach())[image, prior], BOXES[image, owner])
    score = score_logits(config, raw).detach().sigmoid()[image, prior]
    torch.testing.assert_close(score.gather(1, LABELS[image, owner][:, None])[:, 0], overlap, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "keys",
    [{}, {"loss": {"cls": "vfl"}}, {"detector": "tood", "box": {"code": "dfl"}, "quality": "distribution"}],
    ids=["gflv2", "vfl", "tood"],
)
def test_it_learns_and_a_checkpoint_brings_it_back(keys, tmp_path):
    torch.manual_seed(0)
    config = small(**{"detector": "gflv2", **keys})
    model = Detector(config).train()
    history = [sum(losses) for losses in descend(model, 25)]
    assert sum(history[-3:]) < 0.9 * sum(history[:3])
    again, _ = build_detector(save_network(tmp_path / "a.pt", model))
    with torch.no_grad():
        assert again.config == config
        assert all(torch.equal(a, b) for a, b in zip(model.eval()(images()), again.eval()(images()), strict=True))


def test_it_starts_from_the_first_version_with_a_quality_that_is_new(tmp_path):
    first = Detector(small(detector="gfl"))
    path, second = save_network(tmp_path / "gfl.pt", first), Detector(gflv2())
    assert not [key for key in first.state_dict() if key.startswith("head.quality")]
    message = start_from(second, path)
    assert "head.quality starts anew" in message and torch.equal(first.head.box.weight, second.head.box.weight)


# ---------------------------------------------------------------------------------------------
# deployed


@pytest.mark.parametrize("score", ["geometric", "product"])
@pytest.mark.parametrize("level_candidates", [0, 30])
def test_the_score_is_the_product_that_was_learned(score, level_candidates):
    post = {"candidates": 50, "detections": 10, "score": score, "level_candidates": level_candidates}
    model = detector(postprocess=post)
    deploy = Deploy(model).eval()
    with torch.no_grad():
        raw = model(images())
        _, scores, _ = deploy.candidates(raw)
        expected = score_logits(model.config, raw).sigmoid()
    assert raw.quality.std() > 0.1
    torch.testing.assert_close(scores[:, 0], expected.flatten(1).amax(dim=1))
    if level_candidates == 0:
        torch.testing.assert_close(scores, expected.flatten(1).topk(50, dim=1).values)


class Outputs(nn.Module):
    """Raw outputs, before thresholds and NMS make jumps of small differences."""

    def __init__(self, model: Detector):
        super().__init__()
        self.detector = model

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        raw = self.detector(pictures)
        assert raw.quality is not None
        return raw.logits.sigmoid(), raw.boxes, raw.quality.sigmoid()


def run(path: Path) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # as the graph is written
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images().numpy()})


def exported(model: Detector, path: Path) -> Path:
    torch.onnx.export(Outputs(model).eval(), (images(),), path, dynamo=True, opset_version=20, input_names=["images"],
                      verbose=False)  # fmt: skip
    return path


def test_onnx_computes_the_same_quality(tmp_path):
    model = fuse(detector())
    with torch.no_grad():
        expected = Outputs(model)(images())
    assert expected[2].std() > 0.05
    for ours, theirs in zip(expected, run(exported(model, tmp_path / "raw.onnx")), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["float", "half"])
def test_the_graph_finds_what_pytorch_finds(tmp_path, form):
    deploy = Deploy(detector(postprocess={"candidates": 50, "detections": 10, "score_threshold": 0.0})).eval()
    with torch.no_grad():
        expected = [out.numpy() for out in deploy(images())]
    if form == "half":
        deploy = deploy.halve()
        assert deploy.detector.head.quality.out.weight.dtype == torch.float16
    path = tmp_path / "graph.onnx"
    onnx.save(_simplified(_trace(deploy, OnnxOptions(batch=2), "portable")), path)
    found = run(path)
    assert (expected[0] == 10).all() and (found[0] == 10).all()
    # Half's steps of 5e-4, over the depth of a network with weights as large as these.
    np.testing.assert_allclose(found[2], expected[2], atol=1e-4 if form == "float" else 3e-2)
    if form == "float":
        np.testing.assert_allclose(found[1], expected[1], atol=1e-2)


def test_8_bits_leave_the_quality_in_float_and_learn_on():
    model = detector()
    ours = quantize(model)
    modules = dict(ours.graph.named_modules())
    assert type(modules["head.quality.hidden"]) is type(modules["head.quality.out"]) is nn.Linear
    assert not [name for name in ours.fake_quants if "quality" in name]
    assert isinstance(modules["head.box_tower.0.conv"], QuantConv2d)
    ours.enable([])  # nothing rounded: the same network
    for a, b in zip(ours(images()), model(images()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    ours.enable()
    ours.calibrate([images(4)], "minmax")
    ours.train()
    detection_loss(model.config, ours(images()), ours.priors(), BOXES, LABELS).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in modules["head.quality.out"].parameters())


@pytest.mark.parametrize("form", ["tensorrt", "cpu"])
def test_8_bits_are_what_onnx_runtime_computes(tmp_path, form):
    model = detector()
    made = quantize(model)
    wider = cpu_form(made)
    ranges, _ = wider.observe([images(4)])
    made = wider if form == "cpu" else made
    made.set_ranges(ranges, "minmax")
    folded = fuse(made)
    with torch.no_grad():
        plain, eager = Outputs(model)(images()), Outputs(folded)(images())
        assert [out.shape for out in Deploy(made.eval())(images())] == [out.shape for out in Deploy(model)(images())]
    found = run(exported(folded, tmp_path / "raw.onnx"))
    for ours, theirs, unrounded in zip(eager, found, plain, strict=True):
        # Sums in another order become the next whole number now and then; a wrong graph is as far away as rounding is.
        assert np.abs(ours.numpy() - theirs).mean() < 0.5 * (ours - unrounded).abs().mean()


# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"box": {"code": "ltrb"}}, "quality: distribution reads .* of box.code: dfl.*got box.code: ltrb"),
        ({"box": {"bins": 3}}, "box.bins: expected 4 or more"),
        ({"loss": {"cls": "focal"}}, "loss.cls: quality: distribution .*use loss.cls: qfl or vfl"),
        ({"loss": {"cls": "bce"}}, "loss.cls: quality: distribution"),
        ({"loss": {"cls": "ghm"}}, "loss.cls: quality: distribution"),
        ({"loss": {"cls": "mine:loss"}}, "loss.cls: quality: distribution"),
        ({"head": {"quality_on": "cls"}}, "head.quality_on: quality: distribution reads boxes and no tower"),
        ({"anchors": {"scales_per_octave": 3}}, "anchors: box.code dfl needs one anchor"),
        ({"quality": "distributions"}, "quality: expected one of centerness, iou, distribution, none"),
        ({"detector": "atss", "quality": "distribution"}, "quality: distribution reads the distributions"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(keys, message):
    with pytest.raises(ConfigError, match=message):
        small(**{"detector": "gflv2", **keys})
