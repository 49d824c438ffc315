"""Settings of ONNX Runtime's GPU providers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from runtime.backends.options import BackendOptions
from runtime.backends.protocol import BackendError, input_layout
from runtime.card.card import Card
from runtime.card.onnx_metadata import graph_sha256
from runtime.files.write import cache_folder


def cuda_provider(index: int, batch: int | str, cuda_graphs: bool) -> tuple[str, dict[str, Any]]:
    """The CUDA provider and its options. `batch`: the card's, a number or "dynamic"."""
    # By default ONNX Runtime tries every algorithm for every convolution at each new batch size, which takes seconds.
    search = "HEURISTIC" if batch == "dynamic" else "EXHAUSTIVE"
    options = {"device_id": index, "cudnn_conv_algo_search": search}
    return "CUDAExecutionProvider", {**options, "enable_cuda_graph": True} if cuda_graphs else options


def tensorrt_provider(index: int, card: Card, input_name: str, most: int, cache: Path) -> tuple[str, dict[str, Any]]:
    """The TensorRT provider and its options: one engine for batches of 1 to `most`, kept in the folder `cache`."""
    options: dict[str, Any] = {
        "device_id": index, "trt_engine_cache_enable": True, "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": True, "trt_timing_cache_path": str(cache),
    }  # fmt: skip
    # Without these sizes TensorRT would build again whenever a batch is larger than those before.
    return "TensorrtExecutionProvider", {**options, **_profile("trt", card, input_name, most)}


def rtx_settings(card: Card, input_name: str, most: int, cache: Path, cuda_graphs: bool) -> dict[str, str]:
    """The RTX provider's options, all as text: kernels for batches of 1 to `most`, kept in `cache`."""
    options = {"nv_runtime_cache_path": str(cache), **_profile("nv", card, input_name, most)}
    return {**options, "enable_cuda_graph": "1"} if cuda_graphs else options


def _profile(prefix: str, card: Card, input_name: str, most: int) -> dict[str, str]:
    """The batch sizes that a file with a dynamic batch will get; nothing for one with a fixed batch."""
    size = "x".join(map(str, input_layout(card)[0]))
    batches = {"min": 1, "opt": max(1, most // 2), "max": most} if card.batch == "dynamic" else {}
    return {f"{prefix}_profile_{key}_shapes": f"{input_name}:{batch}x{size}" for key, batch in batches.items()}


def engine_folder(path: str | Path, card: Card, options: BackendOptions, most: int, version: str) -> Path:
    """The folder where a TensorRT provider of that version keeps what it builds from the file at `path`; it is made.

    A provider reuses what it finds there without a check of the model, the version or the options. So each graph (with
    its weights), largest batch `most` and choice of CUDA graphs has a folder of its own. Raises `BackendError` where
    the folder cannot be made.
    """
    graph = card.hashes.get("graph", "") if options.check_hashes else ""  # was just compared with the file
    key = f"{graph or graph_sha256(path)} {most} {options.cuda_graphs}"
    model = hashlib.sha256(key.encode()).hexdigest()[:16]
    try:
        home = options.engine_cache or cache_folder("BackendOptions.engine_cache") / f"{options.provider}-provider"
        folder = Path(home) / f"{model}-{version}"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError.at(path, f"no place for the engines that are built of it: {error}") from None
    return folder
