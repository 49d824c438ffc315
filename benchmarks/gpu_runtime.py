"""Engines behind the Detector on a GPU: against the bare engine, with CUDA graphs, and without the copy to the GPU.

    python benchmarks/gpu_runtime.py best.onnx best.pt [--device cuda] [--batch 1 2 4 8 16 32 64] [--seconds 3]

Each file is run by its own engine: an ONNX file by ONNX Runtime, a checkpoint by PyTorch. Times are medians of calls
that take turns, so that what else the machine does meets all of them.

bare/s: images a second of the session (`run` with NumPy arrays) or the module (`.to(device)`, `.cpu()`), of uint8
batches that are ready. Detector/s: from frames of the graph's own size in host memory to `Detections`; ratio: of the
two. graphs: how many times as fast the backend is with CUDA graphs. H2D: the share of the backend's time that goes when
the frames are on the GPU already. A dash is what this engine or device has not: on a CPU both.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime import BackendOptions, Detector
from runtime.backends.load import load_backend
from runtime.backends.protocol import Backend
from runtime.images.device_frames import DeviceFrame

WARMUP = 3


def medians(calls: list[Callable[[], Any]], seconds: float) -> list[float]:
    """Seconds of each of `calls`, which take turns for `seconds` and at least five times."""
    for call in calls:
        for _ in range(WARMUP):
            call()
    times: list[list[float]] = []
    begun = time.perf_counter()
    while len(times) < 5 or time.perf_counter() - begun < seconds:
        row = []
        for call in calls:
            start = time.perf_counter()
            call()
            row.append(time.perf_counter() - start)
        times.append(row)
    middle: list[float] = np.median(times, axis=0).tolist()
    return middle


def bare(path: Path, device: str, images: NDArray[np.uint8]) -> Callable[[], Any]:
    """One call of the engine without anything of ours around it. `device`: where the backend is, cpu or cuda:N."""
    if path.suffix == ".onnx":
        import onnxruntime

        providers: list[Any] = ["CPUExecutionProvider"]
        if device != "cpu":
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": int(device.partition(":")[2])}))
        session = onnxruntime.InferenceSession(str(path), providers=providers)
        assert device == "cpu" or "CUDAExecutionProvider" in session.get_providers()
        return lambda: session.run(None, {"images": images})
    import torch

    from models.checkpoint import load_detector

    model = load_detector(path)[0].to(device).eval()

    def run() -> list[Any]:
        with torch.no_grad():
            return [output.cpu() for output in model(torch.from_numpy(images).to(device))]

    return run


def on_gpu(backend: Backend, images: NDArray[np.uint8]) -> list[DeviceFrame]:
    """As many frames in the memory of the backend's GPU; what they show does not matter to the time."""
    from runtime.backends.cuda.memory import Block, use

    use(int(backend.device.partition(":")[2]))
    block, (height, width) = Block(images.nbytes), (images.shape[1], images.shape[2])
    size = height * width * 3
    return [
        DeviceFrame(block, block.address + i * size, (height, width), width * 3, None, backend.device)
        for i in range(len(images))
    ]


def row(path: Path, backend: Backend, graphs: Backend | None, batch: int, seconds: float) -> str:
    height, width = backend.card.frame_hw
    images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
    backend.max_batch = max(backend.max_batch, batch)
    detector, frames = Detector(backend, threshold=0.5), list(images)
    calls = [bare(path, backend.device, images), lambda: detector(frames), lambda: backend(images)]
    names = ["bare", "detector", "backend"]
    if graphs is not None:
        recorded = graphs
        calls.append(lambda: recorded(images))
        names.append("graphs")
    if backend.takes_device_frames:
        there = on_gpu(backend, images)
        calls.append(lambda: backend(there))
        names.append("there")
    t = dict(zip(names, medians(calls, seconds), strict=True))
    gain = f"{t['backend'] / t['graphs']:.2f}" if "graphs" in t else "-"
    share = f"{100 * (1 - t['there'] / t['backend']):.0f} %" if "there" in t else "-"
    return (f"{batch:>5}{batch / t['bare']:>10.1f}{batch / t['detector']:>12.1f}{t['bare'] / t['detector']:>8.3f}"
            f"{gain:>9}{share:>7}")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="+", help=".onnx files and .pt checkpoints")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each row")
    parser.add_argument("--no-graphs", action="store_true", help="where the graph cannot be recorded")
    arguments = parser.parse_args()
    for path in arguments.model:
        backend = load_backend(path, arguments.device)
        records = backend.device != "cpu" and not arguments.no_graphs
        graphs = load_backend(path, arguments.device, options=BackendOptions(cuda_graphs=True)) if records else None
        print(f"\n{path.name}: {backend.name} on {backend.device}, input {backend.card.frame_hw}")
        print(f"{'batch':>5}{'bare/s':>10}{'Detector/s':>12}{'ratio':>8}{'graphs':>9}{'H2D':>7}")
        for batch in arguments.batch:
            print(row(path, backend, graphs, batch, arguments.seconds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
