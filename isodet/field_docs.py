"""The texts in the docstring of a dataclass about its fields."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any


def field_docs(kind: type[Any]) -> dict[str, str]:
    """The text behind `name: ` in the docstring of the dataclass `kind`, by field; each is one line.

    A field's text ends at the next field or the next empty line. Texts of inherited fields come from the base class.
    Without docstrings (python -OO) the result is empty.
    """
    names = {f.name for f in dataclasses.fields(kind)}
    texts: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        current: str | None = None
        for line in inspect.cleandoc(owner.__dict__.get("__doc__") or "").splitlines():
            start = re.match(r"(\w+): (.*)", line)
            if start and start[1] in names:
                current = start[1]
                texts[current] = start[2].strip()
            elif not line.strip():
                current = None
            elif current is not None:
                texts[current] += " " + line.strip()
    return texts
