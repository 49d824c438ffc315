"""Settings of ONNX Runtime's providers on a GPU."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from runtime.backends.options import BackendOptions
from runtime.backends.protocol import BackendError
from runtime.card.card import Card
from runtime.card.onnx_metadata import graph_sha256
from runtime.files.write import cache_folder


def cuda_provider(index: int, batch: int | str, cuda_graphs: bool) -> tuple[str, dict[str, Any]]:
    """The CUDA provider and its options. `batch`: the card's, a number or "dynamic"."""
    # ONNX Runtime's default tries every algorithm for every convolution again at each new batch size, for seconds.
    search = "HEURISTIC" if batch == "dynamic" else "EXHAUSTIVE"
    options = {"device_id": index, "cudnn_conv_algo_search": search}
    return "CUDAExecutionProvider", {**options, "enable_cuda_graph": True} if cuda_graphs else options


def tensorrt_provider(index: int, card: Card, input_name: str, most: int, cache: Path) -> tuple[str, dict[str, Any]]:
    """The TensorRT provider and its options: one engine for batches of 1 to `most`, kept in the folder `cache`."""
    options: dict[str, Any] = {
        "device_id": index, "trt_engine_cache_enable": True, "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": True, "trt_timing_cache_path": str(cache),
    }  # fmt: skip
    # Without sizes an engine is built again whenever a batch is larger than those before.
    return "TensorrtExecutionProvider", {**options, **_profile("trt", card, input_name, most)}


def rtx_settings(card: Card, input_name: str, most: int, cache: Path, cuda_graphs: bool) -> dict[str, str]:
    """The RTX provider's options, all of them text: kernels for batches of 1 to `most`, kept in `cache`."""
    options = {"nv_runtime_cache_path": str(cache), **_profile("nv", card, input_name, most)}
    return {**options, "enable_cuda_graph": "1"} if cuda_graphs else options


def _profile(prefix: str, card: Card, input_name: str, most: int) -> dict[str, str]:
    """The sizes of the batches that a dynamic file will get; nothing for a fixed one."""
    height, width = card.frame_hw
    size = f"{height}x{width}x3" if card.input == "uint8-nhwc" else f"3x{height}x{width}"
    batches = {"min": 1, "opt": max(1, most // 2), "max": most} if card.batch == "dynamic" else {}
    return {f"{prefix}_profile_{key}_shapes": f"{input_name}:{batch}x{size}" for key, batch in batches.items()}


def engine_folder(path: str | Path, card: Card, options: BackendOptions, most: int, version: str) -> Path:
    """Where a TensorRT provider of that version keeps what it builds of the file at `path`, made where it is not there.

    It takes what it finds without a look at the model, the version or the options that built it, so each graph (with
    the weights beside it), largest batch `most`, and choice of CUDA graphs has a folder of its own.
    """
    graph = card.hashes.get("graph", "") if options.check_hashes else ""  # compared with the file a moment ago
    kind = f"{graph or graph_sha256(path)} {most} {options.cuda_graphs}"
    model = hashlib.sha256(kind.encode()).hexdigest()[:16]
    try:
        home = options.engine_cache or cache_folder("BackendOptions.engine_cache") / f"{options.provider}-provider"
        folder = Path(home) / f"{model}-{version}"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError.at(path, f"no place for the engines that are built of it: {error}") from None
    return folder
