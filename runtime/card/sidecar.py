"""The card of an engine: a JSON file beside it, because the engine's own bytes belong to TensorRT.

`best.engine` stays a plain plan that trtexec, Triton and DeepStream read; `best.engine.json` holds its card. The
card holds the engine's SHA-256, so that a copy of only one of the two is noticed before anything runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runtime.card.card import Card, CardError, card_text, sha256_file

ENGINE_KEYS = {
    "flavour": str,  # tensorrt or rtx
    "version": str,  # of the library that built it, and that has to run it
    "sm": list,  # compute capabilities it was built for, as 86 for 8.6; [] for every one that the library supports
    "gpu": str,  # name of the GPU it was built on; "" where it was built without one
    "system": str,  # linux-x86_64 and the like
    "hardware_compatible": bool,
    "version_compatible": bool,
    "tf32": bool,  # whether float32 convolutions may use TF32
    "profile": list,  # images in a batch: least, tuned for, most
    "bytes": int,
    "rebuild": str,  # the command that built it
    "audit": dict,  # see export.audit.audit.Audit.to_json
}


def sidecar_path(engine: str | Path) -> Path:
    """`best.engine.json` of `best.engine`."""
    engine = Path(engine)
    return engine.with_name(f"{engine.name}.json")


def read_sidecar(engine: str | Path, check_hashes: bool = True) -> Card:
    """The card beside the engine at `engine`. Raises `CardError` if it is missing, or is the card of another engine.

    check_hashes: compare the engine and the card with their hashes, which reads the whole engine.
    """
    engine = Path(engine)
    path = sidecar_path(engine)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CardError.at(
            engine,
            f"its sidecar {path.name} is not beside it; copy both files, or build the engine again with "
            "`exporter trt` (an engine of somebody else has none and cannot be used here)",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CardError.at(path, f"cannot be read: {error}") from None
    card = Card.from_json(text, path, check_hashes=False)
    if card.kind != "engine":
        raise CardError.at(
            path, f"expected engine, got {card.kind!r}; this is not the sidecar of an engine", key="kind"
        )
    for key, kind in ENGINE_KEYS.items():
        if not isinstance(card.engine.get(key), kind):
            raise CardError.at(path, f"expected {kind.__name__}, got {card.engine.get(key)!r}", key=f"engine.{key}")
    profile = card.engine["profile"]
    if len(profile) != 3 or not all(isinstance(n, int) for n in profile) or not 1 <= profile[0] <= profile[2]:
        raise CardError.at(path, f"expected [least, tuned for, most] images, got {profile!r}", key="engine.profile")
    size, expected = engine.stat().st_size, card.engine["bytes"]
    if size < expected:
        raise CardError.at(engine, f"truncated: {size} of {expected} bytes; copy it again")
    if check_hashes and sha256_file(engine) != card.hashes.get("engine"):
        raise CardError(
            f"{engine} and {path.name} do not belong together: the sidecar describes an engine with another SHA-256; "
            "copy both from the same place, or build the engine again",
            path=engine,
        )
    return Card.from_json(text, path, check_hashes)  # last, since an error of a key says more


def sidecar_text(card: Card) -> str:
    """The content of a sidecar."""
    return card_text(card, indent=1) + "\n"


def built_for(card: Card) -> str:
    """What an engine needs, in words: `TensorRT 10.13.3 on an NVIDIA A10 (SM86), linux-x86_64`."""
    facts: dict[str, Any] = dict(card.engine)
    library = "TensorRT-RTX" if facts["flavour"] == "rtx" else "TensorRT"
    names = [] if facts["hardware_compatible"] else [f"SM{sm}" for sm in facts["sm"]]
    targets = ", ".join(names) or "SM80 and later"
    where = f"an {facts['gpu']} ({targets})" if facts["gpu"] else targets
    return f"{library} {facts['version']} on {where}, {facts['system']}"
