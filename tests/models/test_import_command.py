"""`trainer import`, and what it writes is a checkpoint like any other: it runs, and it exports."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import export
from export.__main__ import main as exporter
from models.checkpoint import build_detector
from runtime import Detections, Detector, read_coco
from runtime.evaluation.evaluate import coco_metrics, evaluate
from tests.models.test_import import CLASSES, mmdet_state, original_detections, picture, with_random_weights
from trainer.__main__ import main


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RetinaNet, Path]:
    """torchvision's RetinaNet v1, smaller: on ResNet-18."""
    torch.manual_seed(7)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    model = with_random_weights(RetinaNet(backbone, num_classes=len(CLASSES)))
    path = tmp_path_factory.mktemp("theirs") / "theirs.pth"
    torch.save(model.state_dict(), path)
    (path.parent / "names.txt").write_text("\n".join(CLASSES) + "\n")
    return model, path


def imported(path: Path, out: Path) -> list[str]:
    return ["import", str(path), "--out", str(out), "--classes", str(path.with_name("names.txt")),
            "--input-size", "96", "160"]  # fmt: skip


def test_a_torchvision_model_imported_and_exported(theirs, tmp_path, capsys):
    """At 96 x 160, where torchvision's strides are not the nominal ones."""
    model, path = theirs
    out = tmp_path / "ours" / "best.pt"
    assert main([*imported(path, out), "--resize", "96", "160"]) == 0
    printed = capsys.readouterr().out
    assert "torchvision retinanet_resnet50_fpn, 5 classes, resnet18" in printed and "short side 96" in printed
    detector, card = build_detector(out)
    assert card["classes"] == CLASSES and detector.config.input_size_hw == (96, 160)
    assert set(card["hashes"]) == {"imported_file"}

    written = export.to_onnx(out, options=export.OnnxOptions(simplify=False), gate=export.Gate(verify=False))
    image = picture((96, 160))
    found_there = original_detections(model, image)
    extended = (found_there["boxes"][:, 2:] > found_there["boxes"][:, :2]).all(dim=1)  # our runtime shows no empty ones
    found_there = {name: values[extended] for name, values in found_there.items()}
    for file in (out, written.path):
        found = Detector(file, threshold=0.0)(image.numpy())[0]
        assert len(found) == len(found_there["scores"]) > 50
        np.testing.assert_allclose(found.scores, found_there["scores"], rtol=0, atol=1e-4)
        distance = np.abs(found.boxes_xyxy[:, None] - found_there["boxes"].numpy()).max(-1)
        distance[found.labels[:, None] != found_there["labels"].numpy()] = np.inf
        assert distance.min(axis=1).max() < 0.05 and distance.min(axis=0).max() < 0.05


def test_an_imported_model_scores_as_where_it_comes_from_and_its_export_is_verified(theirs, tmp_path, capsys):
    """On pictures of sizes that the resize rule rounds and pads, with every third of the original's own finds,
    moved a little, as the objects.
    """
    model, path = theirs
    model.transform.min_size, model.transform.max_size = (96,), 160
    rng = np.random.default_rng(0)
    images, objects, found_there = [], [], {}
    for number, size_hw in enumerate([(75, 75), (101, 140), (61, 130), (200, 97), (128, 128), (90, 151)], start=1):
        frame = picture((256, 256)).numpy()[: size_hw[0], : size_hw[1]].copy()
        cv2.imwrite(str(tmp_path / f"{number}.png"), frame)
        images.append({"id": number, "file_name": f"{number}.png", "height": size_hw[0], "width": size_hw[1]})
        with torch.inference_mode():
            found = model([torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1).float() / 255])[0]
        boxes, scores, labels = (found[key].numpy() for key in ("boxes", "scores", "labels"))
        found_there[number] = Detections(boxes, scores, labels.astype(np.int32), tuple(CLASSES))
        for box, label in list(zip(boxes, labels, strict=True))[::3]:
            moved = box + rng.normal(0, 0.1, 4) * (box[2:] - box[:2]).min()
            x, y = np.clip(moved[:2], 0, (size_hw[1] - 2, size_hw[0] - 2))
            w, h = np.clip(moved[2:] - (x, y), 1, (size_hw[1] - x, size_hw[0] - y))
            objects.append({"id": len(objects) + 1, "image_id": number, "category_id": int(label), "iscrowd": 0,
                            "bbox": [float(x), float(y), float(w), float(h)], "area": float(w * h)})  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    annotations = tmp_path / "val.json"
    annotations.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))

    out = tmp_path / "best.pt"
    assert main([*imported(path, out), "--resize", "96", "160"]) == 0
    capsys.readouterr()
    dataset = read_coco(annotations, tmp_path, CLASSES)
    wanted = coco_metrics(found_there, dataset)[0]["map"]
    ours = evaluate(Detector(out, threshold=0.0), dataset)
    assert 10 < wanted < 90, "a score that could be another one"
    assert ours.map == pytest.approx(wanted, abs=0.3)  # their pixels are not whole gray levels

    data = ["--annotations", str(annotations), "--images", str(tmp_path)]
    assert exporter(["onnx", str(out), "--simplify", *data]) == 0
    printed = capsys.readouterr().out
    assert "under its own resize rule" in printed and f"scores {ours.map:.2f}" in printed
    assert exporter(["verify", str(out.with_suffix(".onnx")), *data]) == 0
    assert "passed" in capsys.readouterr().out


def test_what_was_taken_for_granted_is_said(tmp_path, capsys):
    torch.save({"state_dict": mmdet_state("fcos")}, tmp_path / "f.pth")
    command = ["import", str(tmp_path / "f.pth"), "--from", "mmdet", "--out", str(tmp_path / "best.pt")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "mmdet fcos, 80 classes, resnet50" in printed and "taken as backbone style: caffe" in printed
    assert main([*command, "--style", "pytorch"]) == 0
    assert "taken as" not in capsys.readouterr().out
    assert build_detector(tmp_path / "best.pt")[0].config.backbone.style == "pytorch"


@pytest.mark.parametrize("names, message", [(None, "cannot be read"), ("\n \n", "it has none"), ("a", "truncated")])
def test_what_is_refused_is_status_1_and_one_line(tmp_path, capsys, names, message):
    """Class files that hold no names, and a file of no weights."""
    (tmp_path / "f.pth").write_bytes(b"nothing")
    path = tmp_path / "names.txt"
    if names is not None:
        path.write_text(names)
    command = ["import", str(tmp_path / "f.pth"), "--classes", str(path), "--out", str(tmp_path / "best.pt")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("trainer import: error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "best.pt").exists()
