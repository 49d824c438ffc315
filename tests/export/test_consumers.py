"""Which reader of ONNX files takes which form of NMS: what the table of docs/export.md says is tried."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import export
from export.engine.build import build
from export.engine.options import EngineOptions
from export.options import ExportError, Gate, NmsKind, OnnxOptions
from runtime import BackendOptions, Detector
from runtime.backends.protocol import BackendError
from runtime.backends.trt.library import Library
from tests.processes import python

FORMS: tuple[NmsKind, ...] = ("auto", "portable", "loop", "onnx", "plugin", "none")
TABLE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")


def promised(consumer: str) -> dict[NmsKind, bool]:
    """The row of a consumer in the table: whether it takes each form."""
    (row,) = re.findall(rf"^\| {re.escape(consumer)}\b[^|]*\|(.*)\|$", TABLE, re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")]
    assert set(cells) <= {"yes", "no"} and len(cells) == len(FORMS), row
    return dict(zip(FORMS, [cell == "yes" for cell in cells], strict=True))


@pytest.fixture(scope="module")
def form(shapes_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[NmsKind], Path]:
    folder = tmp_path_factory.mktemp("forms")
    for kind in FORMS:
        options = OnnxOptions(nms=kind, candidates="config")
        export.to_onnx(shapes_run / "best.pt", folder / f"{kind}.onnx", options, Gate(verify=False))
    return lambda kind: folder / f"{kind}.onnx"


def frame_of(path: Path) -> np.ndarray:
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape
    sides = [dim.dim_value or 1 for dim in shape.dim]
    return np.random.default_rng(0).integers(0, 256, sides, dtype=np.uint8)


def takes(attempt: Callable[[Path], object], path: Path) -> bool:
    """Whether `attempt` gives at least boxes, scores and labels."""
    try:
        outputs = attempt(path)
    except Exception:  # each reader has errors of its own; what counts is that it does not run
        return False
    return len(outputs) >= 3  # type: ignore[arg-type]


def by_onnxruntime(path: Path) -> object:
    return onnxruntime.InferenceSession(str(path)).run(None, {"images": frame_of(path)})


@functools.cache
def plain_core() -> Any:
    """One for all, as in our backend: two that do not end in the order of their making take signals down with them."""
    import openvino

    return openvino.Core()


def by_openvino(path: Path) -> object:
    pytest.importorskip("openvino")
    core = plain_core()
    return list(core.compile_model(core.read_model(str(path)), "CPU")(frame_of(path)).values())


def by_reference(path: Path) -> object:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(onnx.load(path)).run(None, {"images": frame_of(path)})


@pytest.mark.parametrize(
    ("consumer", "attempt"),
    [("ONNX Runtime", by_onnxruntime), ("OpenVINO alone", by_openvino), ("onnx.reference", by_reference)],
)
def test_the_table_of_readers(
    consumer: str, attempt: Callable[[Path], object], form: Callable[[NmsKind], Path]
) -> None:
    assert {kind: takes(attempt, form(kind)) for kind in FORMS} == promised(consumer)


@pytest.mark.parametrize(
    ("consumer", "engine"), [("isodet with ONNX Runtime", "onnxruntime"), ("isodet with OpenVINO", "openvino")]
)
def test_the_table_of_our_own_backends(consumer: str, engine: str, form: Callable[[NmsKind], Path]) -> None:
    pytest.importorskip(engine)
    found = {}
    for kind in FORMS:
        try:
            detector = Detector(form(kind), "cpu", options=BackendOptions(engine=engine))  # type: ignore[arg-type]
            detector(frame_of(form(kind))[0])
            found[kind] = True
        except BackendError:
            found[kind] = False
    assert found == promised(consumer)


def test_the_table_of_tensorrt_rtx(form: Callable[[NmsKind], Path]) -> None:
    library = Library("rtx", pytest.importorskip("tensorrt_rtx"))
    options, found = EngineOptions(engine="rtx", batch=(1, 1, 2), sm=(86,)), {}
    for kind in FORMS:
        try:
            build(library, form(kind), options)
            found[kind] = True
        except ExportError:
            found[kind] = False
    assert found == promised("TensorRT-RTX")


OPENCV = """
import sys
import cv2
net = cv2.dnn.readNetFromONNX(sys.argv[1])
net.setInput(cv2.dnn.blobFromImage(__import__("numpy").zeros((64, 64, 3), "uint8")))
net.forward(net.getUnconnectedOutLayersNames())
"""


def test_opencvs_dnn_takes_none(form: Callable[[NmsKind], Path]) -> None:
    """In a process of its own, because it aborts at one of them."""
    found = {kind: python("-c", OPENCV, form(kind)).returncode == 0 for kind in FORMS}
    assert found == promised("OpenCV's dnn")
