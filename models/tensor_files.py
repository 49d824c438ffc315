"""Files of tensors: reading them without running the pickled code that one may hold, and what does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class TensorFileError(ValueError):
    """A file that is not one of plain tensors; the message is the reason, without the path."""

    def __init__(self, reason: str, pickled: str = "") -> None:
        super().__init__(reason)
        self.pickled = pickled
        """The first kind of object in it that loading would have run code for, where that is the reason."""


def load_tensors(path: str | Path, mapped: bool = False) -> Any:
    """What `torch.save` wrote: tensors, numbers, text, lists and mappings, on the CPU. Raises `TensorFileError`.

    mapped: tensors stay in the file until somebody looks at them, which makes reading the rest quick.
    """
    if not Path(path).is_file():
        raise TensorFileError("no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except Exception as error:  # torch raises a dozen kinds for files it cannot read
        pickled, text = "", str(error)
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL " in text:
            words = text.split("GLOBAL ", 1)[1].split()
            pickled = next((word.strip("`,.") for word in words if "." in word), "objects")
        reason = text.split("\n")[0][:200] or type(error).__name__
        # PyTorch's own advice is to allow pickled code, which nothing here does.
        told = "" if "weights_only" in text else f": {reason}"
        raise TensorFileError(f"not a file of tensors, or truncated{told}", pickled) from error


def first_mismatches(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], count: int = 4) -> str:
    """What of `given` does not fit `wanted`, the first few of each kind with shapes; empty where all fits."""
    kinds = {
        "missing": [f"{k} {_shape(wanted[k])}" for k in wanted if k not in given],
        "not expected": [f"{k} {_shape(given[k])}" for k in given if k not in wanted],
        "of another shape": [
            f"{k} {_shape(given[k])} instead of {_shape(wanted[k])}"
            for k in wanted
            if k in given and given[k].shape != wanted[k].shape
        ],
    }
    told = []
    for kind, found in kinds.items():
        if found:
            more = f" and {len(found) - count} more" if len(found) > count else ""
            told.append(f"{len(found)} {kind}: {', '.join(found[:count])}{more}")
    return "; ".join(told)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
