"""Errors by what they name: tests say which key, file or picture is at fault, and not how that is worded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from isodet.errors import IsodetError


@contextmanager
def raises(
    kind: type[IsodetError], *, key: str | None = None, path: str | Path | None = None, image: str | None = None
) -> Iterator[pytest.ExceptionInfo[IsodetError]]:
    """An error of exactly this kind, whose message and attributes name exactly these, and at least one."""
    named: list[Any] = [name for name in (key, path, image) if name is not None]
    assert named, "nothing would tell this error from another: use pytest.raises(..., match=...)"
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    expected = (kind, key, None if path is None else Path(path), image)
    assert (type(error), error.key, error.path, error.image) == expected, f"{error!r} names {vars(error)}"
    assert all(str(name) in str(error) for name in named), error
