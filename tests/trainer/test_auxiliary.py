"""The auxiliary head: coarser than the head, and only there while training. Whole runs with it: test_distill.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from isodet.strict import ConfigError
from models.assigners import assign
from models.detector import Detector
from models.loss import detection_loss
from tests.trainer.tiny import CUT_ALIKE, one_object, save_random, tiny_config
from trainer.config.extras import AuxiliaryConfig, auxiliary_model, coarse
from trainer.config.train import TrainConfig
from trainer.devices.distributed import Group
from trainer.state import new_state
from trainer.training_model import total_loss

PICTURES = (8, 3)
KEYS = [*CUT_ALIKE, "batch_size=2", "auxiliary={weight: 0.5, depth: 1, coarse: 2}", "model.head.depth=2"]


def config(data: Path, *overrides: str) -> TrainConfig:
    return tiny_config(data, *KEYS, *overrides)


@pytest.mark.parametrize("kind", ["atss", "topk", "center", "iou"])
def test_a_coarse_assignment_has_more_positives_and_loses_no_object(data, kind):
    model = config(data, "model.input_size_hw=[128,128]").model
    fine = replace(model.assign, kind=kind)
    grid = Detector(model).priors()
    boxes = torch.tensor([[[10.0, 12, 50, 60], [70, 64, 118, 120], [80, 8, 96, 30]]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    lead, aux = (assign(a, grid, boxes, valid)[0] for a in (fine, coarse(fine, 2.0)))
    assert (aux >= 0).sum() > (lead >= 0).sum() and set(range(3)) == set(aux[aux >= 0].tolist())
    assert coarse(fine, 1.0) == fine


def test_its_loss_is_the_criterions_and_teaches_the_pyramid_not_the_head(data):
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
    terms["aux"].backward()
    assert all(p.grad is None for p in detector.head.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in detector.neck.parameters())
    assert all(p.grad is not None for p in model.beside.parameters())
    rates = {id(p) for g in state.optimizer.param_groups for p in g["params"]}
    assert rates == {id(p) for p in model.parameters()}
    assert any(key.startswith("auxiliary.cls_tower") for key in state.state_dict()["beside"])  # so it can be resumed


def test_an_assigner_that_needs_predictions_looks_at_those_of_each_head(data):
    """Task-aligned: the auxiliary head's positives are the best of its own predictions, and twice as many."""
    keys = ["model.detector=tood", "model.box.code=dfl", "batch_size=1"]
    settings = config(data, *keys)
    assert settings.auxiliary is not None
    other = auxiliary_model(settings.auxiliary, settings.model)
    assert (settings.model.assign.topk, other.assign.topk) == (13, 26)
    torch.manual_seed(0)
    state = new_state(settings, Detector(settings.model), None, 10, Group())
    batch = one_object()
    terms = state.model(batch)
    *_, answer = state.model.outputs(batch.images)
    assert answer is not None and answer.boxes.shape[-1] == 64
    wanted = 0.5 * detection_loss(other, answer, state.detector.priors(), batch.boxes_xyxy, batch.labels).total
    torch.testing.assert_close(terms["aux"], wanted)
    total_loss(terms).backward()
    assert all(p.grad is not None for p in state.model.beside.parameters())


def test_refused_configurations(data, tmp_path):
    best = save_random(tmp_path / "best.pt", config(data))
    for overrides, message in (
        (["auxiliary.weight=0"], "weight"),
        (["auxiliary.coarse=0.5"], "coarse"),
        (["auxiliary.depth=9"], "depth"),
        (["batch_size=auto"], "memory of the auxiliary head"),
        (["qat={}", f"init={best}"], "auxiliary: .*qat"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(data, *overrides)
    model = config(data).model
    own = replace(model, assign=replace(model.assign, kind="mine:Nearest"))
    AuxiliaryConfig(coarse=1).require_fitting(own, False, False)
    with pytest.raises(ConfigError, match=r"auxiliary\.coarse: .*mine:Nearest.*set coarse: 1"):
        AuxiliaryConfig().require_fitting(own, False, False)
