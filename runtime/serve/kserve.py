"""KServe's Open Inference Protocol, version 2, over HTTP, with its extension for binary tensors.

A client sends what the graph takes and gets what it gives, as from Triton: it letterboxes itself, and boxes are in
pixels of the network's input.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from runtime.backends.protocol import Backend, BackendError, RawOutputs, joined, rows_of
from runtime.batcher.admission import DeadlineExpired, QueueFull
from runtime.images.image import FILL
from runtime.serve.errors import RequestError
from runtime.serve.models import Loaded, ServedModel
from runtime.serve.options import ServeOptions

HEADER = "Inference-Header-Content-Length"
"""Bytes of the JSON before the binary tensors, in a request and in an answer."""
_TYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32"}
_OUTPUTS = {"num_dets": np.int32, "boxes": np.float32, "scores": np.float32, "labels": np.int32}


class Answer(NamedTuple):
    """The body of an answer, and the length of the JSON in it where binary tensors follow."""

    body: bytes
    json_bytes: int | None


class TensorService:
    """Answers requests for inference. They do not join the batches of pictures: each runs as its client made it.

    They run in the one thread of `worker`, one after the other, in a context of the engine of their own.
    """

    def __init__(self, options: ServeOptions, worker: Executor) -> None:
        self._options, self._worker = options, worker
        self._contexts: WeakKeyDictionary[Loaded, Backend] = WeakKeyDictionary()
        self._waiting = 0

    async def infer(self, model: ServedModel, body: bytes, header: str | None) -> Answer:
        """The answer to a request for inference; `header`: the value of its header `HEADER`.

        Raises `RequestError` 400 for a request that is not as it should be, 501 where the engine runs one call at a
        time; `QueueFull`, `DeadlineExpired`.
        """
        if self._waiting >= self._options.queue:
            raise QueueFull(f"{self._waiting} requests wait already")
        seconds = self._options.deadline_ms / 1000
        deadline = time.monotonic() + seconds
        self._waiting += 1
        try:
            job = asyncio.get_running_loop().run_in_executor(self._worker, self._run, model, body, header, deadline)
            return await asyncio.wait_for(job, seconds)
        except asyncio.TimeoutError:
            raise self._late() from None
        finally:
            self._waiting -= 1

    def _late(self) -> DeadlineExpired:
        return DeadlineExpired(f"it was not answered within {self._options.deadline_ms:g} ms (--deadline-ms)")

    def _run(self, model: ServedModel, body: bytes, header: str | None, deadline: float) -> Answer:
        if time.monotonic() >= deadline:
            raise self._late()
        content, binary = _split(body, header)
        images = _images(content, binary, model.current)
        wanted = _wanted(content)
        raw = self._infer(model.current, images)
        return _answer(model.name, content, raw, wanted)

    def _infer(self, loaded: Loaded, images: NDArray[np.uint8]) -> RawOutputs:
        """The outputs for `images` uint8 [B, H, W, 3], after NMS."""
        if loaded not in self._contexts:
            try:
                self._contexts[loaded] = loaded.detector.backend.context()
            except BackendError as error:
                raise RequestError(501, f"{error}; use /v1/models/NAME/detect") from None
        detector, context = loaded.detector, self._contexts[loaded]
        fixed = detector.backend.fixed_batch
        size, parts = fixed or detector.backend.max_batch, []
        for start in range(0, len(images), size):
            chunk = images[start : start + size]
            batch = np.full((fixed or len(chunk), *chunk.shape[1:]), FILL, np.uint8)
            batch[: len(chunk)] = chunk
            parts.append(detector.suppress(rows_of(detector.infer(batch, context), slice(0, len(chunk)))))
        return joined(parts)


def model_metadata(model: ServedModel) -> dict[str, Any]:
    """What the protocol says of a model: its inputs and outputs; -1 is any size."""
    card = model.current.detector.card
    batch = -1 if model.current.detector.backend.fixed_batch is None else model.current.detector.backend.fixed_batch
    count = card.nms["detections"]
    shapes = {"num_dets": [batch, 1], "boxes": [batch, count, 4], "scores": [batch, count], "labels": [batch, count]}
    return {
        "name": model.name,
        "platform": f"isodet_{card.kind}",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [batch, *card.frame_hw, 3]}],
        "outputs": [
            {"name": name, "datatype": _TYPES[np.dtype(kind).name], "shape": shapes[name]}
            for name, kind in _OUTPUTS.items()
        ],
    }


def _split(body: bytes, header: str | None) -> tuple[Mapping[str, Any], bytes]:
    """The JSON of a request, and the binary tensors after it."""
    length = len(body)
    if header is not None:
        if not header.isdecimal() or int(header) > len(body):
            raise RequestError(400, f"{HEADER}: expected the bytes of the JSON, at most {len(body)}; got {header!r}")
        length = int(header)
    try:
        content = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(content, Mapping):
        raise RequestError(400, "expected a JSON object with the key inputs")
    return content, body[length:]


def _images(content: Mapping[str, Any], binary: bytes, loaded: Loaded) -> NDArray[np.uint8]:
    """The tensor `images` of a request, uint8 [B, H, W, 3]."""
    height, width = loaded.detector.card.frame_hw
    form = f"UINT8 [B, {height}, {width}, 3]"
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], Mapping):
        raise RequestError(400, f"inputs: expected a list of one tensor, images {form}")
    tensor = inputs[0]
    shape: Any = tensor.get("shape")
    fixed = loaded.detector.backend.fixed_batch
    is_right = (
        tensor.get("name") == "images"
        and tensor.get("datatype") == "UINT8"
        and isinstance(shape, list)
        and all(type(side) is int for side in shape)
        and shape[1:] == [height, width, 3]
        and 1 <= shape[0] <= (fixed or shape[0])
    )
    if not is_right:
        most = "" if fixed is None else f" with B of at most {fixed}"
        got = f"{tensor.get('name')} {tensor.get('datatype')} {shape}"
        raise RequestError(400, f"inputs[0]: expected images {form}{most}, got {got}")
    size = math.prod(shape)
    parameters = tensor.get("parameters")
    binary_size = parameters.get("binary_data_size") if isinstance(parameters, Mapping) else None
    if binary_size is not None:
        if binary_size != size or len(binary) != size:
            reason = f"expected {size} bytes for its shape, got {binary_size} and {len(binary)} in the body"
            raise RequestError(400, f"images: binary_data_size: {reason}")
        return np.frombuffer(binary, np.uint8).reshape(shape)
    try:
        values = np.asarray(tensor.get("data"))
    except ValueError:  # lists of several lengths
        values = np.empty(0)
    if values.dtype.kind not in "iu" or values.size != size or values.min() < 0 or values.max() > 255:
        raise RequestError(400, f"images: data: expected {size} whole numbers from 0 to 255")
    return values.astype(np.uint8).reshape(shape)


def _wanted(content: Mapping[str, Any]) -> dict[str, bool]:
    """The outputs that a request asks for, and whether each is to be binary."""
    parameters = content.get("parameters")
    every = isinstance(parameters, Mapping) and parameters.get("binary_data_output") is True
    outputs = content.get("outputs")
    if outputs is None or outputs == []:
        return dict.fromkeys(_OUTPUTS, every)
    wanted = {}
    for output in outputs if isinstance(outputs, list) else [None]:
        if not isinstance(output, Mapping) or output.get("name") not in _OUTPUTS:
            got = output.get("name") if isinstance(output, Mapping) else output
            raise RequestError(400, f"outputs: expected objects with a name of {', '.join(_OUTPUTS)}; got {got!r}")
        own = output.get("parameters")
        binary = own.get("binary_data", every) if isinstance(own, Mapping) else every
        wanted[output["name"]] = binary is True
    return wanted


def _answer(name: str, content: Mapping[str, Any], raw: RawOutputs, wanted: Mapping[str, bool]) -> Answer:
    outputs: list[dict[str, Any]] = []
    tensors: list[bytes] = []
    for output, binary in wanted.items():
        values: NDArray[Any] = np.ascontiguousarray(getattr(raw, output), np.dtype(_OUTPUTS[output]).newbyteorder("<"))
        described: dict[str, Any] = {"name": output, "datatype": _TYPES[values.dtype.name], "shape": list(values.shape)}
        if binary:
            tensors.append(values.tobytes())
            described["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            described["data"] = values.reshape(-1).tolist()
        outputs.append(described)
    answer = {"model_name": name, "outputs": outputs}
    if isinstance(content.get("id"), str):
        answer["id"] = content["id"]
    head = json.dumps(answer).encode()
    return Answer(b"".join([head, *tensors]), len(head) if tensors else None)
