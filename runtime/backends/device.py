"""How devices are named: auto, cpu, cuda or cuda:N."""

from __future__ import annotations

from typing import Literal, cast

from runtime.backends.protocol import BackendError


def parse_device(device: str) -> tuple[Literal["auto", "cpu", "cuda"], int]:
    """The kind of `device`, and the number of the CUDA device: 0 where `device` has no number.

    Raises `BackendError` for anything but auto, cpu, cuda and cuda:N.
    """
    kind, colon, number = device.partition(":")
    numbered = kind == "cuda" and number.isascii() and number.isdigit()
    if kind not in ("auto", "cpu", "cuda") or (colon and not numbered):
        raise BackendError.of("device", f"expected auto, cpu, cuda or cuda:N, got {device!r}")
    return cast(Literal["auto", "cpu", "cuda"], kind), int(number or 0)
