"""Where a piece of work spends its time, and where it makes the host wait for the device."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).parents[2]
READS = (
    torch.ops.aten._local_scalar_dense.default,  # a number, for Python
    torch.ops.aten.nonzero.default,  # a tensor whose size is in the data
    torch.ops.aten.masked_select.default,
    torch.ops.aten.equal.default,
)


def host_reads(device: str, work: Callable[[], Any]) -> dict[str, int]:
    """How often `work` waits for the device, by place: file:line of ours.

    On a GPU as CUDA's calls say (torch's sync debug mode), once for each wait. On a CPU, which nobody waits for, as
    often as a number or a size is read out of a tensor, which on a GPU would be a wait.
    """
    return synchronizations(work) if device == "cuda" else reads(work)


def synchronizations(work: Callable[[], Any]) -> dict[str, int]:
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(Counter(short(w.filename, w.lineno) for w in caught if "synchroniz" in str(w.message)))


def reads(work: Callable[[], Any]) -> dict[str, int]:
    with ReadCounter() as counter:
        work()
    return dict(counter.places)


class ReadCounter(TorchDispatchMode):
    """Counts the operators that read values of a tensor back, by the line of ours that called for it."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func in READS:
            ours = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(ROOT)
                    and "site-packages" not in f.filename and Path(f.filename) != Path(__file__)]  # fmt: skip
            self.places[short(ours[-1].filename, ours[-1].lineno or 0) if ours else "in torch"] += 1
        return func(*args, **(kwargs or {}))


def short(filename: str, line: int) -> str:
    """A place as `trainer/step.py:60`; of a library, the file's last two names."""
    path = Path(filename)
    named = (
        path.relative_to(ROOT) if path.is_relative_to(ROOT) and ".venv" not in path.parts else Path(*path.parts[-2:])
    )
    return f"{named}:{line}"


def top_kernels(device: str, work: Callable[[], Any], count: int = 10) -> list[tuple[str, float]]:
    """The operations with the largest share of the time of the device, in per cent, the largest first."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiler:
        work()
        if device == "cuda":
            torch.cuda.synchronize()
    times = {
        event.key: float(event.self_device_time_total if device == "cuda" else event.self_cpu_time_total)
        for event in profiler.key_averages()
    }
    total = sum(times.values()) or 1.0
    ranked = sorted(times.items(), key=lambda item: -item[1])[:count]
    return [(name[:100], 100 * value / total) for name, value in ranked]
