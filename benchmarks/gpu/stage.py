"""What a stage of the sequence is: what it is told, and what it gives."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

State = Literal["done", "not here", "failed", "over time", "not run"]


class NotHere(RuntimeError):
    """A stage, or the rest of it, cannot run on this machine. The message says why, in one line."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    what: str
    value: float | str | None
    """None: it could not be measured, and `note` says why."""
    unit: str = ""
    least: float | None = None
    """The aim, where there is one: the value is to be at least this,"""
    most: float | None = None
    """or at most this."""
    note: str = ""

    @property
    def reached(self) -> bool | None:
        """Whether the aim was reached; None where there is none. A value that is not there reaches no aim."""
        if self.least is None and self.most is None:
            return None
        if not isinstance(self.value, (int, float)):
            return False
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    @property
    def aim(self) -> str:
        """Such as '>= 0.95', or nothing."""
        signs = ((">=", self.least), ("<=", self.most))
        return " and ".join(f"{sign} {limit:g}" for sign, limit in signs if limit is not None)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "reached": self.reached}


@dataclass(frozen=True)
class Stage:
    """A part of the sequence, run in a process of its own."""

    name: str
    module: str
    """Its function `rows(setting)` yields the rows as they are measured."""
    seconds: float
    """Its time limit, start of the process included."""
    about: str


@dataclass(frozen=True)
class Setting:
    """What a stage is told."""

    device: str
    """cpu or cuda."""
    small: bool
    """Small numbers, which show that the stage runs and not how fast."""
    work: Path
    """Folder for what later stages and later runs use again: networks, checkpoints, ceilings."""
    ends: float
    """By `time.monotonic`: a stage that is not through by then is killed."""

    def left(self) -> float:
        """Seconds until then."""
        return self.ends - time.monotonic()

    def amount(self, full: int, small: int) -> int:
        return small if self.small else full

    def require_device(self) -> None:
        """Raise `NotHere` with the reason where the device is a GPU and torch sees none."""
        if self.device == "cuda" and (why := why_no_cuda()):
            raise NotHere(f"no CUDA here: {why}")

    def require_cuda(self) -> None:
        """The same, and where the stage is rehearsed on the CPU."""
        if self.device != "cuda":
            raise NotHere("no CUDA here: rehearsed with --device cpu")
        self.require_device()


def why_no_cuda() -> str:
    """Torch's own reason why there is no CUDA, such as a driver that is too old; empty where there is."""
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built for the CPU"
    try:
        torch.cuda.init()
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:  # what torch raises for no driver, an old one, and no device
        return one_line(error)
    return ""


def one_line(error: object) -> str:
    """A reason that fits into a cell of the table."""
    return " ".join(str(error).split())[:400]
