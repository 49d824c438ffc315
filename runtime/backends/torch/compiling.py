"""torch.compile, with its failures as errors of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


def compiled(network: Callable[[torch.Tensor], T], refused: Callable[[str], Exception]) -> Callable[[torch.Tensor], T]:
    """`network` through torch.compile.

    Where torch.compile does not work, raises `refused(reason)`: at once on a Python or a system that PyTorch does not
    support, otherwise with the first images, which start the compiler. Errors of the network itself stay as they are.
    """
    try:
        compiled_network: Callable[[torch.Tensor], T] = torch.compile(network)
    except RuntimeError as error:
        raise refused(_reason(error)) from error

    def run(images: torch.Tensor) -> T:
        try:
            return compiled_network(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise refused(_reason(error)) from error

    return run


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
