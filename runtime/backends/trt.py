"""TensorRT and TensorRT-RTX engines."""

from __future__ import annotations

import platform
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends import BackendError, RawOutputs, check_device, graph_input, output_names, raw_outputs
from runtime.backends.ort import cuda_device_count
from runtime.backends.trt_library import Library, Messages, collecting_logger, load_library, load_plugins
from runtime.card import Card, CardError
from runtime.image import FILL
from runtime.sidecar import built_for, read_sidecar

if TYPE_CHECKING:
    import tensorrt

INPUT = "images"
TYPES = {
    "num_dets": np.int32, "boxes": np.float32, "scores": np.float32, "labels": np.int32, "nms_exact": np.bool_,
}  # fmt: skip


class TrtBackend:
    """An engine on a CUDA device. See `runtime.backends.Backend`.

    One stream and one set of buffers: calls from several threads take turns. An engine is machine code; load those
    that you or somebody you trust built.
    """

    def __init__(self, path: str | Path, device: str = "auto") -> None:
        check_device(device)
        path = Path(path)
        self.card: Card = read_sidecar(path)
        index = _device_index(path, device, self.card)
        library = load_library(self.card.engine["flavour"])
        from runtime.backends.trt_memory import Stream, gpu  # cuda-python is asked for only where it can do something

        found = gpu(index)
        check_platform(path, self.card, library, found.sm, found.name)
        self.name, self.device = library.name, f"cuda:{index}"
        self._lock, self._stream = threading.Lock(), Stream(index)
        self._messages = Messages()
        self._logger = collecting_logger(library, self._messages)
        self._trt = library.trt
        self._engine: tensorrt.ICudaEngine = self._load(path, library)
        self._context: tensorrt.IExecutionContext = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(f"{path}: {self.name} has no room for it on {found.name}: {self._messages.why()}")
        self._least, _, self.max_batch = self.card.engine["profile"]
        self.fixed_batch: int | None = self.max_batch if self._least == self.max_batch else None
        self._buffers = self._bind(path)

    def __call__(self, images: NDArray[np.uint8]) -> RawOutputs:
        count = len(images)
        if count > self.max_batch:
            raise BackendError(f"{self.name}: expected at most {self.max_batch} images, got {count}")
        rows = max(count, self._least)
        context: tensorrt.IExecutionContext = self._context
        with self._lock:
            self._stream.use()
            pixels = self._buffers[INPUT]
            pixels.host[:count] = graph_input(self.card, images)
            pixels.host[count:rows] = FILL if self.card.input == "uint8-nhwc" else FILL / 255
            self._stream.upload(pixels, rows)
            if not context.set_input_shape(INPUT, (rows, *pixels.host.shape[1:])):
                raise BackendError(f"{self.name} takes no batch of {rows}: {self._messages.why()}")
            if not context.execute_async_v3(self._stream.handle):
                raise BackendError(f"{self.name} failed on a batch of {rows}: {self._messages.why()}")
            names = output_names(self.card)
            for name in names:
                self._stream.download(self._buffers[name], rows)
            self._stream.wait()
            return raw_outputs(self.card, [self._buffers[name].host[:count].copy() for name in names])

    def layers(self) -> str:
        """What the engine consists of, as the JSON of the library's inspector, for the batch it was tuned for."""
        trt, context = self._trt, self._context
        with self._lock:
            self._stream.use()
            shape = (self.card.engine["profile"][1], *self._buffers[INPUT].host.shape[1:])
            context.set_input_shape(INPUT, shape)
            inspector: tensorrt.EngineInspector = self._engine.create_engine_inspector()
            inspector.execution_context = context
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))

    def _load(self, path: Path, library: Library) -> Any:
        """The engine, which its library may still refuse."""
        trt = library.trt
        load_plugins(library, self._logger)
        self._runtime: tensorrt.Runtime = trt.Runtime(self._logger)
        if self.card.engine["version_compatible"]:  # such an engine carries the runtime that it was built for
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise _not_here(path, self.card, f"{library.name} refuses it: {self._messages.why()}")
        return engine

    def _bind(self, path: Path) -> dict[str, Any]:
        """Buffers for every tensor, known to the context. Raises `CardError` for a graph that is not its card's."""
        from runtime.backends.trt_memory import Buffer

        trt, engine, context = self._trt, self._engine, self._context
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        expected = (INPUT, *output_names(self.card))
        if set(names) != set(expected):
            raise CardError(f"{path}: expected the tensors {', '.join(expected)}; got {', '.join(names)}")
        height, width = self.card.frame_hw
        pixels, layout = (np.uint8, (height, width, 3)) if self.card.input == "uint8-nhwc" else (
            np.float32, (3, height, width))  # fmt: skip
        buffers = {}
        self._stream.use()
        for name in names:
            dtype = np.dtype(trt.nptype(engine.get_tensor_dtype(name)))
            wanted = np.dtype(TYPES.get(name, pixels))
            shape = tuple(engine.get_tensor_shape(name))[1:]
            right = name != INPUT or shape == layout
            if dtype != wanted or not right:
                raise CardError(f"{path}: {name}: expected {wanted} as its card says, got {dtype} {list(shape)}")
            buffers[name] = Buffer((self.max_batch, *shape), dtype)
            context.set_tensor_address(name, buffers[name].device)
        return buffers


def check_platform(path: Path, card: Card, library: Library, sm: int, gpu: str) -> None:
    """Raise `BackendError` where the engine was built for another library, GPU or system than what is here."""
    built = card.engine
    here, there = library.version.split(".")[:3], str(built["version"]).split(".")[:3]
    newer = built["version_compatible"] and here[0] == there[0] and [int(n) for n in here] >= [int(n) for n in there]
    if here != there and not newer:
        raise _not_here(path, card, f"here is {library.name}, and an engine runs on the version that built it")
    if built["flavour"] == "tensorrt" and built["system"] != system():
        raise _not_here(path, card, f"here is {system()}")
    anywhere = built["hardware_compatible"] or not built["sm"]
    if (sm < 80) if anywhere else (sm not in built["sm"]):
        raise _not_here(path, card, f"here is an {gpu} (SM{sm})")


def system() -> str:
    """Such as linux-x86_64."""
    return f"{sys.platform}-{platform.machine().lower()}"


def _not_here(path: Path, card: Card, why: str) -> BackendError:
    return BackendError(f"{path}: built for {built_for(card)}; {why}. Build it again here: {card.engine['rebuild']}")


def _device_index(path: Path, device: str, card: Card) -> int:
    """The number of the CUDA device. Raises `BackendError` where there is none."""
    if device == "cpu":
        raise BackendError(f"{path}: an engine runs on an NVIDIA GPU only; give the ONNX file for device cpu")
    index, count = int(device.partition(":")[2] or 0), cuda_device_count()
    if count == 0:
        raise BackendError(
            f"{path}: built for {built_for(card)}, and there is no CUDA device here (check nvidia-smi); the ONNX file "
            "that it was built from runs on a CPU"
        )
    if index >= count:
        raise BackendError(f"device {device}: CUDA finds {count} devices here; check nvidia-smi")
    return index
