"""What the importers refuse, and that they say why."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor
from torch.utils.data import Subset

from models.importers import ImportRefused, import_checkpoint
from tests.at_fault import raises
from tests.models.test_import import CLASSES, mmdet_state

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def fcos() -> State:
    return state_of("fcos_resnet50_fpn", len(CLASSES))


def state_of(architecture: str, classes: int) -> State:
    build = getattr(torchvision.models.detection, architecture)
    return build(weights=None, weights_backbone=None, num_classes=classes).state_dict()


@pytest.fixture(scope="module")
def atss() -> State:
    return mmdet_state("atss")


def refused(path: Path, state: object, message: str, **hints: object) -> str:
    torch.save(state, path / "f.pth")
    with pytest.raises(ImportRefused, match=message) as caught:
        import_checkpoint(path / "f.pth", **hints)
    assert str(caught.value).startswith(str(path / "f.pth"))
    return str(caught.value)


def test_no_file_and_files_that_are_not_weights(tmp_path, fcos):
    with raises(ImportRefused, path=tmp_path / "none.pth"):
        import_checkpoint(tmp_path / "none.pth")
    path = tmp_path / "f.pth"
    torch.save(fcos, path)
    for content in (b"", b"hello world", path.read_bytes()[:100_000], path.read_bytes()[:-1000]):
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(ImportRefused, match=r"bad\.pth: not a file of tensors, or truncated"):
            import_checkpoint(tmp_path / "bad.pth")
    refused(tmp_path, [1, 2], "expected weights by name, got list")
    refused(tmp_path, {}, "expected weights by name")
    refused(tmp_path, {"state_dict": {"a": torch.ones(1), "epoch": 3}}, "'epoch' is int")
    refused(tmp_path, {"a": torch.ones(2).to_sparse()}, "expected dense tensors .* 'a' is one of the layout sparse_coo")
    refused(tmp_path, {"a": torch.ones(2, device="meta")}, "'a' is one on the device meta, which has .* no numbers")


def test_pickled_objects_are_never_loaded_and_the_command_strips_them(tmp_path, fcos):
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (marker,))

    refused(tmp_path, {"state_dict": fcos, "hook": Bomb()}, "pickled objects", classes=CLASSES)
    assert not marker.exists()
    # With an object that is innocent, what the message says works as it stands.
    message = refused(tmp_path, {"model": fcos, "args": Subset([1], [0])}, r"torch\.utils\.data\.dataset\.Subset")
    command = message[message.index("python -c") : message.index("  and import")]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True, timeout=60)
    assert import_checkpoint(tmp_path / "f-tensors.pth", classes=CLASSES).architecture == "fcos_resnet50_fpn"


def test_missing_extra_and_misshapen_tensors_are_named_with_shapes(tmp_path, fcos):
    key = "head.regression_head.conv.3.weight"
    refused(tmp_path, {k: v for k, v in fcos.items() if k != key},
            r"1 missing: head\.box_tower\.1\.conv\.weight \[256, 256, 3, 3\]", classes=CLASSES)  # fmt: skip
    refused(tmp_path, {**fcos, "head.mask.weight": torch.ones(3, 4)},
            r"1 not expected: head\.mask\.weight \[3, 4\]", classes=CLASSES)  # fmt: skip
    refused(tmp_path, {**fcos, key: torch.ones(256, 128, 3, 3)},
            r"conv\.weight \[256, 128, 3, 3\] instead of \[256, 256, 3, 3\]", classes=CLASSES)  # fmt: skip
    many = {k: v for k, v in fcos.items() if "layer4.2" not in k}
    refused(tmp_path, many, r"\[3, 4, 6, 2\] in 1 groups .* nearest is resnet50", classes=CLASSES)
    refused(tmp_path, {k: v for k, v in fcos.items() if "bn2.bias" not in k},
            r"16 missing: .*layer1\.0\.bn2\.bias \[64\].* and 12 more", classes=CLASSES)  # fmt: skip


@pytest.mark.parametrize("classes, message", [
    (None, "5 class outputs, which are not COCO's"),
    (["a", "b", "c"], "5 class outputs, but 3 class names"),
    (["a"] * 5, r"classes: .*names that differ"),
])  # fmt: skip
def test_class_counts(tmp_path, fcos, classes, message):
    refused(tmp_path, fcos, message, classes=classes)


def test_other_numbers_of_anchors(tmp_path):
    retinanet = state_of("retinanet_resnet50_fpn", len(CLASSES))
    box = {k: v[:12] if "bbox_reg" in k else v for k, v in retinanet.items()}
    refused(tmp_path, box, "9 anchors in a cell and 36 box outputs, this file has 12", classes=CLASSES)
    cls = {k: v[:44] if "cls_logits" in k else v for k, v in retinanet.items()}
    refused(tmp_path, cls, "44 class outputs do not divide into 9 anchors", classes=CLASSES)


def test_other_architectures_of_torchvision(tmp_path, fcos):
    faster, resnet = state_of("fasterrcnn_resnet50_fpn", 3), torchvision.models.resnet18(weights=None).state_dict()
    refused(tmp_path, faster, "two-stage.*nearest.* is retinanet_resnet50_fpn_v2")
    refused(tmp_path, resnet, "neither torchvision's nor mmdetection's .*imported are")
    refused(tmp_path, resnet, "no dense detector", source="torchvision")
    mobile = {k.replace("body.layer", "body.features"): v for k, v in fcos.items()}
    refused(tmp_path, mobile, "backbone is not a ResNet.*resnet50, resnet101", classes=CLASSES)
    refused(tmp_path, fcos, "stride in the 3x3", classes=CLASSES, style="caffe")
    # 152 layers
    deep = {**fcos, **{k.replace("layer3.5", f"layer3.{i}"): v for i in range(6, 36) for k, v in fcos.items()
                       if "layer3.5" in k}}  # fmt: skip
    refused(tmp_path, deep, r"\[3, 4, 36, 3\].*nearest is resnet101", classes=CLASSES)


def test_mmdetections_other_layouts_and_heads(tmp_path, atss):
    deformable = {**atss, "bbox_head.cls_convs.3.conv.conv_offset.weight": torch.ones(1)}
    refused(tmp_path, deformable, "deformable convolutions .*conv_offset.*ONNX")
    old = {k.replace(".conv.weight", ".weight"): v for k, v in atss.items()}
    refused(tmp_path, old, r"mmdetection 1\.x .*upgrade_model_version")
    gfl = {k.replace("atss_", "gfl_"): v for k, v in atss.items()}
    refused(tmp_path, gfl, r"unknown head .*bbox_head\.gfl_cls.* of which atss is the nearest")
    official = {k.replace("bbox_head.", "rpn.head."): v for k, v in atss.items()}
    refused(tmp_path, official, "authors' own repository", source="mmdet")
    headless = {k: v for k, v in atss.items() if not k.startswith("neck.")}
    refused(tmp_path, headless, "not its pyramid")
    extra = {**atss, "bbox_head.extra.weight": torch.ones(2)}
    refused(tmp_path, extra, r"not expected: bbox_head\.extra\.weight \[2\]")


def test_groups_that_would_normalize_otherwise(tmp_path, atss):
    thin = {}
    for key, value in atss.items():  # towers and neck of 64 channels
        value = value[:64] if value.ndim and key.startswith(("neck", "bbox_head")) and value.shape[0] == 256 else value
        keep = value.ndim == 4 and value.shape[1] == 256 and key.startswith(("neck.fpn", "bbox_head"))
        thin[key] = value[:, :64] if keep else value
    refused(tmp_path, thin, "64 channels, which are normalized in 32 groups")


def test_nothing_is_written_where_an_import_is_refused(tmp_path, atss):
    from trainer.import_checkpoint import import_detector

    torch.save({k: v for k, v in atss.items() if "layer1.0.bn2" not in k}, tmp_path / "f.pth")
    with pytest.raises(ImportRefused, match="missing"):
        import_detector(tmp_path / "f.pth", tmp_path / "best.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["f.pth"]
    with raises(ImportRefused, path=tmp_path / "f.pth"):
        import_detector(tmp_path / "f.pth", tmp_path / "f.pth")
