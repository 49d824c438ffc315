"""Files of tensors: reading them without running the pickled code that one may hold, and what does not fit."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isodet.errors import IsodetError


class TensorFileError(IsodetError, ValueError):
    """A file that is not one of plain tensors; the message is the reason, without the path."""

    def __init__(self, reason: str, pickled: str = "") -> None:
        super().__init__(reason)
        self.pickled = pickled
        """The first kind of object in it that loading would have run code for, where that is the reason."""


def load_tensors(path: str | Path, mapped: bool = False, check_hashes: bool = True) -> Any:
    """What `torch.save` wrote: tensors, numbers, text, lists and mappings, on the CPU. Raises `TensorFileError`.

    mapped: tensors stay in the file until somebody looks at them, which makes reading the rest quick.
    check_hashes: compare what is read with its checksums, which PyTorch writes and never looks at.
    """
    try:
        there = Path(path).is_file()
    except (OSError, ValueError) as error:  # a name that no file can have: too long, or with a NUL in it
        raise TensorFileError(f"no such file ({error})") from None
    if not there:
        raise TensorFileError("no such file")
    damage = _damage(path, but_tensors=mapped) if check_hashes else ""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except Exception as error:  # torch raises a dozen kinds for files it cannot read
        pickled, text = "", str(error)
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL " in text:
            words = text.split("GLOBAL ", 1)[1].split()
            pickled = next((word.strip("`,.") for word in words if "." in word), "objects")
        reason = text.split("\n")[0][:200] or type(error).__name__
        # PyTorch's own advice is to allow pickled code, which nothing here does.
        told = f": {damage}" if damage else "" if "weights_only" in text else f": {reason}"
        raise TensorFileError(f"not a file of tensors, or truncated{told}", pickled) from error
    if damage:
        raise TensorFileError(damage)
    return content


def _damage(path: str | Path, but_tensors: bool) -> str:
    """What is damaged in the zip archive at `path`, or "". Files in PyTorch's older format have no checksums."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"PK\x03\x04":
                return ""
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if but_tensors and "/data/" in member.filename:
                    continue
                if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                    return f"damaged: the entry of {member.filename!r} is not as PyTorch writes it; copy the file again"
                with archive.open(member) as content:
                    while content.read(1 << 20):
                        pass
    except zipfile.BadZipFile as error:
        return f"damaged: {str(error).replace('Bad CRC-32', 'wrong checksum')}; copy the file again"
    except Exception as error:  # zipfile has no common error for what a broken entry may ask of it
        return f"damaged: {error or type(error).__name__}; copy the file again"
    return ""


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
