"""The base of every error that isodet raises on purpose."""

from __future__ import annotations

import copyreg
from pathlib import Path
from typing import Any


class IsodetError(Exception):
    """Something that isodet cannot do; the message says where, what was expected and what to do.

    What is at fault is also an attribute, None where no such thing is named:
    key: the dotted key of a config or a card, as `box.loss`.
    path: the file or folder.
    image: the file name of a picture.
    """

    def __init__(
        self, message: str = "", *, key: str | None = None, path: str | Path | None = None, image: str | None = None
    ) -> None:
        super().__init__(message)
        self.key, self.path, self.image = key, None if path is None else Path(path), image

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is, whatever the constructor takes: errors of other processes come pickled."""
        return copyreg.__newobj__, (type(self), *self.args), *super().__reduce__()[2:]  # type: ignore[attr-defined]
