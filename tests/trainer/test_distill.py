"""Distillation: what is taught, to whom, what is refused, and that nothing of it is left in what is deployed."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import export
from isodet.strict import ConfigError
from models.checkpoint import build_detector, read_checkpoint, save_checkpoint
from models.detector import Detector, Raw
from models.loss import detection_loss, score_logits
from runtime.card.card import sha256_file
from tests.at_fault import raises
from tests.trainer.interrupted import go_on, stop_before_epoch
from tests.trainer.processes import fit_in_two
from tests.trainer.tiny import CUT_ALIKE, TINY, one_object, save_random, tiny_config
from trainer.config.train import TrainConfig, dump_config
from trainer.config_reader import qat_config, read_config, train_config
from trainer.devices.distributed import Group
from trainer.extras.distill import Distillation, logit_loss
from trainer.failures import TrainingError, not_finite
from trainer.log.metrics import HELP, read_metrics
from trainer.loop import fit
from trainer.state import new_state
from trainer.training_model import TrainingModel, total_loss

PICTURES = (8, 3)
KEYS = [*CUT_ALIKE, "batch_size=2"]
WIDER = ["model.backbone.width=0.25", "model.neck.channels=24"]
AUXILIARY = ["auxiliary={weight: 0.5, depth: 1, coarse: 2}", "model.head.depth=2"]
BOTH = ["distill.logits=2", "distill.features=0.5", "distill.region=0.2", "distill.temperature=2"]


def alone(value: Tensor) -> Tensor:
    return value


def config(data: Path, *overrides: str) -> TrainConfig:
    return tiny_config(data, *KEYS, *overrides)


@pytest.fixture(scope="module")
def teacher(data: Path) -> Path:
    """A checkpoint of a wider network whose predictions are not all alike."""
    return save_random(data / "teacher.pt", config(data, *WIDER))


@pytest.fixture(scope="module")
def taught(data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher and with the auxiliary head."""
    return fit(taught_config(data, teacher, *AUXILIARY), tmp_path_factory.mktemp("runs"), quiet=True).run


def taught_config(data: Path, teacher: Path, *overrides: str) -> TrainConfig:
    return config(data, f"distill.teacher={teacher}", *BOTH, *overrides)


def started(settings: TrainConfig) -> tuple[Distillation, TrainingModel, Tensor]:
    torch.manual_seed(0)
    state = new_state(settings, Detector(settings.model), None, 10, Group())
    assert state.model.distillation is not None
    return state.model.distillation, state.model, torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(data, teacher, amp):
    made, model, images = started(taught_config(data, teacher, *WIDER))
    model.detector.load_state_dict(made.teacher.state_dict())
    assert not [*model.beside.parameters()]
    model.eval()
    with torch.autocast("cpu", amp, enabled=amp is not None):
        raw, levels, _ = model.outputs(images)
    loss = made.loss(images, raw, levels, amp, alone)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(0, abs=1e-6)
    assert all(p.grad is None or float(p.grad.abs().max()) < 1e-5 for p in model.parameters())


def test_a_student_may_assign_by_its_own_predictions(data, teacher):
    """An ATSS detector teaches one that is task-aligned and codes boxes as distributions: the priors are the same."""
    _, model, _ = started(taught_config(data, teacher, "model.detector=tood", "model.box.code=dfl"))
    terms = model(one_object())
    assert set(terms) == {"cls", "box", "quality", "distill"} and all(term.isfinite() for term in terms.values())
    total_loss(terms).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.detector.head.parameters())


def test_a_score_with_a_factor_is_taught_as_a_whole(data, teacher):
    """GFLv2's class probability alone means nothing, so its product with the quality learns the teacher's score."""
    keys = ("model.detector=gflv2", "distill.features=0", "distill.temperature=1", "distill.logits=1")
    made, model, images = started(taught_config(data, teacher, *keys))
    raw, levels, _ = model.outputs(images)
    loss = made.loss(images, raw, levels, None, alone)
    with torch.no_grad():
        scores = score_logits(model.detector.config, raw)
        expected = logit_loss(scores, made.teacher(images).logits, made.config.region, 1.0, alone)
    assert not torch.equal(scores, raw.logits) and loss.item() == pytest.approx(expected.item())
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.detector.head.quality.out.parameters())


def test_the_gradient_reaches_the_student_and_its_adapters_only(data, teacher):
    made, model, images = started(taught_config(data, teacher))
    before = {name: value.clone() for name, value in made.teacher.state_dict().items()}
    raw, levels, _ = model.train().outputs(images)
    assert [level.shape[1] for level in levels] == [24, 24, 24] and not made.teacher.training
    made.loss(images, raw, levels, None, alone).backward()
    assert all(p.grad is None for p in made.teacher.parameters())
    head = model.detector.head
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [*model.beside.parameters()][:2])
    assert head.cls.weight.grad is not None and head.cls.weight.grad.abs().sum() > 0
    assert head.box.weight.grad is None  # boxes are not taught
    assert all(torch.equal(value, made.teacher.state_dict()[name]) for name, value in before.items())


def test_levels_come_with_the_same_answer(data):
    model = Detector(config(data).model).eval()
    images = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    raw, levels = model.with_levels(images)
    assert all(torch.equal(a, b) for a, b in zip(raw, model(images), strict=True) if a is not None)
    assert [tuple(level.shape) for level in levels] == [(1, 16, 8, 8), (1, 16, 4, 4), (1, 16, 2, 2)]


def test_the_terms_are_the_criterions_and_one_more(data, teacher):
    settings = taught_config(data, teacher, "batch_size=1")
    torch.manual_seed(0)
    state = new_state(settings, Detector(settings.model), None, 10, Group())
    batch = one_object()
    terms = state.model(batch)
    raw: Raw = state.detector(batch.images)
    plain = detection_loss(settings.model, raw, state.detector.priors(), batch.boxes_xyxy, batch.labels)
    assert [*terms] == ["cls", "box", "quality", "distill"]
    torch.testing.assert_close(torch.stack(list(terms.values()))[:3], torch.stack(list(plain)))
    assert total_loss(terms).item() > plain.total.item()
    rates = {id(p): g["lr"] for g in state.optimizer.param_groups for p in g["params"]}
    assert {rates[id(p)] for p in state.model.beside.parameters()} == set(rates.values())
    assert "distill 0.5" in not_finite("loss", 0, {"cls": math.nan, "distill": 0.5}, [3], "")


def test_the_run_says_so_and_its_checkpoint_is_a_plain_detector(data, taught, tmp_path):
    rows = read_metrics(taught / "metrics.csv")
    assert all(row["loss_distill"] > 0 and row["loss_aux"] > 0 for row in rows)
    parts = ("loss_cls", "loss_box", "loss_quality", "loss_distill", "loss_aux")
    assert rows[0]["loss"] == pytest.approx(sum(rows[0][part] for part in parts), rel=1e-4)
    board = EventAccumulator(str(taught / "tensorboard"))
    board.Reload()
    assert len(board.Scalars("train/loss_distill")) == 2
    plain = Detector(config(data, "model.head.depth=2").model).state_dict()
    best = read_checkpoint(taught / "best.pt")
    assert best["model"].keys() == plain.keys() and best["resume"] is None
    assert isinstance(build_detector(taught / "best.pt")[0], Detector)
    onnx = export.to_onnx(taught / "best.pt", tmp_path / "best.onnx")
    assert onnx.verification is not None and onnx.verification.passed
    assert qat_config(taught / "best.pt").distill is qat_config(taught / "best.pt").auxiliary is None
    header = next(csv.reader((taught / "metrics.csv").open()))
    assert header[-4:] == ["seconds", *HELP, "data_wait"]


def test_eight_bits_learn_from_a_teacher_too(taught, teacher, tmp_path):
    keys = ["schedule.epochs=1", "qat.images=4", f"distill.teacher={teacher}", "distill.region=0.2"]
    run = fit(qat_config(taught / "best.pt", keys), tmp_path, quiet=True).run
    assert read_checkpoint(run / "best.pt")["card"]["precision"] == "int8"
    (row,) = read_metrics(run / "metrics.csv")
    assert row["loss_distill"] > 0 and "loss_aux" not in row


def test_without_a_teacher_nothing_is_different(data, tmp_path):
    run = fit(config(data, "schedule.epochs=1"), tmp_path, quiet=True).run
    assert not set(HELP) & set(read_metrics(run / "metrics.csv")[0])
    assert not {"beside", "teacher"} & read_checkpoint(run / "last.pt")["resume"].keys()


def test_a_resumed_run_ends_as_one_never_stopped(data, teacher, taught, tmp_path):
    stop_before_epoch(2, taught_config(data, teacher, *AUXILIARY), tmp_path)
    run = go_on(tmp_path)
    one, other = (read_checkpoint(r / "last.pt")["resume"] for r in (run, taught))
    assert sum(not key.startswith("auxiliary.") for key in one["beside"]) == 6  # adapters of three levels
    assert any(key.startswith("auxiliary.cls_tower") for key in one["beside"])
    for part in ("model", "beside"):
        assert one[part].keys() == other[part].keys()
        for key, value in one[part].items():
            assert torch.equal(value, other[part][key]), key
    a, b = (read_metrics(r / "metrics.csv") for r in (run, taught))
    assert [row["loss_distill"] for row in a] == [row["loss_distill"] for row in b]


def test_another_teacher_is_not_resumed_with(data, teacher, tmp_path):
    mine = Path(shutil.copy(teacher, tmp_path / "mine.pt"))
    stop_before_epoch(2, taught_config(data, mine), tmp_path / "runs")
    content = read_checkpoint(mine)
    save_checkpoint(mine, {k: v + 1 for k, v in content["model"].items()}, content["card"])
    assert sha256_file(mine) != sha256_file(teacher)
    with raises(TrainingError, key="distill.teacher"):
        go_on(tmp_path / "runs")


def test_two_processes_learn_what_one_learns(own, teacher, tmp_path):
    """One of eight pictures is broken, so that one process has a batch without any."""
    sorted((own / "train").glob("*.jpg"))[3].write_bytes(b"not a picture")
    settings = taught_config(own, teacher, *AUXILIARY, "schedule.epochs=1")
    single = fit(settings, tmp_path / "one", quiet=True).run
    shared = fit_in_two(replace(settings, batch_size=1), tmp_path / "two")
    for part in ("model", "beside"):
        a, b = (read_checkpoint(run / "last.pt")["resume"][part] for run in (single, shared))
        for key, value in a.items():
            torch.testing.assert_close(value, b[key], rtol=1e-3, atol=1e-5)
    a, b = (read_metrics(run / "metrics.csv")[0] for run in (single, shared))
    for name in ("loss_distill", "loss_aux"):
        assert a[name] == pytest.approx(b[name], rel=1e-3)


def test_refused_teachers(data, teacher, tmp_path):
    def teach(path: Path, *overrides: str) -> TrainConfig:
        return config(data, f"distill.teacher={path}", *overrides)

    def other(name: str, *overrides: str, **card: object) -> Path:
        return save_random(tmp_path / name, config(data, *overrides), **card)

    with pytest.raises(ConfigError, match=r"distill\.teacher: .*none\.pt"):
        teach(tmp_path / "none.pt")
    renamed = replace(config(data).model, classes=("square", "circle", "triangle"))
    swapped = save_random(tmp_path / "swapped.pt", replace(config(data), model=renamed))
    with pytest.raises(ConfigError, match=r"knows 3 classes \(square, circle, triangle\), this model .*same order"):
        teach(swapped)
    with pytest.raises(ConfigError, match=r"pyramid levels \[3, 6\], this model \[3, 5\].*set model\.neck\.levels"):
        teach(other("levels.pt", "model.neck.levels=[3,6]"), "distill.logits=0", "distill.features=1")
    anchors = other("anchors.pt", "model.anchors.ratios=[0.5,1]")
    with pytest.raises(ConfigError, match=r"distill\.logits: .*other priors"):
        teach(anchors)
    assert teach(anchors, "distill.logits=0", "distill.features=1").distill is not None  # levels are the same
    with pytest.raises(ConfigError, match="8-bit; name the float checkpoint"):
        teach(other("int8.pt", quantization={"kind": "qat"}))


def test_refused_configurations(data, teacher):
    here = f"distill.teacher={teacher}"
    for overrides, message in (
        (["distill.logits=1"], "teacher"),
        ([here, "distill.logits=0"], "logits: expected a positive weight"),
        ([here, "distill.region=0"], "region"),
        ([here, "distill.temperature=0"], "temperature"),
        ([here, "batch_size=auto"], "does not count the memory of the teacher"),
        ([here, "distill.features=1", "qat={}", f"init={teacher}"], r"distill\.features: .*qat"),
        ([here, "distill.boxes=1"], "boxes"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(data, *overrides)


def test_the_path_is_relative_to_the_file_that_says_it(data, teacher):
    recipe = teacher.with_name("taught.yaml")
    recipe.write_text(f"_base_: shapes.yaml\ndistill: {{teacher: {teacher.name}}}\n")
    settings = read_config(recipe, [*TINY, *KEYS])
    assert settings.distill is not None and settings.distill.teacher == str(teacher.resolve())
    assert train_config(yaml.safe_load(dump_config(settings))) == settings
