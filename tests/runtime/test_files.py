"""Files are written whole or not at all."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from runtime.files import replacing, write_text


def test_the_folder_is_made_and_the_suffix_kept_for_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "report.html"
    with replacing(path) as partial:
        assert partial.suffix == ".html" and partial.parent == path.parent
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_an_error_keeps_the_old_file_and_leaves_no_litter(tmp_path: Path) -> None:
    path = write_text(tmp_path / "x.json", "old")
    with pytest.raises(KeyError), replacing(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_text(tmp_path / "file" / "x.json", "text")


def test_a_disk_that_fills_up_is_told_with_the_file(tmp_path: Path) -> None:
    """The limit on a file's size cuts the write off in the middle, with an error that names no file of its own."""
    path = write_text(tmp_path / "metrics.csv", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*/metrics\.csv'"):
            write_text(path, "new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]
