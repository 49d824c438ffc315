"""API keys: read from a file, and compared in a time that does not depend on them."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from pathlib import Path

from isodet.errors import IsodetError

LEAST = 16
"""Characters of the shortest key: fewer can be guessed by trying."""


class KeyFileError(IsodetError, ValueError):
    """A file of API keys that cannot be used."""


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys in the file at `path`, one a line; empty lines and lines that begin with # do not count.

    Raises `KeyFileError` for a file that is missing, has no key, or has a key that is too short or is not of printable
    ASCII characters, which a header cannot hold.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError.at(path, f"cannot be read as a file of API keys: {error}") from None
    keys = []
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if len(line) < LEAST or not line.isascii() or not line.isprintable() or " " in line:  # the key is not shown
            raise KeyFileError.at(
                path, f"line {number}: expected a key of at least {LEAST} ASCII characters without spaces"
            )
        keys.append(line)
    if not keys:
        raise KeyFileError.at(path, "has no key; write one a line, such as the output of `openssl rand -hex 32`")
    return tuple(keys)


def key_of(authorization: str | None, api_key: str | None) -> str | None:
    """The key in a request, from its header `Authorization: Bearer KEY` or `X-API-Key: KEY`; None where it has none."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token else api_key


def is_known(key: str, keys: Sequence[str]) -> bool:
    """Whether `key` is one of `keys`. Every one is compared, so that the time does not tell which one is near."""
    offered, known = key.encode("utf-8"), False
    for one in keys:
        known |= hmac.compare_digest(offered, one.encode("ascii"))
    return known
