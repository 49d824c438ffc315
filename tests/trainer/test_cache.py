"""The picture cache: never another pixel than without it, never past its budget, never a stale picture."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

from isodet.strict import ConfigError
from runtime.datasets.annotations import CocoDataset
from runtime.datasets.coco import read_coco
from runtime.images.image import FixedSize, ImageError, read_image, write_image
from tests.at_fault import raises
from trainer.config.data import DataConfig, SplitConfig
from trainer.config.train import AugmentConfig
from trainer.data import cache
from trainer.data.cache import CachedPictures, Pictures, pictures_for, reduced_hw
from trainer.data.train_set import TrainSet, collate, init_worker
from trainer.devices.free_memory import available_memory
from trainer.recipes import make_shapes


@pytest.fixture()
def shapes(tmp_path: Path) -> CocoDataset:
    make_shapes(tmp_path / "set", 8, 1)
    return read_coco(tmp_path / "set" / "train.json", tmp_path / "set" / "train")


def cached(data: CocoDataset, folder: Path | None, budget: int = 1 << 30, reduce_to: int = 0) -> CachedPictures:
    return CachedPictures(data.records, budget, reduce_to, folder)


@pytest.mark.parametrize("kind", ["ram", "disk"])
@pytest.mark.parametrize("reduce_to", [0, 50])
def test_training_views_are_the_same_with_and_without(shapes, tmp_path, kind, reduce_to):
    folder = None if kind == "ram" else tmp_path / "cache"

    def epochs(pictures: Pictures, workers: int) -> list[np.ndarray]:
        train = TrainSet(shapes, FixedSize((64, 64)), AugmentConfig(), 1, pictures)
        loader = DataLoader(train, 3, collate_fn=collate, num_workers=workers, worker_init_fn=init_worker)
        return [part.numpy() for _ in range(2) for batch in loader for part in batch[:3]]

    plain = epochs(Pictures(reduce_to), 0)
    half = cached(shapes, None, reduce_to=reduce_to).total // 2
    for budget in (1 << 30, half, 10):
        pictures = cached(shapes, folder, budget, reduce_to)
        for workers in (2, 0):
            assert all(np.array_equal(a, b) for a, b in zip(epochs(pictures, workers), plain, strict=True))
        assert pictures.total <= budget
        # The two loader processes filled it for all.
        filled = int(pictures._table["full"].sum()) if pictures.slots else 0
        assert filled == len(pictures.slots) and (filled == 8) == (budget > half)


def test_a_filled_slot_is_read_and_a_damaged_one_is_not(shapes, tmp_path, monkeypatch):
    path = shapes.records[0].path
    first = cached(shapes, tmp_path / "cache")
    truth = first.read(path)
    again = cached(shapes, tmp_path / "cache")  # another run
    kept = cached(shapes, None)
    sent = pickle.loads(pickle.dumps(kept))  # as to a process that is not forked
    sent.read(path)
    monkeypatch.setattr(cache, "read_image", lambda path: pytest.fail("decoded again"))
    assert (again.read(path) == truth).all() and (sent.read(path) == truth).all()
    monkeypatch.undo()
    again._pixels[5] ^= 1  # as a crash of the system may leave it
    assert (first.read(path) == truth).all()
    first.read(path)[:] = 0  # what is handed out is a copy
    assert (first.read(path) == truth).all()


def test_a_changed_picture_is_read_anew_and_a_missing_one_is_missing(shapes, tmp_path):
    path = shapes.records[0].path
    pictures = cached(shapes, tmp_path / "cache")
    old = pictures.read(path)
    write_image(path, 255 - old)
    os.utime(path, ns=(1, 1))
    assert (pictures.read(path) == read_image(path)).all() and not (pictures.read(path) == old).all()
    write_image(path, np.zeros((5, 7, 3), np.uint8))  # not of the annotated size: there is no room for it
    assert pictures.read(path).shape == (5, 7, 3)
    path.unlink()
    with raises(ImageError, path=path, image=path.name):
        pictures.read(path)


def test_more_than_there_is_is_refused_before_training(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "available_memory", lambda: 1000)
    with pytest.raises(ConfigError, match=r"GiB of memory are free; lower data\.cache_gib"):
        cached(shapes, None)
    split = SplitConfig("a.json", "a")
    plain = DataConfig(split, split)
    one = pictures_for(replace(plain, cache="disk", cache_dir=str(tmp_path / "c"), cache_gib=1.0), shapes.records)
    assert isinstance(one, CachedPictures)
    monkeypatch.setattr(cache, "available_memory", lambda: 3 * one.total)
    pictures_for(replace(plain, cache="ram", cache_gib=1.0), shapes.records, processes=3)
    with pytest.raises(ConfigError, match=r"GiB of memory are free"):  # memory is each process's own
        pictures_for(replace(plain, cache="ram", cache_gib=1.0), shapes.records, processes=4)

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ConfigError, match=r"cannot reserve .* No space left on device"):
        cached(shapes, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_available_memory_is_known_where_the_system_says_it():
    free = available_memory()
    assert (free is not None) == Path("/proc/meminfo").is_file() and (free is None or 0 < free < 2**50)


def test_reduced_sizes():
    assert reduced_hw((100, 50), 0) == (100, 50) == reduced_hw((100, 50), 100)
    assert reduced_hw((100, 50), 10) == (10, 5) and reduced_hw((1, 5000), 50) == (1, 50)


def test_without_a_home_folder_only_a_cache_without_a_place_is_refused(shapes, tmp_path, monkeypatch):
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", staticmethod(nobody))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    split = SplitConfig("a.json", "a")
    config = DataConfig(split, split, cache="disk", cache_gib=1.0)
    with pytest.raises(ConfigError, match=r"^data\.cache: .*no home folder.*; set data\.cache_dir"):
        pictures_for(config, shapes.records)
    assert pictures_for(replace(config, cache_dir=str(tmp_path)), shapes.records).describe()
