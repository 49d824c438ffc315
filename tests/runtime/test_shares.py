"""A share of a data set for validation: the same each time, and no picture on both sides."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.datasets import read_dataset
from runtime.datasets.annotations import DatasetError
from tests.runtime.as_found import picture, text, voc_set


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return voc_set(tmp_path / "voc")


def test_a_share_is_the_same_each_time_and_parts_no_copies(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i in range(20):
        picture(root / "images" / f"{i}.png", shade=i)
        text(root / "labels" / f"{i}.txt", "0 0.5 0.5 1 1\n")
    text(root / "labels" / "classes.txt", "cat\n")

    def names(split: str, share: float = 0.2) -> set[str]:
        return {r.path.name for r in read_dataset(root, split=split, val_share=share).records}

    val, train = names("val"), names("train")
    assert (len(val), len(train)) == (4, 16) and not val & train
    assert names("val") == val and val < names("val", 0.5)
    chosen = sorted(val)[0]
    for copy in ("x1.png", "x2.png", "x3.png"):
        (root / "images" / copy).write_bytes((root / "images" / chosen).read_bytes())
    for split in ("train", "val"):
        assert len({chosen, "x1.png", "x2.png", "x3.png"} & names(split)) in (0, 4)
    for i in range(4):
        picture(root / "images" / f"cow_jpg.rf.{i:032x}.png", shade=100 + i)
    of_cow = [len([n for n in names(split) if n.startswith("cow")]) for split in ("train", "val")]
    assert sorted(of_cow) == [0, 4]
    with pytest.raises(DatasetError, match="a share is for train and val, not for test"):
        names("test")


def test_a_share_of_two_pictures_leaves_one_on_each_side(voc: Path) -> None:
    picture(voc / "JPEGImages" / "b.png", shade=3)  # else the two are copies
    for share in (0.01, 0.99):
        sides = [read_dataset(voc, split=split, val_share=share) for split in ("train", "val")]
        assert [len(side) for side in sides] == [1, 1]
    assert "1 of 2 pictures, by a hash of their names (val_share 0.99)" in sides[0].problems.summary()
