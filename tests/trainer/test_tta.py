"""Test-time augmentation: with nothing to add it is the deployed detector, and mirrored views are mirrored back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from isodet.errors import ArgumentError
from isodet.strict import to_mapping
from models.checkpoint import read_checkpoint, save_checkpoint
from models.detector import Detector as Network
from runtime import Detector, read_card
from runtime.images.image import FixedSize, ShortSide
from tests.at_fault import raises
from trainer.__main__ import main
from trainer.config_reader import read_config
from trainer.recipes.shapes import make_shapes
from trainer.run.checkpoint_card import checkpoint_card
from trainer.tta.tta import TtaDetector, View, parse_views, scaled


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that finds a lot, its data, and the shapes data."""
    root = tmp_path_factory.mktemp("views")
    make_shapes(root / "data", train_images=2, val_images=6, size_hw=(72, 96))
    config = read_config(root / "data" / "shapes.yaml", [
        "model.input_size_hw=[64,96]", "model.backbone.width=0.25", "model.neck.channels=32",
        "model.postprocess.score_threshold=0.02", "model.postprocess.candidates=200", "model.postprocess.detections=60",
    ])  # fmt: skip
    torch.manual_seed(0)
    network = Network(config.model, load_weights=False)
    with torch.no_grad():
        network.head.cls.bias.fill_(-1.0)
        network.head.cls.weight.mul_(60)
    card = checkpoint_card(config.model, {}, to_mapping(config))
    save_checkpoint(root / "best.pt", network.state_dict(), card.to_json())
    return root


def frames(count: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (60 + 9 * i, 90, 3), np.uint8) for i in range(count)]


def test_hard_nms_of_one_view_is_the_deployed_detector(folder):
    deployed, merged = Detector(folder / "best.pt", device="cpu"), TtaDetector(folder / "best.pt", device="cpu")
    total = 0
    for a, b in zip(deployed(frames(), threshold=0.0), merged(frames(), threshold=0.0), strict=True):
        total += len(a)
        assert a.labels.tolist() == b.labels.tolist()
        np.testing.assert_allclose(a.boxes_xyxy, b.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)
    assert total > 60
    high = float(np.median(merged(frames()[0], threshold=0.0)[0].scores))
    assert (merged(frames()[0], threshold=high)[0].scores >= np.float32(high)).all()
    assert [len(d) for d in merged(frames(), threshold=1.0)] == [0, 0, 0] and merged([]) == []


def test_a_mirrored_view_sees_the_mirrored_frame(folder):
    straight = TtaDetector(folder / "best.pt", device="cpu")
    mirrored = TtaDetector(folder / "best.pt", views=(View(flip=True),), device="cpu")
    for frame in frames():
        (a,), (b,) = straight(np.ascontiguousarray(frame[:, ::-1]), threshold=0.0), mirrored(frame, threshold=0.0)
        x0, y0, x1, y1 = b.boxes_xyxy.T
        back = np.stack([frame.shape[1] - x1, y0, frame.shape[1] - x0, y1], axis=1)
        assert len(a) > 20 and a.labels.tolist() == b.labels.tolist()
        np.testing.assert_allclose(a.boxes_xyxy, back, atol=1e-3)


@pytest.mark.parametrize("nms", ["hard", "soft", "soft-linear", "wbf"])
def test_views_are_merged_in_the_frame(folder, nms):
    """Three sizes, mirrored and not: boxes stay in the frame and in order, and come back into its pixels."""
    views = parse_views("flip,scales")
    detector = TtaDetector(folder / "best.pt", nms, views, "cpu")
    for frame, found in zip(frames(), detector(frames(), threshold=0.0), strict=True):
        assert 0 < len(found) <= detector.card.nms["detections"]
        assert found.boxes_xyxy[:, 2].max() > 60 and found.boxes_xyxy.max() <= max(frame.shape)


def test_what_views_can_be_asked_for():
    assert parse_views("flip") == (View(), View(flip=True))
    assert parse_views("0.5, 1,2") == (View(), View(0.5), View(2.0))
    assert len(parse_views("flip,scales")) == 6
    for bad in ("", "mirror", "flip,0", "9", "nan"):
        with raises(ArgumentError, key="tta"):
            parse_views(bad)
    assert scaled(FixedSize((320, 416)), 0.75) == FixedSize((256, 320))
    assert scaled(FixedSize((64, 64)), 0.25) == FixedSize((32, 32))
    rule = ShortSide(800, 1333, 32, True, (1, 2, 3))
    assert scaled(rule, 0.5) == ShortSide(400, 666, 32, True, (1, 2, 3)) and scaled(rule, 1.0) is rule


def test_the_command(folder, tmp_path, capsys):
    data = ["--annotations", str(folder / "data" / "val.json"), "--images", str(folder / "data" / "val"), "--quiet"]
    copy = tmp_path / "best.pt"
    copy.write_bytes((folder / "best.pt").read_bytes())
    assert main(["eval", str(copy), *data, "--json", str(tmp_path / "a.json")]) == 0
    before = json.loads((tmp_path / "a.json").read_text())
    command = ["eval", str(copy), *data, "--tta", "flip,1.5", "--nms", "soft", "--precision", "0.9"]
    assert main([*command, "--json", str(tmp_path / "b.json"), "--save-thresholds"]) == 0
    after = json.loads((tmp_path / "b.json").read_text())
    assert "merging: soft over 4 views of each image" in capsys.readouterr().out
    assert before["map"] != after["map"] and before["images"] == after["images"] == 6
    card, kept = read_card(copy), read_checkpoint(copy)["model"]
    measured = {name: c["threshold"] for name, c in after["classes"].items()}
    assert card.thresholds and dict(card.thresholds).items() <= measured.items()
    assert card.threshold == read_card(folder / "best.pt").threshold
    assert all(torch.equal(v, kept[k]) for k, v in read_checkpoint(folder / "best.pt")["model"].items())
    with pytest.raises(SystemExit) as stop:
        main([*command, "--tta", "mirror"])
    assert stop.value.code == 2


def test_an_artifact_has_no_candidates(shapes_run, capsys):
    for options in (["--nms", "soft"], ["--tta", "flip"]):
        assert main(["eval", str(shapes_run / "best.onnx"), "--quiet", *options]) == 1
        assert "name the checkpoint (.pt)" in capsys.readouterr().err
    assert main(["eval", str(shapes_run / "best.onnx"), "--quiet", "--save-thresholds"]) == 1
    assert "writes into a checkpoint" in capsys.readouterr().err
