"""Folders as machines leave them: hidden files, links, circles, and what is no picture."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.datasets import annotations as records
from runtime.datasets import read_dataset
from runtime.images.picture_files import files_in, list_pictures, pictures_in
from tests.runtime.as_found import boxes, picture, text, voc_set, voc_xml, yolo_set


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    return yolo_set(tmp_path / "yolo")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return voc_set(tmp_path / "voc")


def test_hidden_and_system_folders_are_no_data(yolo: Path) -> None:
    for name in (".ipynb_checkpoints/a-checkpoint.png", "@eaDir/a.png/THUMB.png", "__MACOSX/a.png", "._b.png"):
        picture(yolo / "images" / name)
    data = read_dataset(yolo)
    assert len(data) == 1 and not data.problems
    voc = yolo.parent / "voc"
    picture(voc / "JPEGImages" / "a.png")
    for folder, x in (("Annotations", 11), ("Annotations/.ipynb_checkpoints", 1)):
        text(voc / folder / "a.xml", voc_xml("a.png", (x, 11, 30, 30)))
    assert boxes(read_dataset(voc)) == [[10, 10, 30, 30]]


def test_below_a_hidden_folder_data_is_data(tmp_path: Path) -> None:
    picture(tmp_path / ".cache" / "set" / "a.png")
    assert [path.name for path in pictures_in(tmp_path / ".cache" / "set")] == ["a.png"]


def test_linked_folders_are_followed_and_circles_end(yolo: Path, tmp_path: Path) -> None:
    picture(tmp_path / "disk" / "b.png")
    picture(tmp_path / "disk" / "in" / "c.png")
    (yolo / "images" / "day2").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "disk" / "in" / "up").symlink_to(tmp_path / "disk", target_is_directory=True)
    (yolo / "images" / "self").symlink_to(yolo / "images", target_is_directory=True)
    for name in ("b", "in/c"):
        text(yolo / "labels" / "day2" / f"{name}.txt", "1 0.5 0.5 1 1\n")
    data = read_dataset(yolo)
    names = [record.path.relative_to(yolo / "images").as_posix() for record in data.records]
    assert names == ["a.png", "day2/b.png", "day2/in/c.png"] and [len(r.labels) for r in data.records] == [1, 1, 1]
    os.symlink(tmp_path / "nothing.png", yolo / "images" / "z.png")
    assert (yolo / "images" / "z.png") in files_in(yolo / "images")
    assert read_dataset(yolo).problems.counts == {records.NO_FILE: 1}


def test_content_says_what_a_picture_is_and_a_folder_tells_what_it_left_out(yolo: Path) -> None:
    jpeg = cv2.imencode(".jpg", np.full((40, 60, 3), 9, np.uint8))[1].tobytes()
    images = yolo / "images"
    for name in ("b.jfif", "c.mpo", "d", "e.mp4"):
        (images / name).write_bytes(jpeg)
    (images / "a.png.bak").write_bytes((images / "a.png").read_bytes())
    (images / "f.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (images / "g.avi").write_bytes(b"RIFF....AVI ")
    (images / "h.mjpeg").write_bytes(jpeg)
    (images / "i.gif").write_bytes(b"GIF89a")
    (images / "notes.doc").write_bytes(b"not a picture")
    found = list_pictures(files_in(images))
    assert [path.name for path in found.pictures] == ["a.png", "b.jfif", "c.mpo", "d", "e.mp4"]
    assert [path.name for path in found.left_out] == ["a.png.bak", "f.heic", "g.avi", "h.mjpeg", "i.gif"]
    data = read_dataset(yolo)
    assert len(data) == 5 and data.problems.counts == {records.LEFT_OUT: 4, records.HEIC: 1}


def test_links_keep_their_own_place(voc: Path, tmp_path: Path) -> None:
    """As the cache of a hub, DVC and git-annex keep data: every file is a link into a store."""
    (tmp_path / "store").mkdir()
    for i, path in enumerate(sorted(p for p in voc.rglob("*") if p.is_file())):
        path.rename(tmp_path / "store" / str(i))
        path.symlink_to(tmp_path / "store" / str(i))
    assert len(read_dataset(voc)) == 2 and len(read_dataset(voc / "ImageSets" / "Main" / "a.txt")) == 1
