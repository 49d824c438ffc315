"""Building: what is asked of TensorRT 10, 11 and RTX, what becomes of their errors, and that it is all or nothing.

Against their interfaces as tests/fake_trt.py acts them out; tests/export/test_trt.py builds with the real TensorRT-RTX.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import export.engine.verify
import export.engine_export
import runtime.backends.trt.backend
from export.audit.audit import AuditError
from export.engine.build import build
from export.engine.cache import cache_path
from export.engine.options import EngineOptions
from export.engine_export import to_engine
from export.options import ExportError, Gate
from runtime import Card
from runtime.artifact import read_card
from runtime.backends.trt.library import Library
from runtime.card.sidecar import sidecar_path
from tests.at_fault import raises
from tests.fake_cuda import forget_cuda, put_in_fake_cuda
from tests.fake_trt import VERSIONS, fake_trt


def library(version: str, **network: Any) -> Library:
    return Library("rtx" if "rtx" in version else "tensorrt", fake_trt(version, network))


@pytest.mark.parametrize("version", VERSIONS)
def test_networks_are_strongly_typed_and_by_flag_only_in_version_10(version):
    lib = library(version)
    options = EngineOptions(batch=(1, 2, 3), workspace_gb=0.5)
    plan = build(lib, Path("m.onnx"), options)
    flag = 1 << int(lib.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert lib.trt.seen["flags"] == (flag if "10." in version else 0)
    profile = ("profile", "images", (1, 8, 8, 3), (2, 8, 8, 3), (3, 8, 8, 3))
    assert lib.trt.seen["set"] == [profile, ("WORKSPACE", 2**29)]
    assert plan.profile == (1, 2, 3) and plan.tf32 and not plan.plugin
    assert lib.trt.seen["plugins"] == ("rtx" not in version)


def test_a_fixed_batch_has_no_profile():
    lib = library("tensorrt-11.4", shape=(4, 8, 8, 3))
    assert build(lib, Path("m.onnx"), EngineOptions()).profile == (4, 4, 4)
    assert lib.trt.seen["set"] == []
    with raises(ExportError, key="batch"):
        build(lib, Path("m.onnx"), EngineOptions(batch=(1, 2, 8)))


def test_other_platforms():
    lib = library("tensorrt-10.13")
    build(lib, Path("m.onnx"), EngineOptions(version_compatible=True, hardware_compatible=True))
    assert "VERSION_COMPATIBLE" in lib.trt.seen["set"]
    lib = library("tensorrt-rtx-1.7")
    build(lib, Path("m.onnx"), EngineOptions(sm=(86, 120)))
    assert lib.trt.seen["set"][1:] == [("SM86", 0), ("SM120", 1)]
    with pytest.raises(ExportError, match="builds for SM120, SM121, SM75, SM80, SM86, SM89, not for SM90"):
        build(lib, Path("m.onnx"), EngineOptions(sm=(90,)))


@pytest.mark.parametrize(
    ("flavour", "keys", "key"),
    [
        ("rtx", {"hardware_compatible": True}, "hardware-compatible"),
        ("rtx", {"version_compatible": True}, "version-compatible"),
        ("rtx", {"timing_cache": "x"}, "timing-cache"),
        ("tensorrt", {"sm": (86,)}, "sm"),
    ],
)
def test_what_a_library_cannot_do_is_refused(flavour, keys, key):
    with raises(ExportError, key=key):
        EngineOptions(**keys).check_flavour(flavour)


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"precision": "fp8"}, "precision"),
        ({"batch": (1, 4)}, "batch"),
        ({"batch": (4, 2, 8)}, "batch"),
        ({"batch": (0, 2, 8)}, "batch"),
        ({"workspace_gb": 0.0}, "workspace"),
        ({"sm": (8,)}, "sm"),
        ({"sm": (86, 86)}, "sm"),
    ],
)
def test_options_that_no_engine_has(keys, key):
    with raises(ExportError, key=key):
        EngineOptions(**keys)


def test_a_node_that_cannot_be_read_is_named():
    errors = [("node_nms", "NonMaxSuppression", "no importer\nfor it"), ("", "", "and no more")]
    with pytest.raises(ExportError) as raised:
        build(library("tensorrt-11.4", errors=errors), Path("m.onnx"), EngineOptions())
    assert str(raised.value) == (
        "m.onnx: TensorRT 11.4.0.5 cannot read it: node 'node_nms' (NonMaxSuppression): no importer for it; and no more"
    )


def test_a_build_that_fails_says_what_the_library_said():
    with pytest.raises(ExportError, match="cannot build it: Error Code 10: no tactic"):
        build(library("tensorrt-10.13", refuses="Error Code 10: no tactic"), Path("m.onnx"), EngineOptions())


def test_the_plugin_is_looked_for_before_the_graph_is_read():
    errors = [("n", "EfficientNMS_TRT", "Plugin creator not found")]
    with pytest.raises(ExportError, match="its NMS is the plugin EfficientNMS_TRT, which TensorRT-RTX .* --nms auto"):
        build(library("tensorrt-rtx-1.7", errors=errors), Path("m.onnx"), EngineOptions(), needs_plugin=True)
    lib = library("tensorrt-11.4", layers=["CONVOLUTION", "PLUGIN_V2"])
    assert build(lib, Path("m.onnx"), EngineOptions(), needs_plugin=True).plugin


def test_a_build_can_be_stopped(monkeypatch):
    monkeypatch.setattr("export.engine.build._REPORT_EVERY", 0.0)
    told: list[tuple[str, int, int]] = []
    build(library("tensorrt-10.13"), Path("m.onnx"), EngineOptions(), progress=lambda *step: told.append(step))
    assert told == [("build: building", n, 3) for n in range(4)]

    def interrupts(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(library("tensorrt-10.13"), Path("m.onnx"), EngineOptions(), progress=interrupts)
    assert signal.getsignal(signal.SIGINT) is before

    def breaks(*_: object) -> None:
        raise OSError("the screen is gone")

    with pytest.raises(OSError, match="the screen is gone"):
        build(library("tensorrt-10.13"), Path("m.onnx"), EngineOptions(), progress=breaks)


def test_measurements_are_kept_and_those_of_another_gpu_replaced(tmp_path):
    cache, said = tmp_path / "deep" / "a.timing", []
    for expected in (b"measured ", b"measured measured "):
        build(library("tensorrt-10.13"), Path("m.onnx"), EngineOptions(), cache=cache, say=said.append)
        assert cache.read_bytes() == expected
    cache.write_bytes(b"of another GPU")
    build(library("tensorrt-10.13"), Path("m.onnx"), EngineOptions(), cache=cache, say=said.append)
    assert cache.read_bytes() == b"measured "
    assert [line.split(":")[1].split()[0] for line in said] == ["new,", str(cache), str(cache)]
    assert [p.name for p in cache.parent.iterdir()] == ["a.timing"]


def test_measurements_that_cannot_be_kept_do_not_cost_the_engine(tmp_path):
    said: list[str] = []
    (tmp_path / "file").write_text("no folder")
    cache = tmp_path / "file" / "a.timing"
    plan = build(library("tensorrt-10.13"), Path("m.onnx"), EngineOptions(), cache=cache, say=said.append)
    assert plan.content and "cannot be read" in said[0] and "cannot be kept" in said[-1]


def test_every_gpu_and_version_has_its_own_measurements(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = {
        cache_path(library(version), gpu, sm)
        for version in VERSIONS[:2] for gpu, sm in (("NVIDIA A10", 86), ("NVIDIA L4", 89), ("NVIDIA RTX A4000", 86))
    }  # fmt: skip
    assert len(names) == 6 and all(tmp_path in path.parents for path in names)
    assert "tensorrt-10.13.3.9-sm86-nvidia-rtx-a4000.timing" in {path.name for path in names}


# ---------------------------------------------------------------------------------------------
# the whole of `to_engine`, on a machine with a GPU


def fp16_graph(path: Path) -> Path:
    """A convolution in half precision, with a card of ours."""
    nodes = [
        helper.make_node("Cast", ["images"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["half", "detector.a.weight"], ["boxes"], name="node_a"),
    ]
    weight = numpy_helper.from_array(np.ones((2, 8, 1, 1), np.float16), "detector.a.weight")
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])
    boxes = helper.make_tensor_value_info("boxes", TensorProto.FLOAT16, None)
    graph = helper.make_graph(nodes, "g", [images], [boxes], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    nms = {"kind": "portable", "iou": 0.6, "candidates": 4, "detections": 2}
    card = Card("onnx", ("a",), (8, 8), 0.05, nms, precision="fp16")
    model.metadata_props.add(key="isodet", value=json.dumps(card.to_json()))
    onnx.save(model, path)
    return path


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Puts an A10 and TensorRT 11 into this machine. weight: the type that its engines have by their own account."""

    def install(weight: str, **network: Any) -> Any:
        ends = [{"Name": "t", "Format": "Row major linear", "DataType": weight, "Dimensions": [1, 2, 8, 8]}]
        account = {"Layers": [{"Name": "node_a", "LayerType": "CaskConvolution", "ParameterType": "Convolution",
                               "Weights": {"Type": weight, "Count": 16}, "Inputs": ends, "Outputs": ends}]}  # fmt: skip
        found = {"profile": (1, 4, 16), "account": json.dumps(account), **network}
        module = fake_trt("tensorrt-11.4", found, lambda images: {})
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        put_in_fake_cuda(monkeypatch)
        for place in (export.engine_export, export.engine.verify, runtime.backends.trt.backend):
            monkeypatch.setattr(place, "cuda_device_count", lambda: 1)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return module

    yield install
    forget_cuda()


def test_an_engine_of_tensorrt_is_asked_itself(tmp_path, gpu_machine):
    gpu_machine("Half")
    source = fp16_graph(tmp_path / "m.onnx")
    result = to_engine(source, options=EngineOptions(precision="fp16"), gate=Gate(verify=False))
    assert result.path == tmp_path / "m.fp16.engine" and result.audit.source == "inspector"
    card = read_card(result.path)
    assert card.engine["gpu"] == "NVIDIA A10" and card.engine["sm"] == [86]
    assert card.engine["audit"]["source"] == "inspector" and card.engine["audit"]["share"]["fp16"] == 1.0
    assert card.verification["why"] == "not scored: not asked for"
    assert result.trtexec == f"trtexec --loadEngine={result.path} --shapes=images:4x8x8x3"
    assert (tmp_path / "cache" / "isodet" / "tensorrt-11.4.0.5-sm86-nvidia-a10.timing").is_file()


@pytest.mark.parametrize(
    ("weight", "network", "error", "message"),
    [
        ("Float", {}, AuditError, "m.fp16.engine: fp16 was asked for, but 1 layers are not .FP32 100"),
        ("Half", {"refuses": "out of memory"}, ExportError, "cannot build it: out of memory"),
    ],
)
def test_what_is_not_what_was_asked_for_is_not_written(tmp_path, gpu_machine, weight, network, error, message):
    source = fp16_graph(tmp_path / "m.onnx")
    gpu_machine("Half")
    kept = to_engine(source, gate=Gate(verify=False))
    before = {path.name: path.read_bytes() for path in (kept.path, kept.sidecar)}
    gpu_machine(weight, **network)
    with pytest.raises(error, match=message):
        to_engine(source, gate=Gate(verify=False))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if "engine" in path.name} == before
    assert {path.name for path in tmp_path.iterdir()} == {"cache", *before, "m.onnx"}


def test_a_layer_may_be_allowed_to_differ(tmp_path, gpu_machine):
    gpu_machine("Float")
    result = to_engine(fp16_graph(tmp_path / "m.onnx"), gate=Gate(verify=False), allow=("a",))
    assert result.audit.share("fp32") == 1.0 and sidecar_path(result.path) == result.sidecar


def test_precision_is_in_the_graph(tmp_path, gpu_machine):
    gpu_machine("Half")
    source = fp16_graph(tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"is fp16, and int8 was asked for; .* --int8.* --precision int8"):
        to_engine(source, options=EngineOptions(precision="int8"))
    with raises(ExportError, path=tmp_path):
        to_engine(source, tmp_path)
    engine = to_engine(source, gate=Gate(verify=False)).path
    with raises(ExportError, path=engine):
        to_engine(engine)
