"""The options of a backend: each changes one thing from the default."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Literal

from runtime.backends.protocol import BackendError

Kind = Literal["onnx", "engine", "checkpoint"]

_ONLY_FOR: dict[str, tuple[Kind, str]] = {
    **dict.fromkeys(("provider", "engine_cache"), ("onnx", ".onnx files")),
    **dict.fromkeys(("compile", "channels_last", "autocast"), ("checkpoint", ".pt checkpoints")),
}


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

    cuda_graphs: ONNX Runtime's CUDA and RTX providers, TensorRT and checkpoints: record the GPU's work once for each of
        a few batch sizes (`runtime.backends.cuda.batch_sizes`) and replay it. A batch between two sizes is padded to
        the larger one. ONNX Runtime and TensorRT need cuda-python. ONNX Runtime allows one worker of a batcher. A
        checkpoint needs an input of one size.
    provider: ONNX Runtime on a GPU. cuda: its CUDA kernels. tensorrt: engines that its TensorRT provider builds from
        the file the first time, in minutes, and keeps in `engine_cache`. rtx: the same by the plugin for RTX cards (pip
        install 'isodet[rtx-ep]'). No other provider takes its place. `exporter trt` builds engines that are verified.
    engine_cache: folder for what "tensorrt" and "rtx" build. None: tensorrt-provider/ or rtx-provider/ in isodet/ in
        $XDG_CACHE_HOME or ~/.cache. It holds machine code: nobody else should be able to write there.
    compile: checkpoints: `torch.compile`. The first batch of a new size compiles, in seconds to minutes.
    channels_last: checkpoints: weights with channels last in memory. This changes the module itself, for good.
    autocast: checkpoints: run in this type what PyTorch considers safe in half precision. Nothing verifies the results.
    check_hashes: read the file once more before loading, and refuse it where it is not what was written: one flipped
        bit in a weight would load silently and give other detections. Use False for a graph or a card that was edited
        on purpose, or to save time: 100 MB take 0.1 s for a checkpoint, 0.4 s for a graph or an engine, on one slow
        core. Files that are older than the hashes are loaded unchecked.
    """

    cuda_graphs: bool = False
    provider: Literal["cuda", "tensorrt", "rtx"] = "cuda"
    engine_cache: str | PathLike[str] | None = None
    compile: bool = False
    channels_last: bool = False
    autocast: Literal["none", "bf16", "fp16"] = "none"
    check_hashes: bool = True

    def __post_init__(self) -> None:
        for name, values in (("provider", ("cuda", "tensorrt", "rtx")), ("autocast", ("none", "bf16", "fp16"))):
            if getattr(self, name) not in values:
                raise BackendError.of(name, f"expected {', '.join(values)}; got {getattr(self, name)!r}")
        if self.engine_cache is not None and self.provider == "cuda":
            raise BackendError.of("engine_cache", 'expected with provider="tensorrt" or "rtx", which build engines')
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
