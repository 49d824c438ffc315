"""OpenVINO."""

from __future__ import annotations

import copy
import functools
import os
import threading
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.graph_check import Port, check_graph
from runtime.backends.openvino.devices import HINTS, check_precision, find_device
from runtime.backends.openvino.library import load_openvino, openvino_version
from runtime.backends.options import BackendOptions
from runtime.backends.protocol import (
    Backend,
    BackendError,
    Images,
    OutOfMemory,
    RawOutputs,
    graph_input,
    input_layout,
    line_of,
    output_names,
)
from runtime.card.card import Card
from runtime.card.onnx_metadata import read_onnx_card, require_unedited

openvino = load_openvino()

_PLUGIN = ("EfficientNMS_TRT", "trt.plugins")
"""The node of the default form of NMS (`export.graph.nms`). OpenVINO does not look into the function behind it."""
_TYPES = {"u8": "uint8", "f32": "float32", "i32": "int32", "boolean": "bool"}
"""OpenVINO's names of types, and numpy's."""
_MATRIX_NMS = ("portable", "loop")
"""Forms of NMS with matrix products. OpenVINO keeps float32 behind the last convolution or matrix product of a graph,
so a lower precision would reach the boxes."""


class OpenVinoBackend(Backend):
    """An ONNX file in OpenVINO. See `runtime.backends.protocol.Backend`.

    It is compiled for one frame, and a batch runs frame by frame, on as many `streams` as there are. So OpenVINO is the
    fastest for one frame on a CPU, NPUs take it, and no frame has an effect on others.
    Of the forms with the node EfficientNMS_TRT it gives the candidates, and the runtime does NMS: the device, whatever
    its precision, has no part in it.
    """

    def __init__(self, path: str | Path, device: str, threads: int | None, options: BackendOptions) -> None:
        options.check("onnx", path)
        self._path, self.card = path, read_onnx_card(path, options.check_hashes)
        if options.check_hashes:
            require_unedited(path, self.card)
        nms = str(self.card.nms["kind"])
        if options.precision != "float32" and nms in _MATRIX_NMS:
            raise BackendError.at(
                path,
                f"precision {options.precision} would round its boxes, too, with --nms {nms}; export with --nms auto",
            )
        core, self._process = _core()
        self._require_own_process()
        self._device, self.why = find_device(core, device)
        check_precision(core, self._device, options.precision)
        self.name = f"OpenVINO {openvino_version()}"
        self.device = self._device.lower().replace("gpu.", "gpu:")
        if options.precision != "float32":
            self.name += f" {options.precision}"
            self.why = "; ".join(filter(None, (self.why, _verified(self.card, options.precision))))
        try:
            model = core.read_model(str(path))
            self._leaves_nms = nms in ("auto", "plugin", "none")
            self._names = output_names(self.card)
            if self._leaves_nms:
                self._names = self._names[-3:]  # without num_dets
            self.fixed_batch = check_graph(path, self.card, _ports(model.inputs), _ports(model.outputs))
            round_after_pooling(model)
            if self.fixed_batch is None:
                model.reshape([1, *input_layout(self.card)[0]])
            self.max_batch = self.fixed_batch or (16 if self._device == "CPU" else 32)
            settings = _settings(self._device, threads, options)
            self._compiled = core.compile_model(model, self._device, settings)
            self._streams = options.streams if self.fixed_batch is None else 1
            self._take_requests()
        except RuntimeError as error:
            raise BackendError.at(path, f"{self.name} cannot load it on {self.device}: {line_of(error)}") from None

    def __call__(self, images: Images) -> RawOutputs:
        assert isinstance(images, np.ndarray), "it takes no frames on a device"
        self._require_own_process()
        try:
            with self._one_call:
                outputs = self._run(graph_input(self.card, images))
        except RuntimeError as error:
            message = f"{self._path}: {self.name} failed on a batch of {len(images)}: {line_of(error)}"
            raise (OutOfMemory if _out_of_memory(error) else BackendError)(message) from error
        return RawOutputs(None, *outputs) if self._leaves_nms else RawOutputs(*outputs)

    def _run(self, images: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs, in the order of their names, for a batch in the layout of the graph."""
        size, count = self.fixed_batch or 1, len(images)
        found: list[list[NDArray[Any]]] = [[] for _ in self._names]
        if count == 0:
            images = np.zeros((1, *images.shape[1:]), images.dtype)  # OpenVINO takes no empty batch
        starts = range(0, len(images), size)
        for first in range(0, len(starts), self._streams):
            running = list(zip(self._requests, starts[first : first + self._streams], strict=False))
            for request, start in running:  # the input is read where it lies
                request.start_async([images[start : start + size]], share_inputs=True)
            for request, _ in running:
                request.wait()
                for values, name in zip(found, self._names, strict=True):
                    values.append(request.get_tensor(name).data.copy())  # the next call writes over it
        return [np.concatenate(values)[:count] for values in found]

    def _require_own_process(self) -> None:
        """A fork has none of OpenVINO's threads, and most often waits for them for ever."""
        if os.getpid() != self._process:
            raise BackendError.at(
                self._path,
                f"OpenVINO was started in process {self._process}, and does not survive a fork; load the first model "
                "after forking, or start the process by multiprocessing's spawn",
            )

    def convolutions(self) -> list[tuple[tuple[str, ...], str]]:
        """What each convolution really runs in, by OpenVINO's execution graph: the nodes of the file that it was made
        of, and the type of its numbers, such as f32, bf16 or u8."""
        layers = []
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            if info["layerType"].astype(str) in ("Convolution", "Deconvolution"):
                names = info["originalLayersNames"].astype(str).split(",")
                layers.append(
                    (tuple(name.partition("/")[0] for name in names), info["runtimePrecision"].astype(str).lower())
                )
        return layers

    def context(self) -> OpenVinoBackend:
        """The same compiled model with a request of its own; they run side by side where there are several streams."""
        context = copy.copy(self)
        context._take_requests()
        return context

    def _take_requests(self) -> None:
        self._requests = [self._compiled.create_infer_request() for _ in range(self._streams)]
        self._one_call = threading.Lock()


def _verified(card: Card, precision: str) -> str:
    """What the card knows of OpenVINO in `precision`."""
    for row in card.verification.get("backends", ()):
        backend = str(row.get("backend", ""))
        if backend.startswith("OpenVINO") and backend.endswith(precision) and row.get("scored"):
            return f"{row['map']:.2f} mAP in {precision}, by its card"
    return f"nothing has verified {precision}: exporter onnx --openvino-precision {precision}"


def _ports(ports: Iterable[Any]) -> list[Port]:
    found = []
    for port in ports:
        kind, shape = port.get_element_type().get_type_name(), port.get_partial_shape()
        sizes = () if shape.rank.is_dynamic else tuple(n.get_length() if n.is_static else None for n in shape)
        found.append(Port(port.get_any_name(), _TYPES.get(kind, kind), sizes))
    return found


@functools.cache
def _core() -> tuple[Any, int]:
    """OpenVINO's Core, one for the process, which is never let go; and the process.

    The plugin for CPUs replaces the stack on which the thread's signal handlers run, and puts the old one back when its
    Core ends. Of two Cores, the second puts back the stack of the first, which may be unmapped by then: the next
    signal, such as Ctrl-C, ends the process (OpenVINO 2026.4, seen with `detector = Detector(...)` twice).
    """
    core = openvino.Core()
    core.add_extension(openvino.frontend.onnx.ConversionExtension(*_PLUGIN, _candidates))
    return core, os.getpid()


def _settings(device: str, threads: int | None, options: BackendOptions) -> dict[str, Any]:
    """Properties of the compiled model."""
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if not device.startswith("AUTO"):
        # Without it, OpenVINO rounds to bf16 or fp16 wherever the device is faster in it.
        settings["INFERENCE_PRECISION_HINT"] = HINTS[options.precision]
        if device != "NPU":
            settings["NUM_STREAMS"] = options.streams
    if device == "CPU" and threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    if options.engine_cache is not None:
        # What is damaged in it, or of another version or processor, is compiled anew; a full disk only costs time.
        settings["CACHE_DIR"] = str(_folder(options.engine_cache))
    return settings


def _folder(path: str | PathLike[str]) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError.at(folder, f"engine_cache: no folder can be made there ({error.strerror})") from None
    return folder


def _candidates(node: Any) -> list[Any]:
    """What stands for EfficientNMS_TRT: boxes [B, K, 4] and scores [B, K, C], in which each candidate has one class, to
    the candidates' boxes, scores and labels, and a num_dets that nobody reads."""
    from openvino import opset13 as ops

    boxes, scores = node.get_input(0), node.get_input(1)
    classes = ops.constant(np.array([2], np.int64))
    best = ops.topk(scores, ops.constant(np.int64(1)), 2, "max", "value", index_element_type="i32")
    nothing = ops.constant(np.zeros((1, 1), np.int32))
    return [
        nothing.output(0), ops.convert(boxes, "f32").output(0), ops.squeeze(best.output(0), classes).output(0),
        ops.squeeze(best.output(1), classes).output(0),
    ]  # fmt: skip


def round_after_pooling(model: Any) -> None:
    """Move the rounding to 8 bits from before each max pooling of `model` to behind it, which gives the same numbers.

    Where it is before, and the graph has a Concat anywhere, OpenVINO 2026.4 for CPUs takes 1 for the step of the
    rounding: the first block of a ResNet gets whole numbers, and its detector lost 10 points of mAP.
    """
    from openvino import opset13 as ops

    for pool in (op for op in model.get_ordered_ops() if op.get_type_name() == "MaxPool"):
        chain = [pool.input_value(0).get_node()]  # from the pooling up to what rounds: Convert, Subtract, Multiply
        while chain[-1].get_type_name() in ("Convert", "Subtract", "Multiply"):
            chain.append(chain[-1].input_value(0).get_node())
        rounding = chain.pop()
        if rounding.get_type_name() != "FakeQuantize":
            continue
        readers = pool.output(0).get_target_inputs()
        pool.input(0).replace_source_output(rounding.input_value(0))
        ranges = [rounding.input_value(i) for i in range(1, 5)]
        value = ops.fake_quantize(pool.output(0), *ranges, levels=rounding.get_attributes()["levels"])
        for op in reversed(chain):
            if op.get_type_name() == "Convert":
                value = ops.convert(value, op.get_output_element_type(0).to_string())
            elif op.get_type_name() == "Subtract":
                value = ops.subtract(value, op.input_value(1))
            else:
                value = ops.multiply(value, op.input_value(1))
        for reader in readers:
            reader.replace_source_output(value.output(0))


def _out_of_memory(error: Exception) -> bool:
    text = str(error)
    return any(words in text for words in ("bad_alloc", "failed to allocate", "out of memory", "OUT_OF_RESOURCES"))
