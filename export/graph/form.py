"""Building a graph: the network with the input and the NMS of the options, traced and simplified."""

from __future__ import annotations

import onnx
import torch

from export.graph.candidates import set_candidates
from export.graph.nms import add_functions, nms_module
from export.graph.plan import frame_of
from export.graph.tracing import check_weights, simplified, trace
from export.options import ExportError, InputForm, NmsKind, OnnxOptions, Precision, Say
from models.deploy.graph import Deploy
from models.deploy.graph_input import FrameGeometry, GraphInput
from models.detector import Detector as Network
from runtime.backends.protocol import OUTPUTS
from runtime.card.card import Card


def onnx_model(
    detector: Network, frame: FrameGeometry | None, kind: NmsKind, precision: Precision, options: OnnxOptions, say: Say
) -> onnx.ModelProto:
    """The traced graph, with the functions that its NMS needs in ONNX Runtime."""
    half_beside_int8 = precision == "int8" and options.int8 is not None and options.int8.half
    half, config = precision == "fp16" or half_beside_int8, detector.config
    nms = nms_module(kind, config.postprocess, len(config.classes), options.certificate, half)
    deploy = Deploy(detector, GraphInput(options.input, frame), nms).eval()
    if half:
        before = _state_megabytes(deploy)
        try:
            deploy.halve()
        except ValueError as error:
            raise ExportError.of("precision", str(error)) from error
        say(f"float16: {before:.1f} MB of weights are {_state_megabytes(deploy):.1f} MB now")
    model = _trace(deploy, options, kind)
    if options.simplify:
        model = simplified(model)
    check_weights(model)
    return add_functions(model, kind, deploy, half)


def float_forms(detector: Network, card: Card) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Two float32 graphs of `detector`, as traced and simplified, with the input and the NMS of `card`'s artifact.

    `detector` gets the number of candidates of that NMS.
    """
    kind: NmsKind = "auto" if card.nms["kind"] == "plugin" else card.nms["kind"]
    form: InputForm = "float-nchw" if card.input == "float-nchw" else "uint8-nhwc"
    certificate = bool(card.nms.get("certificate"))
    set_candidates(detector, card.nms["candidates"])
    options = OnnxOptions(nms=kind, certificate=certificate, source_size_hw=card.source_size_hw, input=form)
    nms = nms_module(kind, detector.config.postprocess, len(card.classes), certificate, False)
    deploy = Deploy(detector, GraphInput(form, frame_of(options, card)), nms).eval()
    traced = _trace(deploy, options, kind)
    simple = simplified(traced)
    return add_functions(traced, kind, deploy, False), add_functions(simple, kind, deploy, False)


def _state_megabytes(deploy: Deploy) -> float:
    return sum(t.nbytes for t in deploy.detector.state_dict().values()) / 2**20


def _trace(deploy: Deploy, options: OnnxOptions, kind: NmsKind) -> onnx.ModelProto:
    size, batch = options.source_size_hw or deploy.config.input_size_hw, options.batch or 2
    if options.input == "uint8-nhwc":
        example = torch.zeros(batch, *size, 3, dtype=torch.uint8)
    else:
        example = torch.zeros(batch, 3, *size)
    outputs = [name for name in OUTPUTS if kind != "none" or name != "num_dets"]
    outputs += ["nms_exact"] if options.certificate else []
    return trace(deploy, (example,), options.opset, options.batch is not None, ["images"], outputs)
