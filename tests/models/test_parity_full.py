"""Whole mmdetection models, imported: from pixels to detections (tests/golden/README.md)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from isodet.strict import merge
from models.config.model import model_config
from models.deploy.graph import Deploy
from models.detector import Detector
from models.importers import fitted, mmdet
from models.loss import detection_loss
from tests.models.small import close

FILES = {
    "full_mmdet_atss": "atss",
    "full_mmdet_retinanet": "retinanet",
    "full_mmdet_fcos_improved_caffe": "fcos-improved",
}


@pytest.fixture(params=FILES)
def imported(golden, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[dict, Detector]:
    """The reference's weights through the importer, which reads from them what the reference was made with. Its
    ResNet-50 has a 32nd of the width, too little for ours.
    """
    data = golden(request.param)
    monkeypatch.setattr("models.backbones.resnet.scaled", lambda channels, width: channels // 32)
    state = {key.removeprefix("sd/"): torch.from_numpy(value) for key, value in data.items() if key.startswith("sd/")}
    assert mmdet.recognizes(state)
    converted = mmdet.convert(state, {})
    assert converted.architecture == FILES[request.param]
    assert converted.model["backbone"]["name"] == "resnet50" and converted.model["backbone"]["width"] == 1 / 32
    config = model_config(merge(converted.model, {
        "classes": list("abcde"), "input_size_hw": [96, 128], "backbone": {"width": 1.0},
    }))  # fmt: skip
    detector = Detector(config).eval()
    detector.load_state_dict(fitted(converted.state, config))
    for module in detector.head.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = 4  # what the reference was made with
    assert config.pixels.order == ("rgb" if data["bgr_to_rgb"] else "bgr")
    assert (config.backbone.style == "caffe") == bool(data["backbone_style_is_caffe"])
    np.testing.assert_allclose(config.pixels.mean, data["norm_mean"])
    np.testing.assert_allclose(config.pixels.std, data["norm_std"])
    return data, detector


def test_from_pixels_to_detections(imported):
    data, detector = imported
    images = torch.from_numpy(data["img0_bgr_uint8_hwc"])[None]  # fills the input, so that nothing is padded
    with torch.no_grad():
        count, boxes, scores, labels = Deploy(detector).eval()(images)
    check(data, 0, count, boxes, scores, labels)


def test_activations_on_the_way(imported):
    """On the smaller image, which mmdetection pads with zeros after normalizing."""
    data, detector = imported
    theirs = torch.from_numpy(data["preprocessed_img1_chw"])[None]
    image = torch.from_numpy(data["img1_bgr_uint8_hwc"])[None]
    height, width = image.shape[1:3]
    with torch.no_grad():
        close(detector.pixels(image)[0], theirs[0, :, :height, :width].numpy())
        features = detector.backbone(theirs)
        for level, ours in enumerate(features, start=2):
            close(ours[0], data[f"backbone_c{level}_img1"])
        levels = detector.neck(features)
        for level, ours in enumerate(levels, start=3):
            close(ours[0], data[f"neck_p{level}_img1"])
        deploy = Deploy(detector).eval()
        boxes, scores, labels = deploy.candidates(detector.network(theirs))
        own = boxes.minimum(torch.tensor([width, height, width, height]).float())
        check(data, 1, *deploy.detections(own, scores, labels))


def check(data: dict, image: int, count: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor) -> None:
    n = int(count)
    assert n == len(data[f"img{image}_det_scores"]) > 0
    close(scores[0, :n], data[f"img{image}_det_scores"])
    close(boxes[0, :n], data[f"img{image}_det_bboxes"], atol=1e-2)
    np.testing.assert_array_equal(labels[0, :n], data[f"img{image}_det_labels"])


def test_losses_of_a_batch(imported):
    """ATSS and RetinaNet leave the anchors beyond the smaller image's own padding out; FCOS takes every point."""
    data, detector = imported
    image = torch.from_numpy(data["img0_bgr_uint8_hwc"])[None]
    x = torch.cat([detector.pixels(image), torch.from_numpy(data["preprocessed_img1_chw"])[None]])
    G = max(len(data[f"img{i}_gt_labels"]) for i in (0, 1))
    boxes, labels = torch.zeros(2, G, 4), torch.full((2, G), -1)
    for i in (0, 1):
        count = len(data[f"img{i}_gt_labels"])
        boxes[i, :count] = torch.from_numpy(data[f"img{i}_gt_bboxes"])
        labels[i, :count] = torch.from_numpy(data[f"img{i}_gt_labels"])
    sizes = torch.from_numpy(np.stack([data[f"img{i}_pad_shape_hw"] for i in (0, 1)]))
    with torch.no_grad():
        raw = detector.network(x)
        losses = detection_loss(detector.config, raw, detector.priors(), boxes, labels, sizes)
        everything = detection_loss(detector.config, raw, detector.priors(), boxes, labels)
    close(losses.cls, data["loss/loss_cls"])
    close(losses.box, data["loss/loss_bbox"])
    close(losses.quality, data.get("loss/loss_centerness", np.zeros(())))
    assert (losses.cls == everything.cls) == (detector.config.assign.padding == "background")
