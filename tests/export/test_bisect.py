"""The layer that departs is named, whatever the precision and the names of tensors; a sound graph has none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import export
from export.__main__ import main
from export.graph.form import float_forms
from export.verification.bisect import BisectError, Bisection, compare, float_graphs
from export.verification.tensor_matching import aligned, relative_error, tensors, weight_path
from models.checkpoint import build_detector
from models.config.model import model_config
from models.detector import Detector as Network
from models.quant import quantize
from runtime import read_card
from tests.export.damaged import foreign_graph
from tests.export.networks import save_network
from tests.fixed_weights import fix_weights
from trainer.recipes.shapes import CLASSES, draw_scene

Graphs = tuple[onnx.ModelProto, onnx.ModelProto]
CONFIG = {
    "classes": CLASSES, "detector": "atss", "input_size_hw": [96, 128], "backbone": {"name": "resnet18", "width": 0.25},
    "neck": {"channels": 32, "levels": [3, 5], "norm": "bn"}, "head": {"depth": 1, "prior": 0.2},
    "postprocess": {"candidates": 60, "detections": 25},
}  # fmt: skip


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Pictures with shapes in them [8, H, W, 3]."""
    return np.stack([draw_scene((96, 128), np.random.default_rng([0, i])).image for i in range(8)])


@pytest.fixture(scope="module")
def fixed_run(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> Path:
    """A folder with best.pt and best.onnx of a network that is the same everywhere."""
    torch.set_num_threads(1)
    model = fix_weights(Network(model_config(CONFIG), load_weights=False), torch.from_numpy(pixels))
    checkpoint = save_network(tmp_path_factory.mktemp("fixed") / "best.pt", model)
    export.to_onnx(checkpoint)
    return checkpoint.parent


@pytest.fixture(scope="module")
def network(fixed_run: Path) -> Graphs:
    return float_graphs(fixed_run / "best.pt", read_card(fixed_run / "best.onnx"))


@pytest.fixture(scope="module")
def int8(fixed_run: Path, pixels: np.ndarray) -> onnx.ModelProto:
    detector, _ = build_detector(fixed_run / "best.pt")
    quantized = quantize(detector)
    quantized.calibrate([torch.from_numpy(pixels)])
    return float_forms(quantized, read_card(fixed_run / "best.onnx"))[1]  # nothing in it is switched off


@pytest.fixture
def judge(network: Graphs, pixels: np.ndarray) -> Callable[[onnx.ModelProto, str], Bisection]:
    def run(model: onnx.ModelProto, precision: str) -> Bisection:
        return compare(Path("some.onnx"), model, network, (pixels[:1], pixels[:1]), precision)

    return run


def copied(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


def changed(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    copy = copied(model)
    (tensor,) = [t for t in copy.graph.initializer if t.name == name]
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(change(values).astype(values.dtype), name))
    return copy


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Conv"]


def test_a_sound_graph_has_no_layer_that_departs_and_nothing_is_left_unseen(fixed_run, judge):
    found = judge(onnx.load(fixed_run / "best.onnx"), "fp32")
    assert found.first is None and not found.weights and found.compared == found.tensors > 100
    assert "no layer departs" in found.text()


@pytest.mark.parametrize("which", [0, 7, -1])
def test_one_damaged_weight_names_its_convolution(fixed_run, which, judge):
    model = onnx.load(fixed_run / "best.onnx")
    node = convolutions(model)[which]
    users = [n.name for n in convolutions(model) if n.input[1] == node.input[1]]  # levels share their convolutions
    found = judge(changed(model, node.input[1], lambda w: w * 1.5), "fp32")
    assert found.first is not None and found.first.node == users[0] and found.first.op == "Conv"
    path = weight_path(node.input[1])
    assert [name for name, _ in found.weights] == [path] and found.weights[0][1] == pytest.approx(0.5)
    assert path == f"{found.first.module}.weight" and found.first.module in found.text()
    assert found.jumps[0].added >= found.jumps[-1].added


def test_names_of_tensors_do_not_matter(fixed_run, network):
    model = onnx.load(fixed_run / "best.onnx")
    before = max(len(aligned(model, reference)) for reference in network)
    for node in model.graph.node:
        for values in (node.input, node.output):
            for i, name in enumerate(values):
                if name and name not in {t.name for t in model.graph.initializer} | {"images"}:
                    values[i] = f"t{abs(hash(name))}"
        node.name = ""
    del model.graph.output[:], model.graph.value_info[:]
    model.graph.output.extend([onnx.ValueInfoProto(name=model.graph.node[-1].output[0])])
    assert max(len(aligned(model, reference)) for reference in network) == before


def test_float16_is_near_and_its_damaged_weight_is_named(fixed_run, judge):
    halved = half_weights(onnx.load(fixed_run / "best.onnx"))
    assert judge(halved, "fp16").first is None
    node = convolutions(halved)[5]
    found = judge(changed(halved, node.input[1], lambda w: -w), "fp16")
    assert found.first is not None and found.first.module == weight_path(node.input[1]).removesuffix(".weight")


def half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convolutions of float16 between casts, as a half body is."""
    halved = copied(model)
    constants = {t.name: t for t in halved.graph.initializer}
    nodes, changed_names = [], set()
    for node in halved.graph.node:
        if node.op_type != "Conv":
            nodes.append(node)
            continue
        for name in node.input[1:]:
            if name not in changed_names:
                values = onnx.numpy_helper.to_array(constants[name]).astype(np.float16)
                constants[name].CopyFrom(onnx.numpy_helper.from_array(values, name))
                changed_names.add(name)
        source, result = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{result}_in", f"{result}_half"
        nodes += [
            onnx.helper.make_node("Cast", [source], [f"{result}_in"], to=onnx.TensorProto.FLOAT16),
            node,
            onnx.helper.make_node("Cast", [f"{result}_half"], [result], to=onnx.TensorProto.FLOAT),
        ]
    nodes = [copied(node) for node in nodes]
    del halved.graph.node[:], halved.graph.value_info[:]
    halved.graph.node.extend(nodes)
    return halved


def test_int8_is_near_and_an_absurd_scale_is_named(int8, judge):
    sound = judge(int8, "int8")
    assert sound.first is None and sound.compared > 100
    ranges = [node for node in int8.graph.node if node.op_type == "DequantizeLinear" and "fake_quants" in node.input[1]]
    node = ranges[len(ranges) // 2]
    for factor in (100.0, 0.01):  # everything becomes zero; everything saturates
        found = judge(changed(int8, node.input[1], lambda s, f=factor: s * f), "int8")
        assert found.first is not None and found.first.node == node.name and found.first.op == "DequantizeLinear"
        assert found.first.module == weight_path(node.input[1]).removesuffix(".scale")
        assert found.jumps[0].node == node.name, found.jumps


def test_an_absurd_scale_of_a_weight_is_named(int8, judge):
    node = [n for n in int8.graph.node if n.op_type == "DequantizeLinear" and ".steps_" in n.input[0]][9]
    found = judge(changed(int8, node.input[1], lambda s: s * 8), "int8")
    assert found.first is not None and found.first.node == node.name
    assert f"{found.first.module}.weight" == weight_path(node.input[0])


def test_what_is_not_a_number_departs(fixed_run, judge):
    model = onnx.load(fixed_run / "best.onnx")
    node = convolutions(model)[3]
    found = judge(changed(model, node.input[1], lambda w: np.full_like(w, np.inf)), "fp32")
    assert found.first is not None and found.first.node == node.name and found.first.error == float("inf")
    assert found.to_json()["first"]["error"] == "inf"  # JSON has no infinity


def test_relative_error():
    one = np.ones(10, np.float32)
    assert relative_error(one, one) == 0 and relative_error(one * 1.5, one) == pytest.approx(0.5)
    assert relative_error(one * np.nan, one) == float("inf")
    assert relative_error(np.zeros(0), np.zeros(0)) == 0 and relative_error(np.zeros(3), np.zeros(3)) == 0


def test_another_network_and_other_files_are_refused(fixed_run, network, pixels, tmp_path, capsys):
    foreign = foreign_graph()
    assert len(tensors(foreign)) == 1
    with pytest.raises(BisectError, match="no layer in common with the checkpoint"):
        compare(Path("x.onnx"), foreign, network, (pixels[:1], pixels[:1]), "fp32")
    shutil.copy(fixed_run / "best.pt", tmp_path)
    assert main(["bisect", str(tmp_path / "best.pt")]) == 1
    assert "is a checkpoint" in capsys.readouterr().err
