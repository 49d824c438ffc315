"""A TensorRT-RTX engine with nothing of ours around it: inputs and outputs on the device, run as NVIDIA's tool runs it.

    python -m benchmarks.gpu.bare_engine ENGINE [--batch 1] [--cache FILE] [--graphs]

loads and runs the engine once in a fresh process, and prints one line of JSON: what the library said, or the seconds of
each step. A process of its own, since a library that does not know the card may end it. FILE is TensorRT-RTX's runtime
cache, the kernels that it compiles for the card when it first runs: used where it is there, and written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.stage import one_line
from benchmarks.gpu.timing import WARMUP
from runtime.backends.protocol import BackendError
from runtime.backends.trt.library import Library, Messages, collecting_logger, load_library

MARK = "engine: "
"""Before the line of JSON, which a library may print others beside."""


class BareEngine:
    """An execution context whose tensors are PyTorch's, for batches of one size at a time. Raises `BackendError`."""

    def __init__(self, library: Library, plan: bytes, batch: int, cache: Path | None = None, graphs: bool = False):
        self._trt = trt = library.trt
        self.messages = Messages()
        self._logger = collecting_logger(library, self.messages)
        self.seconds: dict[str, float] = {}
        started = time.perf_counter()
        self._runtime = self._made(trt.Runtime(self._logger), "runtime")
        self._engine = self._made(self._runtime.deserialize_cuda_engine(plan), "engine")
        self._lap("load", started)
        started = time.perf_counter()
        self._config = self._made(self._engine.create_runtime_config(), "runtime configuration")
        self._cache = self._made(self._config.create_runtime_cache(), "runtime cache") if cache is not None else None
        self._file = cache
        if self._cache is not None:
            if cache is not None and cache.exists():
                self._said(self._cache.deserialize(cache.read_bytes()), "use of the runtime cache")
            self._config.set_runtime_cache(self._cache)
        if graphs:
            self._config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._context = self._made(self._engine.create_execution_context(self._config), "execution context")
        self._stream = torch.cuda.Stream()
        self.tensors: dict[str, torch.Tensor] = {}
        self.set_batch(batch)
        self._lap("context", started)
        started = time.perf_counter()
        self.run()
        self._stream.synchronize()
        self._lap("first run", started)

    def set_batch(self, batch: int) -> None:
        """Other tensors, for batches of that size."""
        self._stream.synchronize()
        self._said(self._context.set_input_shape("images", (batch, *self._shape("images"))), "input shape")
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            kind = getattr(torch, np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name))).name)
            self.tensors[name] = torch.zeros((batch, *self._shape(name)), dtype=kind, device="cuda")
            self._context.set_tensor_address(name, self.tensors[name].data_ptr())
        torch.cuda.synchronize()  # the zeros are written on another stream

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._engine.get_tensor_shape(name))[1:]

    def run(self) -> None:
        """Start one run. Raises `BackendError` with the library's words."""
        self._said(self._context.execute_async_v3(self._stream.cuda_stream), "run")

    def milliseconds(self, seconds: float, least: int = 10) -> float:
        """Median of one run by the device's own clock, for `seconds` and at least `least` runs."""
        taken: list[float] = []
        for _ in range(WARMUP):
            self.run()
        begun = time.perf_counter()
        while len(taken) < least or time.perf_counter() - begun < seconds:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record(self._stream)
            self.run()
            after.record(self._stream)
            after.synchronize()
            taken.append(before.elapsed_time(after))
        return statistics.median(taken)

    def keep_cache(self) -> int:
        """Write the runtime cache; its bytes."""
        assert self._cache is not None and self._file is not None
        content = bytes(self._made(self._cache.serialize(), "serialized runtime cache"))
        self._file.write_bytes(content)
        return len(content)

    def _lap(self, name: str, started: float) -> None:
        self.seconds[name] = time.perf_counter() - started

    def _made(self, value: Any, what: str) -> Any:
        if value is None:
            raise BackendError(f"no {what}: {self.messages.why()}")
        return value

    def _said(self, done: bool, what: str) -> None:
        if not done:
            raise BackendError(f"no {what}: {self.messages.why()}")


def validity(library: Library, plan: bytes) -> str:
    """What the library says of the engine on this card before it loads it, such as VALID or INVALID."""
    messages = Messages()
    runtime = library.trt.Runtime(collecting_logger(library, messages))
    if runtime is None:
        raise BackendError(f"no runtime: {messages.why()}")
    said, diagnostics = runtime.get_engine_validity(plan)
    return f"{said.name} (diagnostics {diagnostics}) {'; '.join(messages.errors)}".strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--graphs", action="store_true")
    arguments = parser.parse_args()
    torch.cuda.init()
    torch.zeros(1, device="cuda")  # the driver's own start is not the engine's
    found: dict[str, Any] = {}
    try:
        library, plan = load_library("rtx"), arguments.engine.read_bytes()
        try:
            found["validity"] = validity(library, plan)
        except (BackendError, TypeError) as error:  # another version of the bindings; loading says more
            found["validity"] = str(error)
        engine = BareEngine(library, plan, arguments.batch, arguments.cache, arguments.graphs)
        found["seconds"] = engine.seconds
        found["milliseconds"] = engine.milliseconds(0.5)
        if arguments.cache is not None:
            found["cache_bytes"] = engine.keep_cache()
    except (BackendError, TypeError, RuntimeError) as error:  # TypeError: what the bindings make of a null pointer
        found["refused"] = one_line(error)
    print(MARK + json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
