"""Settings of ONNX Runtime's providers on a GPU."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import onnxruntime

from runtime.backends.options import BackendOptions
from runtime.card import Card


def cuda_provider(index: int, batch: int | str, cuda_graphs: bool) -> tuple[str, dict[str, Any]]:
    """The CUDA provider and its options. `batch`: the card's, a number or "dynamic"."""
    # ONNX Runtime's default tries every algorithm for every convolution again at each new batch size, for seconds.
    search = "HEURISTIC" if batch == "dynamic" else "EXHAUSTIVE"
    options = {"device_id": index, "cudnn_conv_algo_search": search}
    return "CUDAExecutionProvider", {**options, "enable_cuda_graph": True} if cuda_graphs else options


def tensorrt_provider(index: int, card: Card, input_name: str, most: int, cache: Path) -> tuple[str, dict[str, Any]]:
    """The TensorRT provider and its options: one engine for batches of 1 to `most`, kept in the folder `cache`."""
    height, width = card.frame_hw
    size = f"{height}x{width}x3" if card.input == "uint8-nhwc" else f"3x{height}x{width}"
    options: dict[str, Any] = {
        "device_id": index, "trt_engine_cache_enable": True, "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": True, "trt_timing_cache_path": str(cache),
    }  # fmt: skip
    if card.batch == "dynamic":  # otherwise an engine is built again whenever a batch is larger than those before
        for key, batch in (("min", 1), ("opt", max(1, most // 2)), ("max", most)):
            options[f"trt_profile_{key}_shapes"] = f"{input_name}:{batch}x{size}"
    return "TensorrtExecutionProvider", options


def engine_folder(path: str | Path, options: BackendOptions) -> Path:
    """Where the TensorRT provider keeps the engines of the file at `path`, made where it is not there.

    It takes what it finds without a look at the model or the version that built it, so each has a folder of its own.
    """
    model = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "isodet" / "tensorrt-provider"
    folder = Path(options.engine_cache or home) / f"{model}-{onnxruntime.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
