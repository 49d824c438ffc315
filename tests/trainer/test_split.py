"""trainer new --val-share: what belongs together stays on one side, and the lists keep the split as it was."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from isodet.strict import ConfigError
from runtime.datasets import fingerprint, read_dataset
from runtime.datasets.annotations import NOT_LISTED, DatasetError
from runtime.images.image import Image, write_image
from tests.at_fault import raises
from tests.trainer.scenes import copies, scene
from trainer.__main__ import main
from trainer.check.data import check_data
from trainer.check.decoded import decode_pictures
from trainer.config_reader import read_config
from trainer.data.datasets import train_data, val_data
from trainer.new.split import divide, for_validation, picture_groups


def yolo_set(folder: Path, pictures: dict[str, Image]) -> Path:
    """A YOLO data set of these pictures by name, each with one object; returns its folder."""
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    (folder / "labels" / "classes.txt").write_text("cell\n")
    for name, image in pictures.items():
        write_image(folder / "images" / name, image)
        (folder / "labels" / name).with_suffix(".txt").write_text("0 0.5 0.5 0.4 0.4\n")
    return folder


def groups(folder: Path) -> list[list[str]]:
    paths = sorted(folder.glob("images/*"))
    return [[paths[place].name for place in group] for group in picture_groups(list(decode_pictures(paths)))]


def moved(image: Image, pixels: int) -> Image:
    """The next frame of a camera that pans."""
    return np.roll(image, pixels, axis=1)


def test_copies_near_duplicates_and_frames_are_groups_and_running_numbers_alone_are_not(tmp_path: Path) -> None:
    film = cv2.GaussianBlur(scene(50), (0, 0), 5).astype(np.uint8)
    frames = {f"clip_{number}.png": moved(film, 9 * step) for step, number in enumerate((8, 9, 10, 40))}
    pictures = {f"IMG_{number}.png": scene(number) for number in range(3)}
    pictures |= {f"copy-{name}.png": image for name, image in copies(scene(0)).items()}
    pictures |= {"cow_jpg.rf.0123456789abcdef0.png": scene(7), "cow_jpg.rf.0123456789abcdef1.png": scene(8)}
    found = groups(yolo_set(tmp_path / "set", pictures | frames))
    assert sorted(len(group) for group in found) == [1, 1, 2, 4, 5]
    assert ["clip_10.png", "clip_40.png", "clip_8.png", "clip_9.png"] in found
    for single in ("IMG_1.png", "IMG_2.png"):
        assert [single] in found
    assert {"IMG_0.png", *(f"copy-{name}.png" for name in copies(scene(0)))} in [set(group) for group in found]


def test_a_neighbor_must_be_the_next_number_in_its_folder_and_of_its_size(tmp_path: Path) -> None:
    film = cv2.GaussianBlur(scene(50), (0, 0), 5).astype(np.uint8)
    first, second = moved(film, 0), moved(film, 12)
    assert len(groups(yolo_set(tmp_path / "a", {"v_1.png": first, "v_2.png": second}))) == 1
    between = {"v_1.png": first, "v_2.png": scene(3), "v_3.png": second}
    assert len(groups(yolo_set(tmp_path / "b", between))) == 3
    assert len(groups(yolo_set(tmp_path / "c", {"v_1.png": first, "w_2.png": second}))) == 2
    assert len(groups(yolo_set(tmp_path / "d", {"v_1.png": first, "v_2.png": second[:-8]}))) == 2


def test_a_share_takes_whole_groups_near_to_it_and_never_all() -> None:
    singles = [[Path(f"{i}.jpg")] for i in range(80)]
    film = [Path(f"film{i}.jpg") for i in range(60)]
    for order in ([film, *singles], [*singles, film]):
        names = {path for place in for_validation(order, 0.2) for path in order[place]}
        assert len(names) == 28 and not names & set(film)
    assert for_validation([film, film[:50]], 0.01) == [1]
    for share in (0.01, 0.5, 0.99):
        assert len(for_validation([[Path("a")], [Path(f"b{i}") for i in range(9)]], share)) == 1


def test_lists_are_stable_when_pictures_are_added_and_check_data_names_the_new_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = yolo_set(tmp_path / "set", {f"{i}.png": scene(i) for i in range(12)})
    path = tmp_path / "my.yaml"
    assert main(["new", str(path), "--train", str(data), "--val-share", "0.25", "--size", "64", "--quiet"]) == 0
    assert "my.val.txt: which pictures train and which validate" in capsys.readouterr().out
    lists = {split: (tmp_path / f"my.{split}.txt").read_text().splitlines() for split in ("train", "val")}
    assert len(lists["val"]) == 3 and sorted(lists["train"] + lists["val"]) == sorted(f"{i}.png" for i in range(12))
    before = fingerprint(val_data(read_config(path)))
    yolo_set(data, {f"new{i}.png": scene(100 + i) for i in range(5)})
    (data / "images" / lists["train"][0]).unlink()
    config = read_config(path)
    sides = {"train": train_data(config), "val": val_data(config)}
    assert {record.path.name for record in sides["val"].records} == set(lists["val"])
    assert {record.path.name for record in sides["train"].records} == set(lists["train"][1:])
    assert "3 of 16 pictures, those of my.val.txt" in sides["val"].problems.summary()
    assert [p.detail for p in sides["train"].problems.items if p.reason == NOT_LISTED] == [
        str(data / "images" / lists["train"][0])
    ]
    report = check_data(config, tmp_path / "out")
    counts = {(item.id, item.split): item.count for item in report.findings}
    assert counts["pictures-in-no-split", "both"] == 5
    assert counts["annotations-without-picture", "train"] == 2  # its line in the list, and its file of labels
    (tmp_path / "my.val.txt").write_text("".join(f"{name}\n" for name in lists["val"][1:]))
    assert fingerprint(val_data(config)) != before  # a run that goes on notices it


def test_a_list_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    data = yolo_set(tmp_path / "set", {f"{i}.png": scene(i) for i in range(3)})
    path = tmp_path / "list.txt"
    for text, key in (("", "pictures"), ("elsewhere.png\n", "pictures"), (None, None)):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with raises(DatasetError, key=key, path=path):
            read_dataset(data, pictures=path)


def test_pictures_that_all_belong_together_are_refused_by_key(tmp_path: Path) -> None:
    data = read_dataset(yolo_set(tmp_path / "set", {f"{name}.png": image for name, image in copies(scene(1)).items()}))
    for share in (0.0, 1.0, -1.0, float("nan"), 0.2):
        with raises(ConfigError, key="val_share"):
            divide(data, share)
    with pytest.raises(ConfigError, match=r"one group of near-duplicates.*--val"):
        divide(data, 0.2)


@pytest.mark.parametrize("share", ["0", "1", "nan"])
def test_a_wrong_share_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], share: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["new", str(tmp_path / "c.yaml"), "--train", str(tmp_path), "--val-share", share])
    assert (
        stop.value.code == 2 and "--val-share: expected a share between 0 and 1, such as 0.2" in capsys.readouterr().err
    )


def test_the_one_split_of_a_data_yaml_is_divided(tmp_path: Path) -> None:
    data = yolo_set(tmp_path / "set", {f"{i}.png": scene(i) for i in range(6)})
    (data / "data.yaml").write_text("train: images\nnames: [cell]\n")
    path = tmp_path / "my.yaml"
    assert main(["new", str(path), "--train", str(data / "data.yaml"), "--val-share", "0.3", "--quiet"]) == 0
    config = read_config(path)
    assert [len(part) for part in (train_data(config), val_data(config))] == [4, 2]
