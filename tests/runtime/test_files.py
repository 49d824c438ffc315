"""Files are written whole or not at all; tables of text."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.files.text_table import text_table
from runtime.files.write import cache_folder, fitting, partial_path, replacing, require_writable, write_text
from tests.runtime.test_videos import no_file_larger_than


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
    with no_file_larger_than(1000), pytest.raises(OSError, match=r"File too large: '.*/metrics\.csv'"):
        write_text(path, "new" * 10_000)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("stem", ["n" * 250, "3" + "图" * 83, "a." + "b" * 248])
def test_a_name_that_the_file_system_takes_is_written(tmp_path: Path, stem: str) -> None:
    path = tmp_path / f"{stem}.jpg"
    require_writable(path)
    assert write_text(path, "whole").read_text() == "whole" and list(tmp_path.iterdir()) == [path]
    assert partial_path(path) != partial_path(tmp_path / f"{stem[:-1]}x.jpg")


def test_a_stem_is_cut_to_fit_and_stays_its_own() -> None:
    assert fitting("clip", ".jsonl") == "clip"
    one, other = fitting("图" * 84, ".jsonl"), fitting("图" * 83 + "圖", ".jsonl")
    assert one != other and all(len(f"{stem}.jsonl".encode()) <= 255 for stem in (one, other))


def test_an_error_of_the_hidden_file_names_the_one_that_was_wanted(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError) as raised:
        write_text(tmp_path / "report.html", "text")
    assert raised.value.filename == str(tmp_path / "report.html") and "partial" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_without_a_home_folder_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container's user without an entry in passwd."""

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", staticmethod(nobody))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(OSError, match=r"no home folder to keep a cache in; set data\.cache_dir, or XDG_CACHE_HOME"):
        cache_folder("data.cache_dir")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("data.cache_dir") == tmp_path / "isodet"


# From here on: tables
def test_a_head_alone():
    assert text_table(["run", "mAP"], [], {"run"}) == ["run  mAP"]


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [["a", "1.0", "fails: lost"], ["long name", "10.25", ""]]
    assert text_table(["run", "mAP", "gate"], rows, {"run", "gate"}) == [
        "run          mAP  gate",
        "a            1.0  fails: lost",
        "long name  10.25",
    ]
