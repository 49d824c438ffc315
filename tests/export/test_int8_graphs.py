"""What 8-bit networks become as graphs: where the integers stand, and that ONNX Runtime computes the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from models.detector import Detector as Network
from models.layers.fuse import fuse
from models.quant import cpu_form, quantize
from tests.export.test_int8 import network, noise


def test_level_gains_go_into_the_scales_of_one_int8_weight():
    plain = network()
    ours = quantize(plain)
    ours.enable([])
    for a, b in zip(ours(noise(2)), plain(noise(2)), strict=True):  # absorbed, nothing rounded: the same network
        assert a is not None and b is not None
        # Gains of the norms are divided out and multiplied in again: float32's 6e-8 in each layer, over the depth.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    ours.enable()
    ours.calibrate([noise(4)], "minmax")
    folded = fuse(ours)
    with torch.no_grad():
        for a, b in zip(folded(noise(2)), ours(noise(2)), strict=True):
            assert a is not None and b is not None and torch.equal(a, b)
    conv = folded.graph.get_submodule("head.cls_tower.0.conv")
    scales = [conv.get_buffer(f"scale_{level}") for level in range(3)]
    assert all((scale > 0).all() for scale in scales) and not torch.equal(scales[0], scales[1])
    # Levels 1 and 2 have negative gains in channels where level 0 has none, and so weights of their own.
    assert len({name for name, _ in conv.named_buffers() if name.startswith("steps_")}) == 3


def outputs_of(model: Path, images: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # as the graph is written
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})


class Scores(torch.nn.Module):
    """What is compared: raw outputs, before thresholds and NMS make jumps of small differences."""

    def __init__(self, detector: Network):
        super().__init__()
        self.detector = detector

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        raw = self.detector(images)
        return raw.logits.sigmoid(), raw.boxes


NECKS: dict[str, dict[str, object]] = {
    "fpn": {"kind": "fpn", "channels": 16, "levels": [3, 5], "norm": "bn"},
    "reppan": {"kind": "reppan", "channels": 16, "levels": [3, 5]},
}


@pytest.mark.parametrize("form", ["tensorrt", "cpu"])
@pytest.mark.parametrize("neck", NECKS)
def test_eager_rounding_is_what_onnx_runtime_computes(tmp_path, form, neck):
    made = quantize(network(neck=NECKS[neck]))
    wider = cpu_form(made)
    ranges, images = wider.observe([noise(4), noise(2, 1)])
    assert images == 6
    made = wider if form == "cpu" else made
    made.set_ranges(ranges, "minmax")
    folded = fuse(made)
    path = tmp_path / "raw.onnx"
    torch.onnx.export(Scores(folded).eval(), (noise(2),), path, dynamo=True, opset_version=20, input_names=["images"],
                      verbose=False)  # fmt: skip
    with torch.no_grad():
        eager = [out.numpy() for out in Scores(folded)(noise(2, 5))]
        plain = [out.numpy() for out in Scores(network(neck=NECKS[neck]))(noise(2, 5))]
    for ours, theirs, unrounded in zip(eager, outputs_of(path, noise(2, 5).numpy()), plain, strict=True):
        rounding = np.abs(ours - unrounded).mean()
        # Sums in another order become the next whole number, of which random weights make more: a tenth of what
        # rounding itself changes. A wrong graph is as far away as that, or farther.
        assert np.abs(ours - theirs).mean() < 0.5 * rounding
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    if form == "cpu":
        optimized = tmp_path / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimized)
        options.intra_op_num_threads = 1
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        left = Counter(node.op_type for node in onnx.load(optimized).graph.node)
        # All but the predictions run in integers: two of them on each of three levels (quality is not read here).
        assert left["QLinearConv"] == kinds["Conv"] - 6 and left["Conv"] == 6
        assert left["QuantizeLinear"] == 1, "only the picture is rounded by a node of its own"


def test_concatenations_with_a_part_in_common_have_one_range_and_round_it_once():
    made = quantize(network(neck=NECKS["reppan"]))
    made.calibrate([noise(4)], "minmax")
    quants = made.fake_quants
    shared = [{float(quants[name].scale) for name in group} for group in made._groups if len(group) > 1]
    assert shared and all(len(scales) == 1 for scales in shared)
    before = sum("fake_quants" in str(node.target) for node in made.graph.graph.nodes)
    folded = fuse(made)
    assert sum("fake_quants" in str(node.target) for node in folded.graph.graph.nodes) < before
    for node in folded.graph.graph.nodes:  # enlarging reads rounded numbers
        if node.target is torch.nn.functional.interpolate:
            assert "fake_quants" in str(node.args[0].target)


def test_an_8_bit_network_with_a_half_rest_keeps_its_integers():
    made = quantize(network())
    made.calibrate([noise(4)], "minmax")
    whole, half = fuse(made), fuse(made)
    half.graph.half()
    steps = [buffer for name, buffer in half.graph.named_buffers() if "steps_" in name]
    assert steps and all(buffer.dtype == torch.int8 for buffer in steps)
    assert all((buffer > 0).all() for name, buffer in half.graph.named_buffers() if "scale" in name)
    with torch.no_grad():
        found = half.network(made.pixels(noise(2)).half())
        assert found.logits.dtype == torch.float32 and found.logits.isfinite().all()
        # Layer by layer: half's own rounding flips steps, which random weights make more of from layer to layer.
        for name in made.layers:
            conv, halved = whole.graph.get_submodule(name), half.graph.get_submodule(name)
            x = torch.randn(1, conv.get_buffer("steps_0").shape[1], 8, 8).half()
            # Half keeps 11 bits (5e-4) of scales, of sums and of outputs near 1; ten times that is no wrong integer.
            torch.testing.assert_close(halved(x).float(), conv(x.float()), rtol=1e-2, atol=1e-2)
