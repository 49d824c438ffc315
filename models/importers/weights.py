"""Other projects' weight files: tensors and text only, no pickled code is ever run."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from isodet.errors import IsodetError
from models.tensor_files import TensorFileError, load_tensors


class ImportRefused(IsodetError, ValueError):
    """A file that cannot become an isodet checkpoint; the message says why and what comes nearest."""


@dataclass(frozen=True)
class Converted:
    """Weights under isodet's names and the configuration that goes with them, its classes not chosen yet."""

    architecture: str
    state: dict[str, Tensor]
    model: dict[str, Any]
    """A mapping for `models.config.model.model_config`."""
    notes: tuple[str, ...] = field(default=())
    """What the file does not say, and was taken from the architecture's published form."""


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, without wrappers and the prefix `module.`, and what the file says of itself under `meta`.

    Raises `ImportRefused`.
    """
    path = Path(path)
    try:
        content = load_tensors(path)
    except TensorFileError as error:
        told = _objects_inside(path, error.pickled) if error.pickled else f"{path}: {error}"
        raise ImportRefused(told, path=path) from error
    meta = content.get("meta") if isinstance(content, Mapping) else None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise ImportRefused.at(path, f"expected weights by name, got {type(content).__name__}")
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise ImportRefused.at(
            path, f"expected weights by name (alone, or under state_dict or model), but {strange[0]!r} is no tensor"
        )
    state = {str(key).removeprefix("module."): value for key, value in content.items()}
    return state, dict(meta) if isinstance(meta, Mapping) else {}


def _objects_inside(path: Path, what: str) -> str:
    """Why, and a command that keeps the tensors, for a user who trusts the file."""
    out = path.with_name(f"{path.stem}-tensors.pth")
    code = (
        "import sys, torch; f = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
        "torch.save(f.get('state_dict', f.get('model', f)), sys.argv[2])"
    )
    return (
        f"{path}: it holds pickled objects ({what}) beside its tensors, and loading those would run code from it. "
        f"If you trust where it comes from, keep its tensors only, where that package is installed: "
        f'python -c "{code}" {shlex.quote(str(path))} {shlex.quote(str(out))}  and import {out.name}'
    )


def sha256_starts(path: str | Path, digits: str) -> bool:
    """Whether the SHA-256 of a file begins with these hexadecimal `digits`, as torchvision's file names give them."""
    with Path(path).open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest().startswith(digits)
