"""The memory that a process can still take."""

from __future__ import annotations

from pathlib import Path


def available_memory() -> int | None:
    """Free bytes of memory, of the system or of the control group, whichever is less; None where unknown."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:
        return None
    group = Path("/sys/fs/cgroup")
    version_1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")
    for limit, usage in (("memory.max", "memory.current"), version_1):
        try:
            limits.append(int((group / limit).read_text()) - int((group / usage).read_text()))
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
    return max(0, min(limits)) if limits else None
