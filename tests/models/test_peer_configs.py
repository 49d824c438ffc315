"""configs/peers say what the importers make of the published checkpoints: same model, key for key."""

from pathlib import Path

import pytest
import torch

from models.detector import Detector
from models.importers import import_checkpoint
from models.importers.coco import NAMES
from tests.models.test_import import BUILDERS, mmdet_state
from trainer.config_reader import read_config

FOLDER = Path(__file__).parents[2] / "configs" / "peers"
THEIRS = {
    "torchvision_retinanet_r50": "retinanet_resnet50_fpn", "torchvision_fcos_r50": "fcos_resnet50_fpn",
    "torchvision_retinanet_r50_v2": "retinanet_resnet50_fpn_v2", "mmdet_atss_r50": "atss", "mmdet_fcos_r50": "fcos",
    "mmdet_retinanet_r50": "retinanet", "mmdet_fcos_improved_r50": "fcos-improved",
}  # fmt: skip
"""Names of our configurations -> of the peers' architectures."""


def test_every_file_is_one_of_these():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {"coco", *THEIRS}


@pytest.mark.parametrize("name", THEIRS)
def test_a_file_describes_what_the_importer_reads(name, tmp_path):
    if name.startswith("torchvision"):
        state = BUILDERS[THEIRS[name]](weights=None, weights_backbone=None, num_classes=91).state_dict()
    else:
        state = {"state_dict": mmdet_state(THEIRS[name])}
    torch.save(state, tmp_path / "theirs.pth")
    config = import_checkpoint(tmp_path / "theirs.pth").config
    assert config == read_config(FOLDER / f"{name}.yaml").model and config.classes == NAMES
    with torch.device("meta"):  # and it can be built
        Detector(config)
