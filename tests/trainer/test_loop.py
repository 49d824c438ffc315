"""The loop: repeatable, and clear about what stops it."""

import json

import pytest
import torch

from models.checkpoint import read_checkpoint
from models.config.model import PRESETS
from tests.trainer.tiny import alike, edit, tiny_config
from trainer.__main__ import main
from trainer.log.metrics import read_metrics
from trainer.loop import TrainingError, fit

PICTURES = (12, 4)


@pytest.mark.parametrize("detector", PRESETS)
def test_every_preset_trains_and_saves_loadable_weights(data, tmp_path, detector):
    result = fit(tiny_config(data, f"model.detector={detector}", "optim.accumulate=2"), tmp_path, quiet=True)
    content = read_checkpoint(result.best)
    assert content["card"]["model"]["detector"] == detector
    assert all(torch.isfinite(v).all() for v in content["model"].values())


def test_the_same_seed_gives_the_same_weights_and_another_does_not(data, tmp_path):
    first, same, other = (fit(tiny_config(data, f"seed={seed}"), tmp_path, quiet=True).run for seed in (1, 1, 2))
    assert alike(first, same) and not alike(first, other)


def test_a_second_run_of_the_same_name_gets_its_own_folder(data, tmp_path):
    runs = [fit(tiny_config(data, "schedule.epochs=1"), tmp_path, quiet=True).run.name for _ in range(2)]
    assert runs == ["shapes", "shapes-2"]


def test_a_loss_that_is_not_finite_stops_with_the_images_named(data, tmp_path):
    with pytest.raises(TrainingError, match=r"not finite in epoch 1 .* on images \[\d+, .*Lower optim\.lr"):
        fit(tiny_config(data, "optim.kind=sgd", "optim.lr=1e30", "optim.clip_norm=0"), tmp_path, quiet=True)


def test_images_without_objects_teach_background_with_no_box_loss(own, tmp_path):
    coco = json.loads((own / "train.json").read_text())
    first = coco["images"][0]  # all objects are on a picture that cannot be read: data without any is refused
    edit(own / "train.json", annotations=[a for a in coco["annotations"] if a["image_id"] == first["id"]])
    (own / "train" / first["file_name"]).write_bytes(b"")
    run = fit(tiny_config(own, "schedule.epochs=1"), tmp_path / "runs", quiet=True).run
    (row,) = read_metrics(run / "metrics.csv")
    assert row["loss_cls"] > 0 and row["loss_box"] == row["loss_quality"] == 0


def test_a_set_without_a_usable_picture_is_an_error(own, tmp_path):
    for path in (own / "train").glob("*.jpg"):
        path.write_bytes(b"not a picture")
    with pytest.raises(TrainingError, match="not one training picture could be used"):
        fit(tiny_config(own), tmp_path / "runs", quiet=True)


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["fit"], 2, "name a CONFIG, or give --resume"),
        (["fit", "c.yaml", "--resume", "runs/x"], 2, "no CONFIG and no key=value"),
        (["fit", "nowhere.yaml"], 1, "nowhere.yaml: cannot read this config"),
        (["fit", "--resume", "--runs", "nowhere"], 1, "nothing to resume"),
        (["eval", "--runs", "nowhere"], 1, "there is no best.pt"),
        (["show", "c.yaml", "--wrong"], 2, "unrecognized arguments: --wrong"),
        (["new", "thing.yaml"], 2, "for your own data name a new FILE.yaml"),
        (["check-data", "none.yaml", "--augment", "seed=1"], 1, "cannot read this config"),
        (["check-data", "--augment", "none.yaml"], 1, "cannot read this config"),
        (["check-data", "none.yaml", "--augment", "all"], 1, "cannot read this config"),
    ],
)
def test_exit_status_and_advice(arguments, status, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        got = main(arguments)
    except SystemExit as stop:
        got = stop.code
    assert got == status
    assert text in capsys.readouterr().err


def test_workers_change_nothing(data, tmp_path):
    assert alike(*(fit(tiny_config(data, f"data.workers={n}"), tmp_path, quiet=True).run for n in (0, 2)))
