"""`trainer import`, and what it writes is a checkpoint like any other: it runs, and it exports."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import export
from models.checkpoint import build_detector
from runtime import Detector
from tests.models.test_import import CLASSES, mmdet_state, original_detections, picture, with_random_weights
from trainer.__main__ import main


def test_a_torchvision_model_imported_and_exported(tmp_path, capsys):
    """v1, smaller: on ResNet-18; at 96 x 160, where torchvision's strides are not the nominal ones."""
    torch.manual_seed(7)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    model = with_random_weights(RetinaNet(backbone, num_classes=len(CLASSES)))
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    (tmp_path / "names.txt").write_text("\n".join(CLASSES) + "\n")
    out = tmp_path / "ours" / "best.pt"
    command = ["import", str(tmp_path / "theirs.pth"), "--out", str(out), "--classes", str(tmp_path / "names.txt")]
    assert main([*command, "--input-size", "96", "160"]) == 0
    assert "torchvision retinanet_resnet50_fpn, 5 classes, resnet18" in capsys.readouterr().out
    detector, card = build_detector(out)
    assert card["classes"] == CLASSES and detector.config.input_size_hw == (96, 160)
    assert set(card["hashes"]) == {"imported_file"}

    written = export.to_onnx(out, simplify=False, verify_map=False)
    image = picture((96, 160))
    theirs = original_detections(model, image)
    extended = (theirs["boxes"][:, 2:] > theirs["boxes"][:, :2]).all(dim=1)  # the runtime shows no empty boxes
    theirs = {name: values[extended] for name, values in theirs.items()}
    for path in (out, written.path):
        found = Detector(path, threshold=0.0)(image.numpy())[0]
        assert len(found) == len(theirs["scores"]) > 50
        np.testing.assert_allclose(found.scores, theirs["scores"], rtol=0, atol=1e-4)
        distance = np.abs(found.boxes_xyxy[:, None] - theirs["boxes"].numpy()).max(-1)
        distance[found.labels[:, None] != theirs["labels"].numpy()] = np.inf
        assert distance.min(axis=1).max() < 0.05 and distance.min(axis=0).max() < 0.05


def test_what_was_taken_for_granted_is_said(tmp_path, capsys):
    torch.save({"state_dict": mmdet_state("fcos")}, tmp_path / "f.pth")
    command = ["import", str(tmp_path / "f.pth"), "--from", "mmdet", "--out", str(tmp_path / "best.pt")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "mmdet fcos, 80 classes, resnet50" in printed and "taken as backbone style: caffe" in printed
    assert main([*command, "--style", "pytorch"]) == 0
    assert "taken as" not in capsys.readouterr().out
    assert build_detector(tmp_path / "best.pt")[0].config.backbone.style == "pytorch"


@pytest.mark.parametrize("names, message", [(None, "cannot be read"), ("\n \n", "it has none")])
def test_class_files_that_hold_no_names(tmp_path, capsys, names, message):
    path = tmp_path / "names.txt"
    if names is not None:
        path.write_text(names)
    assert main(["import", str(tmp_path / "f.pth"), "--classes", str(path)]) == 1
    assert message in capsys.readouterr().err


def test_a_refused_file_is_status_1_and_one_line(tmp_path, capsys):
    (tmp_path / "f.pth").write_bytes(b"nothing")
    assert main(["import", str(tmp_path / "f.pth"), "--out", str(tmp_path / "best.pt")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("trainer import: error: ") and error.count("\n") == 1 and "truncated" in error
    assert not (tmp_path / "best.pt").exists()
