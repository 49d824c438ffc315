"""Trainings in processes of their own, which may die; forked, so that a test can give them any function."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from trainer.config.train import TrainConfig
from trainer.loop import fit


def child(work: Callable[[], object], err: Path, environment: Mapping[str, str] | None = None) -> int:
    """Run `work` in a process of its own, whose stderr goes to the end of the file `err`; returns the process's id.

    Its exit status is what `work` returns, 0 for None, and 70 where `work` raises.
    """
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            with err.open("a") as file:
                os.dup2(file.fileno(), 2)
                sys.stderr = file
                os.environ |= environment or {}
                status = int(work() or 0)
                file.flush()
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """Exit status of a child, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def two(work: Callable[[int], object], err: Path) -> list[int]:
    """Exit statuses of two processes that torchrun's environment makes one training; stderr goes to `err`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pids = [
        child(partial(work, rank), err, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)
    ]
    return [ended(pid) for pid in pids]


def fit_in_two(settings: TrainConfig, runs: Path) -> Path:
    """Train in two processes; returns the folder of the one run that they write."""
    err = runs.with_suffix(".err")
    assert two(lambda rank: fit(settings, runs, quiet=True) and 0, err) == [0, 0], err.read_text()
    (run,) = (path for path in runs.iterdir() if path.is_dir())
    return run
