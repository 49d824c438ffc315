"""Trainings on sets of real photographs: the sets, their configs, and the results that grow line by line.

FOLDER holds sets of pictures. `sets.yaml` in it names them; paths are relative to FOLDER, `train_images` and
`val_images` are for annotations that do not show where their pictures are:

    leaf: {train: leaf/train, val: leaf/valid}
    birds: {train: birds/train.json, train_images: birds/pictures, val: birds/val.json, val_images: birds/pictures}

Without sets.yaml, the five sets of `KNOWN` are looked for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from isodet.errors import IsodetError
from isodet.strict import build

if TYPE_CHECKING:
    from trainer.config.train import TrainConfig

RESULTS = "results.jsonl"
SIZE = 320
"""Longest side of the input in pixels; torchvision's anchors are scaled to it."""


class SetsError(IsodetError, ValueError):
    """A folder of sets that cannot be used, or results that would be overwritten."""


@dataclass(frozen=True)
class DataSet:
    """Annotations to train and to validate on, of any format, and the folders of their pictures if they need them."""

    train: str
    val: str
    train_images: str | None = None
    val_images: str | None = None


KNOWN = {
    "bccd": DataSet("bccd/ImageSets/Main/trainval.txt", "bccd/ImageSets/Main/test.txt"),
    "raccoon": DataSet("raccoon/train_stems.txt", "raccoon/val_stems.txt"),
    "apple": DataSet("apple/train", "apple/valid"),
    "leaf": DataSet("leaf/train", "leaf/valid"),
    "cards": DataSet("cards/images/train", "cards/images/test"),
}


def sets_of(folder: Path, names: Sequence[str] | None = None) -> dict[str, DataSet]:
    """The sets in `folder`, or those of `names`, with absolute paths. Raises `SetsError` where there are none."""
    table = folder / "sets.yaml"
    if table.is_file():
        content = yaml.safe_load(table.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise SetsError.at(table, "expected a mapping of names to {train: ..., val: ...}")
        sets = {str(name): build(DataSet, values, str(name)) for name, values in content.items()}
    else:
        sets = {name: data_set for name, data_set in KNOWN.items() if (folder / name).is_dir()}
    if not sets:
        raise SetsError.at(folder, f"expected a sets.yaml in it, or one of the folders {', '.join(KNOWN)}")
    if unknown := [name for name in names or () if name not in sets]:
        raise SetsError.of("sets", f"there is no set {unknown[0]!r} in {folder}; there are {', '.join(sets)}")
    root = folder.resolve()

    def placed(path: str | None) -> str | None:
        return None if path is None else str(root / path)

    return {
        name: DataSet(str(root / s.train), str(root / s.val), placed(s.train_images), placed(s.val_images))
        for name, s in sets.items()
        if names is None or name in names
    }


def config_path(out: Path, name: str, size: int) -> Path:
    """Where the config of a set lies."""
    return out / "configs" / f"{name}-{size}.yaml"


def write_config(name: str, data_set: DataSet, out: Path, size: int) -> Path:
    """The config that `trainer new` writes for a set, in `out`; one that is there is kept."""
    from trainer.new.config import new_config

    path = config_path(out, name, size)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        train_images, val_images = (
            None if folder is None else Path(folder) for folder in (data_set.train_images, data_set.val_images)
        )
        new_config(path, Path(data_set.train), train_images, Path(data_set.val), val_images, size=size)
    return path


class Shown(NamedTuple):
    """A training that sees so many pictures in so many steps, in whole epochs."""

    config: TrainConfig
    pictures: int
    steps: int


def epochs_of(config: TrainConfig, pictures: int) -> int:
    """The whole epochs in which a training of `config` sees about `pictures` pictures; at least one."""
    from trainer.data.datasets import train_data

    return max(1, round(pictures / len(train_data(config))))


def shown(path: Path, overrides: Sequence[str], pictures: int) -> Shown:
    """The config at `path` with `overrides`, to see about `pictures` pictures, and validated at the end only."""
    from trainer.config_reader import read_config
    from trainer.data.datasets import train_data

    plain = read_config(path, overrides)
    count, epochs = len(train_data(plain)), epochs_of(plain, pictures)
    steps = epochs * max(1, count // plain.images_per_batch)
    schedule = [f"schedule.epochs={epochs}", f"schedule.warmup_steps={max(1, min(500, steps // 10))}"]
    return Shown(read_config(path, [*overrides, *schedule, f"val_interval={epochs}"]), epochs * count, steps)


def first_rate(plain: TrainConfig, backbone: str, pretrained: bool) -> str:
    """The learning rate that `trainer new` chooses for a backbone with weights, or without, as an override's value."""
    from trainer.new.advice import choose_rate

    rate, _ = choose_rate(backbone, "imagenet" if pretrained else "scratch")
    return f"{rate * (plain.images_per_batch / 16) ** 0.5:.2g}"


def read_results(path: Path) -> list[dict[str, Any]]:
    """The records of a results file; a last line that was cut short is left out."""
    records = []
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise SetsError.at(path, f"line {number} is no JSON; correct it or take it out") from None
    return records


class Results:
    """The records of trainings, one in each line of a file, which holds each as soon as it is there."""

    def __init__(self, out: Path, resume: bool) -> None:
        """Raises `SetsError` for a file with records that are not to be gone on with."""
        self.file, self.records = out / RESULTS, read_results(out / RESULTS)
        if self.records and not resume:
            raise SetsError.at(self.file, "holds results; go on with --resume, or name another folder with --out")
        out.mkdir(parents=True, exist_ok=True)
        # Without a last line that was cut short, behind which the next record would be cut, too.
        self.file.write_text("".join(json.dumps(record) + "\n" for record in self.records), encoding="utf-8")

    def add(self, name: str, record: dict[str, Any]) -> None:
        self.records.append(record)
        with open(self.file, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        minutes = record["seconds"] / 60
        print(f"{name}: mAP {record['map']:.2f}, AP50 {record['ap50']:.2f}, {minutes:.1f} min", flush=True)


def in_own_process(name: str, words: Sequence[str], out: Path, threads: int) -> dict[str, Any]:
    """The record that `python -m WORDS RESULT` writes to RESULT.

    Raises `SetsError` where it fails, with the name of its log.
    """
    log, result = out / "logs" / f"{name}.log", out / "logs" / f"{name}.json"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with open(log, "w", encoding="utf-8") as file:
        command = [sys.executable, "-m", *words, str(result)]
        status = subprocess.run(command, env=environment, stdout=file, stderr=file).returncode
    if status:
        raise SetsError.at(log, f"{name} ended with status {status}; the log says why, and --resume goes on")
    record: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    result.unlink()
    return record
