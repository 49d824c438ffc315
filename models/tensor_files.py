"""Files of tensors: reading them without running pickled code, and comparing them with a state dict."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isodet.errors import IsodetError


class TensorFileError(IsodetError, ValueError):
    """A file that does not hold plain tensors; the message is the reason, without the path.

    pickled: where the reason is pickled code, the first class that loading would have run.
    """

    def __init__(self, reason: str, pickled: str = "") -> None:
        super().__init__(reason)
        self.pickled = pickled


def load_tensors(path: str | Path, mapped: bool = False, check_hashes: bool = True) -> Any:
    """The content of a file of `torch.save`: tensors, numbers, text, lists and mappings, on the CPU.

    mapped: map the tensors into memory instead of reading them, which is quick where they are not used.
    check_hashes: compare the content with its checksums, which PyTorch writes but does not read.
    Raises `TensorFileError`.
    """
    try:
        exists = Path(path).is_file()
    except (OSError, ValueError) as error:  # an impossible name: too long, or with a NUL in it
        raise TensorFileError(f"no such file ({error})") from None
    if not exists:
        raise TensorFileError("no such file")
    damage = _damage(path, but_tensors=mapped) if check_hashes else ""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except Exception as error:  # torch raises a dozen kinds of errors for files that it cannot read
        pickled, text = "", str(error)
        if isinstance(error, pickle.UnpicklingError) and "GLOBAL " in text:
            words = text.split("GLOBAL ", 1)[1].split()
            pickled = next((word.strip("`,.") for word in words if "." in word), "objects")
        reason = text.split("\n")[0][:200] or type(error).__name__
        # Without PyTorch's own advice, which is to allow pickled code.
        detail = f": {damage}" if damage else "" if "weights_only" in text else f": {reason}"
        raise TensorFileError(f"not a file of tensors, or truncated{detail}", pickled) from error
    if damage:
        raise TensorFileError(damage)
    return content


def _damage(path: str | Path, but_tensors: bool) -> str:
    """The damage of the zip archive at `path`, "" for none. Files in PyTorch's older format have no checksums."""
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
                    while content.read(1 << 20):  # raises at the end for a wrong checksum
                        pass
    except zipfile.BadZipFile as error:
        return f"damaged: {str(error).replace('Bad CRC-32', 'wrong checksum')}; copy the file again"
    except Exception as error:  # zipfile's errors for broken entries have no common base
        return f"damaged: {error or type(error).__name__}; copy the file again"
    return ""


def not_dense(value: Any) -> str:
    """What `value` of a file is, where it is no dense tensor with its numbers; else ""."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.layout != torch.strided:
        return f"one of the layout {str(value.layout).removeprefix('torch.')}: save tensor.to_dense()"
    if value.device.type != "cpu":  # all others were brought to the CPU
        return f"one on the device {value.device}, which has a shape and no numbers: save the weights themselves"
    return ""


def first_mismatches(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], count: int = 4) -> str:
    """How `tensors` differ from those `expected` in names and shapes, up to `count` of each kind; "" if not at all."""
    shapes, needed = ({k: list(tensor.shape) for k, tensor in group.items()} for group in (tensors, expected))
    common = [k for k in needed if k in shapes]
    kinds = {
        "missing": [f"{k} {needed[k]}" for k in needed if k not in shapes],
        "not expected": [f"{k} {shapes[k]}" for k in shapes if k not in needed],
        "of another shape": [f"{k} {shapes[k]} instead of {needed[k]}" for k in common if shapes[k] != needed[k]],
    }
    parts = []
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - count} more" if len(names) > count else ""
            parts.append(f"{len(names)} {kind}: {', '.join(names[:count])}{more}")
    return "; ".join(parts)


def sha256_starts(path: str | Path, digits: str) -> bool:
    """Whether the SHA-256 of a file begins with these hexadecimal `digits`, as torchvision's file names give them."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest().startswith(digits)
