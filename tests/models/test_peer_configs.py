"""configs/peers say what the importers make of the published checkpoints: same model, key for key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.config.model import ModelConfig
from models.detector import Detector
from models.importers import import_checkpoint
from models.importers.coco import NAMES
from tests.models.test_import import BUILDERS, mmdet_state
from trainer.config_reader import read_config

FOLDER = Path(__file__).parents[2] / "configs" / "peers"
TORCHVISION = {
    "torchvision_retinanet_r50": "retinanet_resnet50_fpn",
    "torchvision_retinanet_r50_v2": "retinanet_resnet50_fpn_v2",
    "torchvision_fcos_r50": "fcos_resnet50_fpn",
}
MMDET = {
    "mmdet_atss_r50": "atss",
    "mmdet_retinanet_r50": "retinanet",
    "mmdet_fcos_r50": "fcos",
    "mmdet_fcos_improved_r50": "fcos-improved",
}


def described(name: str) -> ModelConfig:
    return read_config(FOLDER / f"{name}.yaml").model


def test_every_file_is_one_of_these():
    files = {path.stem for path in FOLDER.glob("*.yaml")}
    assert files == {"coco", *TORCHVISION, *MMDET} and described("mmdet_atss_r50").classes == NAMES


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions(name, tmp_path):
    model = BUILDERS[TORCHVISION[name]](weights=None, weights_backbone=None, num_classes=91)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    assert import_checkpoint(tmp_path / "theirs.pth").config == described(name)


@pytest.mark.parametrize("name", MMDET)
def test_mmdetections(name, tmp_path):
    torch.save({"state_dict": mmdet_state(MMDET[name])}, tmp_path / "theirs.pth")
    config = import_checkpoint(tmp_path / "theirs.pth").config
    assert config == described(name)
    with torch.device("meta"):  # and it can be built
        Detector(config)
