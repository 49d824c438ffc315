"""The folder of a user's own parts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models.custom_folder import BASE, GOOD, forget


@pytest.fixture
def custom_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `GOOD` as `mine.py` and `BASE`; Python forgets it afterwards, with all modules imported from it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(GOOD)
    (tmp_path / "base.yaml").write_text(BASE)
    yield tmp_path
    forget(tmp_path)
