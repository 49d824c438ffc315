"""Other projects' weight files: tensors and text only, no pickled code is ever run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from isodet.errors import IsodetError
from models.tensor_files import TensorFileError, load_tensors, not_dense


class ImportRefused(IsodetError, ValueError):
    """A file that cannot become an isodet checkpoint; the message says why, and what the nearest thing is that can."""


@dataclass(frozen=True)
class Converted:
    """Weights under isodet's names and the configuration for them, classes not chosen yet.

    model: a mapping for `models.config.model.model_config`. notes: settings that are not in the file, and were taken
    from the published form of the architecture.
    """

    architecture: str
    state: dict[str, Tensor]
    model: dict[str, Any]
    notes: tuple[str, ...] = ()


def neck_and_head(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes of neck and head, for `Converted.model`, read from weights under isodet's names."""
    channels, p6 = state["neck.laterals.0.conv.weight"].shape[0], state.get("neck.extra.0.conv.weight")
    return {
        "neck": {"channels": channels, "p6_from": "c5" if p6 is not None and p6.shape[1] != channels else "p5"},
        "head": {
            "depth": len({key.split(".")[2] for key in state if key.startswith("head.cls_tower.")}),
            "channels": state["head.box.weight"].shape[1],
        },
    }


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, without wrappers and the prefix `module.`, and the file's `meta`, {} where it has none.

    Raises `ImportRefused`.
    """
    path = Path(path)
    try:
        content = load_tensors(path)
    except TensorFileError as error:
        message = _pickled_objects(path, error.pickled) if error.pickled else f"{path}: {error}"
        raise ImportRefused(message, path=path) from error
    meta = content.get("meta") if isinstance(content, Mapping) else None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise ImportRefused.at(path, f"expected weights by name, got {type(content).__name__}")
    for key, value in content.items():
        if other := not_dense(value):
            place = "alone, or under state_dict or model"
            raise ImportRefused.at(path, f"expected dense tensors by name ({place}); {str(key)!r} is {other}")
    state = {str(key).removeprefix("module."): value for key, value in content.items()}
    return state, dict(meta) if isinstance(meta, Mapping) else {}


def _pickled_objects(path: Path, kind: str) -> str:
    """The message for a file with pickled objects: the reason, and a command that keeps only its tensors."""
    out = path.with_name(f"{path.stem}-tensors.pth")
    code = (
        "import sys, torch; f = torch.load(sys.argv[1], map_location='cpu', weights_only=False); "
        "torch.save(f.get('state_dict', f.get('model', f)), sys.argv[2])"
    )
    return (
        f"{path}: it holds pickled objects ({kind}) beside its tensors, and loading those would run code from it. "
        f"If you trust where it comes from, keep its tensors only, where that package is installed: "
        f'python -c "{code}" {shlex.quote(str(path))} {shlex.quote(str(out))}  and import {out.name}'
    )
