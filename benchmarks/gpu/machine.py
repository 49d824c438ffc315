"""The machine: what is there, who else uses it, and the ceilings that the other stages are divided by."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu.stage import Row, Setting
from benchmarks.gpu.timing import median

PACKAGES = (
    "torch", "torchvision", "numpy", "opencv-python", "opencv-python-headless", "onnx", "onnxruntime",
    "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu13-bindings",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13", "cuda-bindings", "cupy-cuda13x", "pycocotools", "faster-coco-eval",
    "onnxslim", "PyNvVideoCodec",
)  # fmt: skip
BUSY_GB, BUSY_PERCENT = 1.0, 10.0
"""More than this of the card in others' hands, and times are not the card's own."""


def rows(setting: Setting) -> Iterator[Row]:
    versions = {name: version for name in PACKAGES if (version := installed(name))}
    yield Row("Python", platform.python_version(), note=platform.platform())
    yield Row("packages", ", ".join(f"{name} {version}" for name, version in versions.items()))
    setting.require_device()
    if setting.device == "cuda":
        yield from card()
    else:
        yield Row("processor", processor(), note=f"{torch.get_num_threads()} threads of torch")
    ceilings: dict[str, float] = {}
    size = setting.amount(2**31, 2**26)  # bytes: several times what the card's caches hold
    ceilings["copy_gb_s"] = copying(setting.device, size)
    yield Row("copy on the device", ceilings["copy_gb_s"], "GB/s", note="bytes read and bytes written")
    if setting.device == "cuda":
        yield from transfers(setting)
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False), ("tf32", torch.float32, True), ("bf16", torch.bfloat16, True),
        ("fp16", torch.float16, True),
    ):  # fmt: skip
        side = setting.amount(8192 if name != "fp32" else 4096, 256)
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
        seconds = median(lambda a=a, b=b: a @ b, 0.3, setting.device, least=10)  # type: ignore[misc]
        ceilings[name] = 2 * side**3 / seconds / 1e12
        yield Row(f"matrix product, {name}", ceilings[name], "TFLOP/s", note=f"{side} x {side} x {side}, random")
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        yield convolution(setting, name, dtype)
    (setting.work / "ceilings.json").write_text(json.dumps(ceilings))


def copying(device: str, size: int) -> float:
    """GB/s of a copy of `size` bytes from the device to itself."""
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / median(lambda: target.copy_(source), 0.5, device, least=10) / 1e9


def card() -> Iterator[Row]:
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    major, minor = torch.cuda.get_device_capability()
    yield Row("GPU", properties.name, note=f"SM{major}{minor}, {properties.multi_processor_count} multiprocessors")
    driver, used = nvidia_smi()
    yield Row("driver", driver, note=f"CUDA of torch {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    own = torch.cuda.memory_reserved() / 1e9
    others = (total - free) / 1e9 - own
    busy = others > BUSY_GB or used > BUSY_PERCENT
    note = "busy: what follows is not the card's own" if busy else ""
    yield Row("memory", total / 1e9, "GB", note=f"{free / 1e9:.1f} GB free; {used:.0f} % in use. {note}".strip())


def nvidia_smi() -> tuple[str, float]:
    """Driver and use in per cent, as nvidia-smi says them."""
    if shutil.which("nvidia-smi") is None:
        return "unknown: no nvidia-smi", 0.0
    command = ["nvidia-smi", "--query-gpu=driver_version,utilization.gpu", "--format=csv,noheader,nounits"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    driver, _, used = said.stdout.splitlines()[0].partition(",") if said.stdout.strip() else ("unknown", "", "")
    return driver.strip(), float(used) if used.strip().isdigit() else 0.0


def transfers(setting: Setting) -> Iterator[Row]:
    size = setting.amount(2**28, 2**24)
    there, pinned = (
        torch.empty(size, dtype=torch.uint8, device="cuda"),
        torch.empty(size, dtype=torch.uint8, pin_memory=True),
    )
    ordinary = torch.ones(size, dtype=torch.uint8)
    for name, call in (
        ("host to device, page-locked", lambda: there.copy_(pinned, non_blocking=True)),
        ("host to device, ordinary memory", lambda: there.copy_(ordinary)),
        ("device to host, page-locked", lambda: pinned.copy_(there, non_blocking=True)),
    ):
        yield Row(name, size / median(call, 0.2, "cuda") / 1e9, "GB/s")


def convolution(setting: Setting, name: str, dtype: torch.dtype) -> Row:
    """A convolution of the head: 3x3, 256 channels, stride 8 of 800x1344 pixels, channels last."""
    batch, channels, height, width = setting.amount(16, 1), setting.amount(256, 16), 100, 168
    pixels = (
        torch.randn(batch, channels, height, width, device=setting.device)
        .to(dtype)
        .to(memory_format=torch.channels_last)
    )
    layer = torch.nn.Conv2d(channels, channels, 3, padding=1, device=setting.device, dtype=dtype)
    layer = layer.to(memory_format=torch.channels_last)
    with torch.no_grad():
        seconds = median(lambda: layer(pixels), 0.3, setting.device)
    flops = 2 * batch * channels * channels * 9 * height * width
    return Row(f"3x3 convolution, {name}", flops / seconds / 1e12, "TFLOP/s",
               note=f"{channels} channels, {height} x {width}, batch {batch}, channels last")  # fmt: skip


def ceiling(work: Path, name: str) -> float | None:
    """TFLOP/s of fp32, tf32, bf16 or fp16, or `copy_gb_s`, as the stage `machine` found; None where it did not run."""
    path = work / "ceilings.json"
    if not path.exists():
        return None
    value: float | None = json.loads(path.read_text()).get(name)
    return value


def installed(package: str) -> str:
    """Its version, or nothing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    """Its name, as Linux knows it."""
    path = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
        if path.exists()
        else []
    )
    return names[0] if names else platform.processor() or "unknown"
