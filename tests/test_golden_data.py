"""The golden fixture itself: where it reads, and that a missing file is an error."""

import shutil
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("ISODET_GOLDEN", str(tmp_path))
    return tmp_path


def test_files_come_from_the_folder_that_the_environment_names(elsewhere, golden_from):
    shutil.copy(HERE / "golden" / "coders.npz", elsewhere / "coders.npz")
    assert golden_from()("coders")["priors"].shape[1] == 4


def test_a_missing_file_is_an_error_that_names_it(elsewhere, golden_from):
    with pytest.raises(FileNotFoundError, match="coders.npz is missing"):
        golden_from()("coders")


def test_a_plain_clone_has_its_own(monkeypatch, golden_from):
    monkeypatch.delenv("ISODET_GOLDEN", raising=False)
    names = sorted(path.stem for path in (HERE / "golden").glob("*.npz"))
    assert "assign_atss" in names
    for name in names:
        assert golden_from()(name)
