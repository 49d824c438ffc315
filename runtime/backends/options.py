"""The options of a backend: each changes one thing from the default."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Literal

from runtime.backends.protocol import BackendError

Kind = Literal["onnx", "engine", "checkpoint"]
Engine = Literal["auto", "onnxruntime", "openvino"]
OpenVinoPrecision = Literal["float32", "bf16", "fp16"]

_ONLY_FOR: dict[str, tuple[Kind, str]] = {
    **dict.fromkeys(("engine", "precision", "streams", "provider", "engine_cache"), ("onnx", ".onnx files")),
    **dict.fromkeys(("compile", "channels_last", "autocast"), ("checkpoint", ".pt checkpoints")),
}
_VALUES = {
    "engine": ("auto", "onnxruntime", "openvino"), "precision": ("float32", "bf16", "fp16"),
    "provider": ("cuda", "tensorrt", "rtx"), "autocast": ("none", "bf16", "fp16"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """How a model is run. Results are verified with the defaults; every other choice is the user's own.

    Raises `BackendError` for values that do not go together.

    >>> detector = Detector("best.onnx", options=BackendOptions(check_hashes=False))
    >>> detector.runs_on
    'ONNX Runtime ...'
    >>> Detector("best.onnx", options=BackendOptions(compile=True))
    Traceback (most recent call last):
    runtime.backends.protocol.BackendError: best.onnx: compile is a choice for .pt checkpoints

    engine: what runs an .onnx file. auto: ONNX Runtime, or OpenVINO where only that is installed. openvino (pip install
        'isodet[openvino]'): faster on most CPUs, much so in 8 bits; also Intel's GPUs and NPUs. docs/runtime.md says
        which devices it takes. `runtime bench --pick` measures both.
    precision: OpenVINO: what the network computes in. bf16 and fp16 need a device that has them, and are the user's own
        choice; `exporter onnx --openvino-precision bf16` and `exporter verify` measure what one costs.
    streams: OpenVINO: calls that run side by side, for as many workers of a batcher. They share the threads.
    cuda_graphs: ONNX Runtime's CUDA and RTX providers, TensorRT and checkpoints: record the GPU's work once for each of
        a few batch sizes (`runtime.backends.cuda.batch_sizes`) and replay it. A batch between two sizes is padded to
        the larger one. ONNX Runtime and TensorRT need cuda-python. ONNX Runtime allows one worker of a batcher. A
        checkpoint needs an input of one size.
    provider: ONNX Runtime on a GPU. cuda: its CUDA kernels. tensorrt: engines that its TensorRT provider builds from
        the file the first time, in minutes, and keeps in `engine_cache`. rtx: the same by the plugin for RTX cards (pip
        install 'isodet[rtx-ep]'). No other provider takes its place. `exporter trt` builds engines that are verified.
    engine_cache: folder for what "tensorrt" and "rtx" build. None: tensorrt-provider/ or rtx-provider/ in isodet/ in
        $XDG_CACHE_HOME or ~/.cache. It holds machine code: nobody else should be able to write there. OpenVINO: folder
        for what it compiled, so that it starts faster the next time; None: none is kept.
    compile: checkpoints: `torch.compile`. The first batch of a new size compiles, in seconds to minutes.
    channels_last: checkpoints: weights with channels last in memory. This changes the module itself, for good.
    autocast: checkpoints: run in this type what PyTorch considers safe in half precision. Nothing verifies the results.
    check_hashes: read the file once more before loading, and refuse it where it is not what was written: one flipped
        bit in a weight would load silently and give other detections. Use False for a graph or a card that was edited
        on purpose, or to save time: 100 MB take 0.1 s for a checkpoint, 0.4 s for a graph or an engine, on one slow
        core. Files that are older than the hashes are loaded unchecked.
    """

    engine: Engine = "auto"
    precision: OpenVinoPrecision = "float32"
    streams: int = 1
    cuda_graphs: bool = False
    provider: Literal["cuda", "tensorrt", "rtx"] = "cuda"
    engine_cache: str | PathLike[str] | None = None
    compile: bool = False
    channels_last: bool = False
    autocast: Literal["none", "bf16", "fp16"] = "none"
    check_hashes: bool = True

    def __post_init__(self) -> None:
        for name, values in _VALUES.items():
            if getattr(self, name) not in values:
                raise BackendError.of(name, f"expected {', '.join(values)}; got {getattr(self, name)!r}")
        if self.streams < 1:
            raise BackendError.of("streams", f"expected at least 1, got {self.streams}")
        if self.engine != "openvino":
            for name in ("precision", "streams"):
                if getattr(self, name) != getattr(type(self), name):
                    raise BackendError.of(name, f'expected with engine="openvino" only, got {getattr(self, name)!r}')
        elif self.provider != "cuda" or self.cuda_graphs:
            name = "cuda_graphs" if self.cuda_graphs else "provider"
            raise BackendError.of(name, 'a choice of ONNX Runtime on a GPU, not with engine="openvino"')
        if self.engine_cache is not None and self.provider == "cuda" and self.engine != "openvino":
            raise BackendError.of(
                "engine_cache",
                'expected with provider="tensorrt" or "rtx", or with engine="openvino", which keep engines',
            )
        if self.cuda_graphs and self.provider == "tensorrt":
            reason = 'not with provider="tensorrt", which takes other sizes as they come'
            raise BackendError.of("cuda_graphs", f"{reason}; build an engine (exporter trt) for both")
        if self.cuda_graphs and self.compile:
            raise BackendError.of(
                "cuda_graphs", "not with compile, which may compile again in any call, and that cannot be recorded"
            )

    def check(self, kind: Kind, path: str | PathLike[str]) -> None:
        """Raise `BackendError` where an option is set that files of this kind do not have."""
        for name, (only_kind, files) in _ONLY_FOR.items():
            if kind != only_kind and getattr(self, name) != getattr(DEFAULT, name):
                raise BackendError(f"{path}: {name} is a choice for {files}", key=name, path=path)


DEFAULT = BackendOptions()
