"""TensorRT and TensorRT-RTX engines."""

from __future__ import annotations

import copy
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runtime.backends.cuda.devices import cuda_device_count
from runtime.backends.device import parse_device
from runtime.backends.options import DEFAULT, BackendOptions
from runtime.backends.protocol import Backend, BackendError, Images, RawOutputs, TimedCall
from runtime.backends.trt.library import Library, Messages, collecting_logger, load_library, load_plugins
from runtime.card.card import Card
from runtime.card.sidecar import built_for, read_sidecar

if TYPE_CHECKING:
    import tensorrt


class TrtBackend(Backend):
    """An engine on a CUDA device. See `runtime.backends.protocol.Backend`.

    Calls from several threads take turns; a thread that should not wait uses its own `context()`. An engine is machine
    code: load only those that you, or somebody you trust, built.
    """

    def __init__(self, path: str | Path, device: str = "auto", options: BackendOptions = DEFAULT) -> None:
        options.check("engine", path)
        path = Path(path)
        self.card: Card = read_sidecar(path, options.check_hashes)
        index = _device_index(path, device, self.card)
        self.why = "engines run on NVIDIA GPUs only" if device == "auto" else "as asked"
        library = load_library(self.card.engine["flavour"])
        from runtime.backends.cuda.memory import gpu, use  # late: it needs cuda-python
        from runtime.backends.trt.context import EngineContext, tensors_of

        device_gpu = gpu(index)
        check_platform(path, self.card, library, device_gpu.sm, device_gpu.name)
        self.name, self.device = library.name, f"cuda:{index}"
        self.max_batch: int = self.card.engine["profile"][2]
        self.fixed_batch: int | None = self.max_batch if self.card.engine["profile"][0] == self.max_batch else None
        self._messages = Messages()
        self._logger = collecting_logger(library, self._messages)
        use(index)  # an engine is loaded onto the current GPU
        engine = self._load(path, library)
        tensors = tensors_of(path, library, engine, self.card)
        self._make_context = lambda: EngineContext(
            path, library, engine, self.card, tensors, index, self._messages, options.cuda_graphs
        )
        try:
            self._context = self._make_context()
        except BackendError as error:
            raise type(error)(f"{path}: on {device_gpu.name}: {error}", path=path) from None

    def __call__(self, images: Images) -> RawOutputs:
        if len(images) > self.max_batch:
            raise BackendError(f"{self.name}: expected at most {self.max_batch} images, got {len(images)}")
        return self._context(images)

    @property
    def takes_device_frames(self) -> bool:
        return True

    @property
    def timed(self) -> TimedCall:
        return self._context.timed

    def host_memory(self, size: int) -> NDArray[np.uint8]:
        return self._context.host_memory(size)

    def context(self) -> TrtBackend:
        """The same engine with a stream, scratch memory and buffers of its own."""
        context = copy.copy(self)
        context._context = self._make_context()
        return context

    def layers(self) -> str:
        """The engine's layers as JSON of the library's inspector, for the batch size that the engine was tuned for."""
        return self._context.layers()

    def _load(self, path: Path, library: Library) -> Any:
        """The engine. Raises `BackendError` where the library refuses it."""
        trt = library.trt
        load_plugins(library, self._logger)
        self._runtime: tensorrt.Runtime = trt.Runtime(self._logger)
        if self.card.engine["version_compatible"]:  # such an engine carries the runtime that it was built for
            self._runtime.engine_host_code_allowed = True
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise _not_here(path, self.card, f"{library.name} refuses it: {self._messages.why()}")
        return engine


def check_platform(path: Path, card: Card, library: Library, sm: int, gpu: str) -> None:
    """Raise `BackendError` where the engine was built for another library, GPU or system than this one."""
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
    return BackendError.at(path, f"built for {built_for(card)}; {why}. Build it again here: {card.engine['rebuild']}")


def _device_index(path: Path, device: str, card: Card) -> int:
    """The number of the CUDA device. Raises `BackendError` where there is none."""
    kind, index = parse_device(device)
    if kind == "cpu":
        raise BackendError.at(path, "an engine runs on an NVIDIA GPU only; give the ONNX file for device cpu")
    count = cuda_device_count()
    if count == 0:
        reason = f"built for {built_for(card)}, and there is no CUDA device here (check nvidia-smi)"
        raise BackendError.at(path, f"{reason}; the ONNX file that it was built from runs on a CPU")
    if index >= count:
        raise BackendError(f"device {device}: CUDA finds {count} devices here; check nvidia-smi", key="device")
    return index
