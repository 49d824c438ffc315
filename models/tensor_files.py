"""Reading files of tensors without running the pickled code that such a file may hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch


class TensorFileError(ValueError):
    """A file that is not one of plain tensors; the message is the reason, without the path."""

    def __init__(self, reason: str, pickled: str = "") -> None:
        super().__init__(reason)
        self.pickled = pickled
        """The first kind of object in it that loading would have run code for, where that is the reason."""


def load_tensors(path: str | Path) -> Any:
    """What `torch.save` wrote: tensors, numbers, text, lists and mappings, on the CPU. Raises `TensorFileError`."""
    if not Path(path).is_file():
        raise TensorFileError("no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for files it cannot read
        pickled, text = "", str(error)
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL " in text:
            words = text.split("GLOBAL ", 1)[1].split()
            pickled = next((word.strip("`,.") for word in words if "." in word), "objects")
        reason = text.split("\n")[0][:200] or type(error).__name__
        raise TensorFileError(f"not a file of tensors, or truncated: {reason}", pickled) from error
