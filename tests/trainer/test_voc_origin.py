"""Pascal VOC sets of one configuration that come to different origins: said once, until that is settled."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.tiny import TINY
from tests.trainer.voc_set import voc_set
from trainer.check.data import check_data
from trainer.config.train import TrainConfig
from trainer.config_reader import read_config
from trainer.data.datasets import different_origins, train_data, val_data
from trainer.loop import fit

FROM_0, FROM_1 = "annotations: zero/Annotations", "annotations: one/Annotations"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sets of a picture each: `zero` proves that it counts from 0, nothing in `one` does."""
    for name, xmin in (("zero", 0), ("one", 5)):
        voc_set(tmp_path / name, {"a": (xmin, 11, 40, 40)}, "cat")
    return tmp_path


def config(folder: Path, train: str, val: str) -> TrainConfig:
    path = folder / "c.yaml"
    path.write_text(f"data: {{train: {train}, val: {{{val}}}}}\nmodel: {{classes: [cat]}}\n")
    return read_config(path, [*TINY, "schedule.epochs=1", "batch_size=1", "model.head.norm=gn"])


@pytest.mark.parametrize(("train", "val"), [(FROM_0, FROM_1), (FROM_1, FROM_0)])
def test_both_commands_say_it_once_with_the_way(folder, capsys, train, val):
    c = config(folder, f"{{{train}}}", val)
    lines = [line for line in check_data(c, folder / "check").warnings() if "voc_origin: 0 for both" in line]
    fit(c, folder / "runs")
    said = [line for line in capsys.readouterr().err.splitlines() if "voc_origin: 0 for both" in line]
    assert len(lines) == len(said) == 1 and lines[0] in said[0]
    zero, one = (f"from {origin} in {folder / name / 'Annotations'}" for origin, name in ((0, "zero"), (1, "one")))
    assert zero in lines[0] and one in lines[0]


@pytest.mark.parametrize(
    ("train", "val"),
    [(FROM_0, FROM_1 + ", voc_origin: 0"), (FROM_0 + ", voc_origin: 0", FROM_1 + ", voc_origin: 1"),
     (FROM_0 + ", voc_origin: 1", FROM_1), (FROM_0, FROM_0), (FROM_1, FROM_1)],
)  # fmt: skip
def test_what_agrees_or_is_settled_is_not_mentioned(folder, train, val):
    c = config(folder, f"{{{train}}}", val)
    assert different_origins(c, train_data(c), val_data(c)) == ""


def test_one_origin_that_is_named_does_not_settle_the_other(folder):
    c = config(folder, f"{{{FROM_0}, voc_origin: 0}}", FROM_1)
    assert "voc_origin: 0 for both" in different_origins(c, train_data(c), val_data(c))


def test_training_sets_of_different_origins(folder):
    c = config(folder, f"[{{{FROM_1}}}, {{{FROM_0}}}]", FROM_0)
    train = train_data(c)
    assert "voc_origin: 0 for both" in train.problems.summary() and different_origins(c, train, val_data(c)) == ""
    c = config(folder, f"[{{{FROM_1}, voc_origin: 1}}, {{{FROM_0}, voc_origin: 0}}]", FROM_0)
    assert train_data(c).problems.summary() == ""
    c = config(folder, f"[{{{FROM_1}}}, {{{FROM_1}, repeat: 2}}]", FROM_0)
    train = train_data(c)
    assert "voc_origin" not in train.problems.summary() and different_origins(c, train, val_data(c))
