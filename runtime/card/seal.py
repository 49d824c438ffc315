"""A seal: the SHA-256 of a JSON object, kept in that object, so that a changed byte in it is noticed.

Cards and files of ranges have one. A flipped bit often leaves valid JSON, with another threshold in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def sealed(content: Mapping[str, Any], key: str, inside: str | None = None) -> dict[str, Any]:
    """`content` with its seal under `key`: of `content` itself, or of the object `inside` it.

    Readers accept files without a seal, too.
    """
    holder = content if inside is None else content[inside]
    with_seal = {**holder, key: _digest(content, key, inside)}
    return with_seal if inside is None else {**content, inside: with_seal}


def is_broken(content: Mapping[str, Any], key: str, inside: str | None = None) -> bool:
    """Whether `content` differs from what was sealed; False where nothing was.

    Raises RecursionError for content that is nested too deeply.
    """
    holder = content if inside is None else content.get(inside)
    if not isinstance(holder, Mapping):
        return False
    if key in holder:
        return bool(holder[key] != _digest(content, key, inside))
    # The name of the seal may be damaged: then the text under another name is the seal.
    texts = [name for name, value in holder.items() if isinstance(value, str) and len(value) == 64]
    return any(holder[name] == _digest(content, name, inside) for name in texts)


def _digest(content: Mapping[str, Any], key: str, inside: str | None) -> str:
    """The hash of the values, independent of the order of keys and of white space."""
    holder = content if inside is None else content[inside]
    rest: Mapping[str, Any] = {name: value for name, value in holder.items() if name != key}
    unsealed = rest if inside is None else {**content, inside: rest}
    return hashlib.sha256(json.dumps(unsealed, sort_keys=True).encode()).hexdigest()
