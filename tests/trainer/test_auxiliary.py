"""The auxiliary head: coarser than the head, only there while training, and gone from what is deployed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import export
from isodet.strict import ConfigError
from models.assigners import assign
from models.checkpoint import read_checkpoint
from models.detector import Detector
from models.loss import detection_loss
from tests.trainer.interrupted import go_on, stop_before_epoch
from tests.trainer.processes import two
from tests.trainer.tiny import CUT_ALIKE, one_object, tiny_config
from trainer.config.extras import AuxiliaryConfig, auxiliary_model, coarse
from trainer.config.train import TrainConfig
from trainer.devices.distributed import Group
from trainer.log.metrics import read_metrics
from trainer.loop import fit
from trainer.state import new_state
from trainer.training_model import total_loss

PICTURES = (8, 3)
KEYS = [*CUT_ALIKE, "batch_size=2", "auxiliary={weight: 0.5, depth: 1, coarse: 2}", "model.head.depth=2"]


def config(data: Path, *overrides: str) -> TrainConfig:
    return tiny_config(data, *KEYS, *overrides)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(config(data), tmp_path_factory.mktemp("runs"), quiet=True).run


@pytest.mark.parametrize("kind", ["atss", "topk", "center", "iou"])
def test_a_coarse_assignment_has_more_positives_and_loses_no_object(data: Path, kind: str) -> None:
    model = config(data, "model.input_size_hw=[128,128]").model
    fine = replace(model.assign, kind=kind)  # type: ignore[arg-type]
    grid = Detector(model).priors()
    boxes = torch.tensor([[[10.0, 12, 50, 60], [70, 64, 118, 120], [80, 8, 96, 30]]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    lead, aux = (assign(a, grid, boxes, valid)[0] for a in (fine, coarse(fine, 2.0)))
    assert (aux >= 0).sum() > (lead >= 0).sum() and set(range(3)) == set(aux[aux >= 0].tolist())
    assert coarse(fine, 1.0) == fine


def test_its_loss_is_the_criterions_and_teaches_the_pyramid_not_the_head(data: Path) -> None:
    settings = config(data, "batch_size=1")
    assert settings.auxiliary is not None
    torch.manual_seed(0)
    state = new_state(settings, Detector(settings.model), None, 10, Group())
    batch = one_object()
    model, detector = state.model, state.detector
    terms = model(batch)
    assert [*terms] == ["cls", "box", "quality", "aux"]
    *_, answer = model.outputs(batch.images)
    grid = detector.priors()
    other = auxiliary_model(settings.auxiliary, settings.model)
    assert other.assign.topk == 2 * settings.model.assign.topk
    assert answer is not None
    wanted = 0.5 * detection_loss(other, answer, grid, batch.boxes_xyxy, batch.labels).total
    assert terms["aux"].item() == pytest.approx(wanted.item(), rel=1e-5)
    lead = detection_loss(settings.model, detector(batch.images), grid, batch.boxes_xyxy, batch.labels)
    torch.testing.assert_close(total_loss(terms), lead.total + wanted)
    terms["aux"].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in detector.head.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in detector.neck.parameters())
    assert all(p.grad is not None for p in model.beside.parameters())
    rates = {id(p) for g in state.optimizer.param_groups for p in g["params"]}
    assert rates == {id(p) for p in model.parameters()}


def test_the_run_says_so_and_its_checkpoint_is_a_plain_detector(data: Path, run: Path, tmp_path: Path) -> None:
    rows = read_metrics(run / "metrics.csv")
    assert all(row["loss_aux"] > 0 and "loss_distill" not in row for row in rows)
    assert read_checkpoint(run / "best.pt")["model"].keys() == Detector(config(data).model).state_dict().keys()
    onnx = export.to_onnx(run / "best.pt", tmp_path / "best.onnx")
    assert onnx.verification is not None and onnx.verification.passed


def test_a_resumed_run_ends_as_one_never_stopped(data: Path, run: Path, tmp_path: Path) -> None:
    stop_before_epoch(2, config(data), tmp_path)
    one, other = (read_checkpoint(r / "last.pt")["resume"] for r in (go_on(tmp_path), run))
    assert any(key.startswith("auxiliary.cls_tower") for key in one["beside"])
    for part in ("model", "beside"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(value, other[part][key]) for key, value in one[part].items())


def test_two_processes_with_teacher_and_auxiliary_head_learn_what_one_learns(
    data: Path, run: Path, tmp_path: Path
) -> None:
    keys = ["schedule.epochs=1", f"distill.teacher={run / 'best.pt'}", "distill.features=1", "model.neck.channels=24"]
    single = fit(config(data, *keys), tmp_path / "one", quiet=True).run

    def work(rank: int) -> object:
        return fit(config(data, *keys, "batch_size=1"), tmp_path / "two", quiet=True) and 0

    assert two(work, tmp_path / "err") == [0, 0], (tmp_path / "err").read_text()
    for part in ("model", "beside"):
        a, b = (read_checkpoint(r / "last.pt")["resume"][part] for r in (single, tmp_path / "two" / "shapes"))
        for key, value in a.items():
            torch.testing.assert_close(value, b[key], rtol=1e-3, atol=1e-5)
    row = read_metrics(single / "metrics.csv")[0]
    assert row["loss_distill"] > 0 and row["loss_aux"] > 0


def test_refused_configurations(data: Path, run: Path) -> None:
    for overrides, message in (
        (["auxiliary.weight=0"], "weight"),
        (["auxiliary.coarse=0.5"], "coarse"),
        (["auxiliary.depth=9"], "depth"),
        (["batch_size=auto"], "memory of the auxiliary head"),
        (["qat={}", f"init={run / 'best.pt'}"], "auxiliary: .*qat"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(data, *overrides)
    model = config(data).model
    own = replace(model, assign=replace(model.assign, kind="mine:Nearest"))
    AuxiliaryConfig(coarse=1).require_fitting(own, False, False)
    with pytest.raises(ConfigError, match=r"auxiliary\.coarse: .*mine:Nearest.*set coarse: 1"):
        AuxiliaryConfig().require_fitting(own, False, False)
