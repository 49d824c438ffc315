"""8 bits: the arithmetic is ONNX's, and rounding stands where an engine has integers."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, fx, nn

import export
from models.checkpoint import build_detector, read_checkpoint, save_checkpoint
from models.deploy.graph import Deploy
from models.detector import Detector
from models.quant import FakeQuant, IntConv2d, QuantConv2d, QuantError, quantize
from models.quant.fake_quant import rounded
from runtime import Detector as Runtime
from runtime import read_coco, read_image
from runtime.evaluation.evaluate import evaluate
from tests.at_fault import raises
from tests.models.small import images, small


def detector(**keys: object) -> Detector:
    torch.manual_seed(0)
    neck = {"channels": 16, "levels": [3, 5], "norm": "bn"}
    return Detector(small(**{"backbone": {"name": "resnet18", "width": 0.25}, "neck": neck, **keys})).eval()


def test_rounding_is_that_of_onnx_to_the_last_bit():
    """Half steps, values beyond the range, values of any magnitude, and scales that are no powers of two."""
    rng = np.random.default_rng(0)
    node = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]  # fmt: skip
    graph = helper.make_graph(
        node, "pair",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
         helper.make_tensor_value_info("s", TensorProto.FLOAT, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("z", TensorProto.INT8, [], [0])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for scale in (1.0, 0.1, 3.7e-3, 7.3e4):
        steps = np.concatenate([np.arange(-200, 201) / 2, rng.uniform(-140, 140, 100_000)])
        x = np.concatenate([steps * scale, rng.normal(0, 1, 1000) * 10.0 ** rng.integers(-8, 8, 1000)]).astype("f4")
        theirs = session.run(None, {"x": x, "s": np.array(scale, np.float32)})[0]
        np.testing.assert_array_equal(rounded(torch.from_numpy(x), torch.tensor(scale)).numpy(), theirs)


def test_the_gradient_passes_inside_the_range_and_stops_beyond():
    x = torch.tensor([-300.0, -127.9, -0.3, 0.0, 17.5, 126.9, 200.0], requires_grad=True)
    rounded(x, torch.tensor(1.0)).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_an_int8_weight_computes_what_its_rounded_form_computes():
    torch.manual_seed(0)
    for conv in (nn.Conv2d(8, 12, 3, 2, 1), nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=4, bias=False)):
        conv.weight.data[1] = 0  # a channel of zeros has a scale too
        quant = QuantConv2d(conv).eval()
        fused = quant.fuse()
        assert isinstance(fused, IntConv2d) and fused.steps.dtype == torch.int8
        x = torch.randn(2, 8, 9, 11)
        # Sums of at most 72 products below 1: a few last bits (6e-8) where a kernel adds in another order.
        torch.testing.assert_close(fused(x), quant(x), rtol=0, atol=1e-6)
        error = (fused.steps * fused.scale[:, None, None, None] - conv.weight).abs()
        # Half a step, and the division's own rounding: 127 steps times 6e-8 is far below 1e-4.
        assert (error <= fused.scale[:, None, None, None] * 0.5001).all()


NETWORKS: dict[str, dict[str, object]] = {
    "resnet18": {},
    "resnet50": {"backbone": {"name": "resnet50", "width": 0.25}},
    "mobilenet_v3": {"backbone": {"name": "mobilenet_v3_large", "width": 0.5}},
    "qarepvgg": {"backbone": {"name": "qarepvgg_a0", "width": 0.25}},
    "reppan": {"neck": {"kind": "reppan", "channels": 16, "levels": [3, 5]}},
    "bifpn": {"neck": {"kind": "bifpn", "channels": 16, "levels": [3, 5]}},
    "shuffle": {"head": {"depth": 2, "block": "shuffle", "norm": "sepbn"}},
}


def rounded_nodes(graph: fx.GraphModule) -> set[fx.Node]:
    """The tensors that are on an int8 grid: rounded, or moved from rounded ones without change."""
    modules, found = dict(graph.named_modules()), set()
    for node in graph.graph.nodes:
        kind = modules.get(str(node.target)) if node.op == "call_module" else None
        moves = isinstance(kind, (nn.MaxPool2d, nn.Identity)) or (
            node.op == "call_function" and node.target in (torch.cat, nn.functional.interpolate)
        )
        inputs = node.args[0] if node.args else None
        sources = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if isinstance(kind, FakeQuant) or (moves and all(source in found for source in sources)):
            found.add(node)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_but_the_predictions_reads_and_holds_8_bits(name):
    network = quantize(detector(**NETWORKS[name]))
    modules, on_grid = dict(network.graph.named_modules()), rounded_nodes(network.graph)
    seen = set()
    for node in network.graph.graph.nodes:
        if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.Conv2d):
            continue
        seen.add(str(node.target))
        last = str(node.target) in ("head.cls", "head.box", "head.quality")
        assert isinstance(modules[str(node.target)], QuantConv2d) != last, node.target
        assert last or node.args[0] in on_grid, node.target
    convolutions = {n for n, m in network.graph.named_modules() if isinstance(m, nn.Conv2d)}
    assert seen == convolutions and set(network.layers) == convolutions - {"head.cls", "head.box", "head.quality"}
    network.calibrate([images()], "minmax")
    assert all(torch.isfinite(out).all() for out in network(images()) if out is not None)


def test_a_residual_sum_adds_a_rounded_shortcut_to_a_bare_convolution():
    network = quantize(detector(head={"depth": 1, "norm": "gn"}))
    modules, on_grid, sums = dict(network.graph.named_modules()), rounded_nodes(network.graph), 0
    for node in network.graph.graph.nodes:
        if node.op == "call_function" and "add" in getattr(node.target, "__name__", ""):
            first, second = node.args
            sums += 1
            assert (first in on_grid) != (second in on_grid), node
    assert sums == 8 + 2  # two in each of four stages, and the pyramid's
    pool = next(n for n in network.graph.graph.nodes if isinstance(modules.get(str(n.target)), nn.MaxPool2d))
    assert pool in on_grid, "pooling happens on integers"


def test_parts_of_a_concatenation_share_one_range():
    network = quantize(detector(**NETWORKS["reppan"]))

    def rounding(node: fx.Node) -> str:
        while node.target is nn.functional.interpolate:  # enlarging is done on integers
            node = node.args[0]
        return str(node.target)

    shared = 0
    for node in network.graph.graph.nodes:
        if node.target is torch.cat and rounding(node.args[0][0]).startswith("fake_quants."):
            assert len({rounding(part) for part in node.args[0]}) == 1
            shared += 1
    assert shared == 4


def test_float_layers_stay_as_they_are():
    plain = detector()
    everything = list(quantize(plain).layers)
    network = quantize(plain, everything)
    assert not network.layers
    for fake_quant in network.fake_quants.values():  # of sums
        fake_quant.enabled = False
    for ours, theirs in zip(network(images()), plain(images()), strict=True):
        # The norms are folded into the weights here: float32's 6e-8 in each layer, added up over the depth.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert set(quantize(plain, everything[:3]).layers) == set(everything[3:])
    with pytest.raises(QuantError, match="backbone.conv9 is no convolution"):
        quantize(plain, ["backbone.conv9"])


def test_what_cannot_be_traced_or_calibrated_is_said():
    class Moody(nn.Module):
        channels = (16, 16, 16, 16)

        def forward(self, x: Tensor) -> list[Tensor]:
            return [x] if x.sum() > 0 else []

    network = detector()
    network.backbone = Moody().eval()
    with pytest.raises(QuantError, match="cannot be traced.*fp16"):
        quantize(network)
    with raises(QuantError, key="calibration"):
        quantize(detector()).calibrate([])


def test_training_follows_the_ranges_only_while_it_is_told_to():
    network = quantize(detector())
    network.calibrate([images()], "minmax")
    first = network.fake_quants["backbone_conv1"]
    before = float(first.scale)
    network.train()
    network((images().float() * 0.1).to(torch.uint8))
    assert float(first.scale) == before
    for fake_quant in network.fake_quants.values():
        fake_quant.tracking = True
    network((images().float() * 0.1).to(torch.uint8))
    moved = float(first.scale)
    assert moved < before
    network.eval()
    sum(out.sum() for out in network(images()) if out is not None).backward()
    assert float(first.scale) == moved and any(p.grad is not None for p in network.parameters())


def test_a_trained_detector_in_8_bits_keeps_its_map_and_its_onnx_file_agrees(shapes_run, tmp_path):
    network, card = build_detector(shapes_run / "best.pt")
    config = card["training"]["data"]["val"]
    data = read_coco(config["annotations"], config["images"], card["classes"])
    plain = Runtime(shapes_run / "best.pt", threshold=0.0)
    pictures = [read_image(record.path) for record in data.records[:32]]
    pixels = plain.preprocess(pictures, [plain.place(picture) for picture in pictures])
    quantized = quantize(network)
    quantized.calibrate([torch.from_numpy(np.stack(pixels))], "mse")
    card["quantization"] = {"kind": "ptq", "method": "mse", "images": 32, "float_layers": []}
    save_checkpoint(tmp_path / "q.pt", quantized.state_dict(), card)

    again, _ = build_detector(tmp_path / "q.pt")
    batch = torch.from_numpy(np.stack(pixels[:4]))
    with torch.no_grad():
        for ours, theirs in zip(again(batch), quantized(batch), strict=True):
            assert theirs is None or torch.equal(ours, theirs)
    own = evaluate(plain, data).map
    int8 = evaluate(Runtime(tmp_path / "q.pt", threshold=0.0), data).map
    # Wrong ranges or scales cost tens of points. Single boxes that cross an IoU of the scale cost tenths, and which
    # these are depends on the training, whose weights differ between processors.
    assert own > 20 and abs(own - int8) < 3.0, (own, int8)

    written = export.to_onnx(tmp_path / "q.pt", tmp_path / "q.onnx")
    assert written.verification is not None and written.verification.passed
    model = onnx.load(tmp_path / "q.onnx")
    int8_weights = [t for t in model.graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) == 4]
    assert len(int8_weights) == len(quantized.layers)
    # Weights are a quarter of float32's; a second quarter is for scales, biases and the NMS, which stay as they were.
    assert (tmp_path / "q.onnx").stat().st_size < 0.5 * (shapes_run / "best.onnx").stat().st_size
    assert read_checkpoint(tmp_path / "q.pt")["card"]["quantization"]["kind"] == "ptq"


def test_the_deployed_copy_leaves_the_training_form_alone():
    network = quantize(detector())
    network.calibrate([images()], "minmax")
    state = copy.deepcopy(network.state_dict())
    deploy = Deploy(network).eval()
    integers = [any(isinstance(m, IntConv2d) for m in whole.modules()) for whole in (deploy, network)]
    assert integers == [True, False]
    with torch.no_grad():
        for ours, theirs in zip(deploy.detector(images()), network(images()), strict=True):
            # The same steps and scales, multiplied before the sum or behind it: last bits (6e-8) over the depth.
            assert theirs is None or torch.allclose(ours, theirs, atol=1e-5)
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in state.items())
