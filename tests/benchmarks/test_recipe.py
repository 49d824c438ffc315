"""The screening of recipes: its design tells all changes apart, and its effects are those that were put in."""

from __future__ import annotations

from argparse import Namespace
from itertools import combinations

import numpy as np
import pytest

from benchmarks import recipe
from benchmarks.real_sets import RESULTS, DataSet, SetsError, read_results, write_config
from benchmarks.recipe import (
    CHANGES,
    MORE,
    Training,
    comparison_table,
    config_of,
    effects,
    key_of,
    main,
    screening,
    screening_table,
)
from benchmarks.untrained import untrained
from trainer.config_reader import read_config
from trainer.recipes.shapes import make_shapes

SETS = ("one", "two", "three")


def records_of(sets: tuple[str, ...], noise: float, **effect: float) -> list[dict]:
    rng = np.random.default_rng(0)
    records = []
    for training in screening(sets, 3000):
        base = 50 + 10 * sets.index(training.data_set)
        value = base + sum(size for name, size in effect.items() if name in training.changes)
        value += float(rng.normal(scale=noise)) if noise else 0.0
        records.append({**vars(training), "changes": list(training.changes), "map": value, "ap50": value + 20})
    return records


def test_each_change_is_on_in_half_of_the_trainings_of_a_set_and_pairs_are_balanced():
    for name in SETS:
        of_set = [training for training in screening(SETS, 3000) if training.data_set == name]
        assert len(of_set) == 20 and len({training.seed for training in of_set}) == 20
        on = np.array([[change in training.changes for change in CHANGES] for training in of_set])
        assert (on.sum(axis=0) == 10).all()
        assert all((on[:, a] & on[:, b]).sum() == 5 for a, b in combinations(range(len(CHANGES)), 2))
    assert screening(SETS, 3000) == screening(SETS, 3000)


def test_effects_are_found_exactly_without_noise_and_within_their_error_with_it():
    put_in = {"mosaic": 2.0, "batch4": -1.0, "dfl": 0.5}
    for name, effect, error in effects(records_of(SETS, 0.0, **put_in)):
        assert effect == pytest.approx(put_in.get(name, 0.0)) and error < 1e-6
    for name, effect, error in effects(records_of(SETS, 1.0, **put_in)):
        assert 0.2 < error < 0.7 and abs(effect - put_in.get(name, 0.0)) < 4 * error
    assert screening_table(records_of(SETS, 0.0, **put_in)).splitlines()[2].startswith("| `mosaic` | +2.00 |")


def test_too_few_trainings_are_said():
    with pytest.raises(SetsError, match="too few"):
        effects(records_of(SETS, 0.0)[:14])


def test_recipes_are_compared_where_both_were_trained(capsys, tmp_path):
    records = [
        {"data_set": name, "changes": changes, "seed": seed, "pictures": 6000, "size": 320, "map": 50.0 + seed + gain}
        for name in ("one", "two") for seed in (0, 1) for changes, gain in (([], 0), (["tood", "dfl"], 1.5))
    ]  # fmt: skip
    records.append({**records[0], "changes": ["tood", "dfl"], "seed": 9, "map": 0.0})  # without a partner
    lines = comparison_table(records, ["base", "tood+dfl"], ["one", "two"]).splitlines()
    assert lines[2] == "| base | 50.5 | 50.5 | 50.5 | - | 4 |" and "| +1.50 | 5 |" in lines[3]
    assert key_of(records[1]).name == "tood+dfl-one-seed0-6000"
    (tmp_path / "leaf").mkdir()
    assert main(["--data", str(tmp_path), "compare", "base", "no_such"]) == 1
    assert "there is no change 'no_such'; there are tood, dfl" in capsys.readouterr().err


def test_every_change_is_a_legal_config(tmp_path):
    """With the config that `trainer new` writes, as the benchmark puts them in."""
    make_shapes(tmp_path / "data", train_images=16, val_images=4, size_hw=(64, 64))
    data = DataSet(*(str(tmp_path / "data" / name) for name in ("train.json", "val.json", "train", "val")))
    write_config("shapes", data, tmp_path, 64)
    with pytest.raises(SetsError, match=r"lr4\+lite1-shapes-seed0-96/best.pt: no such teacher yet"):
        config_of(Training("shapes", ("distill",), 0, 96, 64), tmp_path)
    teacher = tmp_path / "runs" / "lr4+lite1-shapes-seed0-96" / "best.pt"
    teacher.parent.mkdir(parents=True)
    untrained(teacher, config_of(Training("shapes", (), 0, 96, 64), tmp_path)[0].model)
    for change in (*CHANGES, *MORE):
        training = Training("shapes", (change,) if change != "base" else (), 0, 96, 64)
        config, pictures = config_of(training, tmp_path)
        assert (pictures, config.schedule.epochs) == (96, 6), change
    today = read_config(tmp_path / "configs" / "shapes-64.yaml")
    study, _ = config_of(Training("shapes", ("lr4",), 0, 96, 64), tmp_path)
    if today.model.backbone.weights is not None:  # `trainer new` found some here
        rates = [c.optim.lr / c.images_per_batch**0.5 for c in (study, today)]  # 16 pictures ask for a batch of 4
        assert rates[0] == pytest.approx(rates[1], rel=0.02)
    everything, _ = config_of(Training("shapes", tuple(CHANGES), 0, 96, 64), tmp_path)
    assert everything.batch_size == 4 and everything.augment.mosaic.close_epochs == 2
    assert everything.optim.ema == 0 and everything.model.box.code == "dfl"


def test_a_screening_that_was_cut_short_goes_on(tmp_path, monkeypatch, capsys):
    make_shapes(tmp_path / "data" / "shapes", train_images=8, val_images=2, size_hw=(64, 64))
    sets = (
        "shapes: {train: shapes/train.json, train_images: shapes/train, val: shapes/val.json, val_images: shapes/val}"
    )
    (tmp_path / "data" / "sets.yaml").write_text(sets)
    done: list[str] = []

    def one(training: Training, arguments: Namespace) -> dict:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(training.name)
        return {**vars(training), "changes": list(training.changes), "map": 50.0, "ap50": 70.0, "seconds": 60.0}

    monkeypatch.setattr(recipe, "trained", one)
    words = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"), "--size", "64", "--processes", "1"]
    with pytest.raises(KeyboardInterrupt):
        main([*words, "screen"])
    with open(tmp_path / "out" / RESULTS, "a") as file:
        file.write('{"data_set": "sha')  # the machine went down while it wrote
    assert main([*words, "screen"]) == 1 and "--resume" in capsys.readouterr().err
    monkeypatch.setattr(recipe, "trained", lambda training, arguments: done.clear() or one(training, arguments))
    assert main([*words, "--resume", "screen"]) == 0 and "| `mosaic` | " in capsys.readouterr().out
    assert len(read_results(tmp_path / "out" / RESULTS)) == 20
