"""Names of a package whose modules are imported when a name is first asked for."""

from __future__ import annotations

import ast
import importlib
import sys
from typing import Any


def lazy_names(package: str) -> None:
    """Give `package` the names that its source imports under `if TYPE_CHECKING:`, each when it is first asked for.

    That block is the only list, which type checkers and editors read, too: lines `from module import name as name`. It
    also becomes `__all__` and the result of `dir()`. Raises ImportError where the package has no source, as in a
    program that was packed without its .py files.
    """
    here = sys.modules[package]
    spec = here.__spec__
    source = getattr(spec.loader, "get_source", lambda name: None)(package) if spec is not None else None
    if source is None:
        raise ImportError(f"{package}: its source is needed, where its names are listed; install or pack the .py files")
    homes: dict[str, str] = {}
    for block in ast.parse(source).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for line in block.body:
                assert isinstance(line, ast.ImportFrom) and line.module, f"{package}: expected from module import name"
                homes.update((alias.name, line.module) for alias in line.names)
    names = sorted(homes)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(here, name, value)
        return value

    # Not by assignments in the package: type checkers would then accept every name.
    vars(here).update(__getattr__=get, __dir__=lambda: names, __all__=names)
