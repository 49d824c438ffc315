"""The papers' resize rule: the peers' sizes, the same pixels in training and inference, and what a graph pays."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import export
from export.verification.report import write_reports
from isodet.strict import ConfigError
from models.checkpoint import load_detector
from runtime import Card, CardError, Detector, read_card, read_coco, read_image
from runtime.images.image import ShortSide
from trainer.config_reader import read_config
from trainer.data.train_set import TrainSet, collate, resize_rule
from trainer.loop import fit
from trainer.recipes.shapes import make_shapes

MEAN_BGR = (104, 116, 124)


@pytest.mark.parametrize(
    ("floor", "peer"), [(False, "resize_mmdet_hw_1333_800"), (True, "resize_torchvision_hw_800_1333")]
)
def test_the_sizes_of_the_peers(golden, floor, peer):
    table = golden("transform")
    rule = ShortSide(800, 1333, 32, floor, MEAN_BGR)
    for source, expected in zip(table["resize_in_hw"], table[peer], strict=True):
        placement = rule.fit((int(source[0]), int(source[1])))
        assert placement.resized_hw == tuple(expected), tuple(source)
        sides = zip(placement.size_hw, placement.resized_hw, strict=True)
        assert all(padded % 32 == 0 and 0 <= padded - resized < 32 for padded, resized in sides)


def test_the_pixels_of_torchvisions_transform(golden):
    """Normalized network inputs agree up to the rounding to whole gray levels that uint8 pixels have."""
    table = golden("transform")
    rule = ShortSide(64, 100, 32, True, MEAN_BGR)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for i, expected in enumerate(table["tv_min64_max100_batch"]):
        bgr = np.ascontiguousarray(table[f"img{i}_rgb_uint8_hwc"][..., ::-1])
        placement = rule.fit((bgr.shape[0], bgr.shape[1]))
        assert placement.resized_hw == tuple(table["tv_min64_max100_image_sizes"][i])
        ours = (placement.apply(bgr)[..., ::-1] / 255 - mean) / std
        h, w = placement.resized_hw
        gray = np.abs((ours[:h, :w] - expected.transpose(1, 2, 0)[:h, :w]) * std * 255)
        assert gray.max() < 1.01 and gray.mean() < 0.35
        assert np.abs(ours[h:]).max(initial=0) < 0.01 and np.abs(ours[:, w:]).max(initial=0) < 0.01  # zeros, nearly


@given(st.integers(1, 3000), st.integers(1, 3000), st.booleans())
def test_the_inverse_is_exact_for_any_frame(height, width, floor):
    placement = ShortSide(96, 160, 32, floor, MEAN_BGR).fit((height, width))
    box = np.array([[0.25 * width, 0.5 * height, 0.75 * width, height]], np.float32)
    np.testing.assert_allclose(placement.to_source(placement.to_input(box)), box, rtol=1e-5)
    assert max(placement.resized_hw) <= max(160, 1)


RULE = ["model.resize={rule: short-side, short: 96, long: 160}", "model.input_size_hw=[96,96]", "amp=off",
        "augment.scale_probability=0", "schedule.epochs=2", "val_interval=2", "batch_size=4"]  # fmt: skip


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shapes set with pictures of three sizes, and a run trained on it under the rule."""
    root = tmp_path_factory.mktemp("resize")
    make_shapes(root / "data", train_images=16, val_images=6, size_hw=(96, 96))
    for split in ("train", "val"):
        path = root / "data" / f"{split}.json"
        coco = json.loads(path.read_text())
        for i, entry in enumerate(coco["images"]):
            extra = (0, 40, 120)[i % 3]
            file = root / "data" / split / entry["file_name"]
            cv2.imwrite(str(file), cv2.copyMakeBorder(cv2.imread(str(file)), 0, 0, 0, extra, cv2.BORDER_REFLECT))
            entry["width"] += extra
        path.write_text(json.dumps(coco))
    fit(read_config(root / "data" / "shapes.yaml", RULE), root / "runs", quiet=True)
    return root


def test_training_sees_each_picture_as_inference_does(wide):
    config = read_config(wide / "data" / "shapes.yaml", [*RULE, "augment.flip=0", "augment.color_probability=0"])
    dataset = read_coco(config.data.train.annotations, config.data.train.images)
    train = TrainSet(dataset, resize_rule(config.model), config.augment)
    detector = Detector(wide / "runs" / "shapes" / "best.pt")
    sizes = set()
    for i in range(6):
        sample = train[i]
        assert sample is not None
        picture = read_image(dataset.records[i].path)
        pixels = detector.preprocess([picture], [detector.place(picture)])
        assert np.array_equal(sample.image, pixels[0])
        sizes.add(sample.image.shape[:2])
    assert sizes == {(96, 96), (96, 160)}  # 136 and 160 px wide, both padded to 160
    batch = collate([train[0], train[2]], (1, 2, 3))
    assert batch.images.shape == (2, 96, 160, 3)
    assert (batch.images[0, :, 96:] == torch.tensor([1, 2, 3], dtype=torch.uint8)).all()


def test_the_detector_is_the_network_on_pixels_resized_by_hand(wide):
    checkpoint = wide / "runs" / "shapes" / "best.pt"
    deploy, _ = load_detector(checkpoint)
    frames = [np.random.default_rng(i).integers(0, 256, hw + (3,), dtype=np.uint8) for i, hw in
              enumerate([(50, 50), (60, 90), (200, 120), (48, 48)])]  # fmt: skip
    found = Detector(checkpoint, threshold=0.0)(frames)
    for frame, result in zip(frames, found, strict=True):
        h, w = frame.shape[:2]
        scale = min(96 / min(h, w), 160 / max(h, w))
        rh, rw = int(h * scale + 0.5), int(w * scale + 0.5)
        canvas = np.full((-(-rh // 32) * 32, -(-rw // 32) * 32, 3), MEAN_BGR, np.uint8)
        canvas[:rh, :rw] = cv2.resize(frame, (rw, rh), interpolation=cv2.INTER_LINEAR)
        with torch.no_grad():
            count, boxes, scores, _ = deploy(torch.from_numpy(canvas[None]))
        boxes = boxes[0, : int(count)].numpy() / np.array([rw / w, rh / h] * 2)
        boxes = boxes.clip(0, [w, h, w, h])
        inside = (boxes[:, 2:] > boxes[:, :2]).all(1)
        np.testing.assert_allclose(result.boxes_xyxy, boxes[inside], atol=2e-3)
        np.testing.assert_allclose(result.scores, scores[0, : int(count)].numpy()[inside], atol=1e-6)


def test_a_graph_letterboxes_and_the_proof_says_what_that_costs(wide, tmp_path):
    checkpoint = wide / "runs" / "shapes" / "best.pt"
    result = export.to_onnx(checkpoint, tmp_path / "best.onnx")
    rule = {"short": 96, "long": 160, "multiple": 32, "floor": False, "fill_bgr": list(MEAN_BGR)}
    assert (read_card(checkpoint).resize, read_card(result.path).resize) == (rule, {})
    verification = result.verification
    assert verification is not None and verification.passed and verification.as_trained is not None
    own, boxed = verification.as_trained.evaluation.map, verification.reference.evaluation.map
    assert f"costs {own - boxed:+.2f} mAP points" in verification.table()
    data, _ = write_reports(verification, tmp_path)
    assert json.loads(data.read_text())["as_trained"]["map"] == pytest.approx(own, abs=1e-3)


def test_wrong_rules_are_named(wide):
    with pytest.raises(ConfigError, match=r"model\.resize\.long: expected at least `short`"):
        read_config(wide / "data" / "shapes.yaml", ["model.resize={rule: short-side, short: 800, long: 100}"])
    card = read_card(wide / "runs" / "shapes" / "best.pt")
    with pytest.raises(CardError, match="a graph has one input size"):
        replace(card, kind="onnx")
    with pytest.raises(CardError, match=r"missing key 'resize\.long'"):
        replace(card, resize={"short": 3})
    assert Card.from_json(card.to_json(), "card") == card
    assert asdict(card.resize_rule())["short"] == 96
