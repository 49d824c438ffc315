"""The base of every error that isodet raises on purpose."""

from __future__ import annotations

import copyreg
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


class IsodetError(Exception):
    """Something that isodet cannot do; the message says where, what was expected and what to do.

    The cause is also in attributes, None where it is not known:
    key: the dotted key of a config or a card, as `box.loss`, or the name of an option.
    path: the file or folder.
    image: the file name of a picture.
    """

    def __init__(
        self,
        message: str = "",
        *,
        key: str | None = None,
        path: str | PathLike[str] | None = None,
        image: str | None = None,
    ) -> None:
        super().__init__(message)
        self.key, self.path, self.image = key, None if path is None else Path(path), image

    @classmethod
    def at(cls, path: str | PathLike[str], reason: str, *, key: str | None = None) -> Self:
        """The error of the file or folder `path`, or of `key` in it; the message begins with them."""
        return cls(f"{path}: {reason}" if key is None else f"{path}: {key}: {reason}", key=key, path=path)

    @classmethod
    def of(cls, key: str, reason: str) -> Self:
        """The error of the key or option `key`, which the message begins with."""
        return cls(f"{key}: {reason}", key=key)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the error without a call of its constructor, since errors pass between processes pickled."""
        return copyreg.__newobj__, (type(self), *self.args), *super().__reduce__()[2:]  # type: ignore[attr-defined]


class ArgumentError(IsodetError, ValueError):
    """An argument that a function or a class cannot take; `key` is its name."""
