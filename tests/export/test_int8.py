"""8 bits without training: calibration pictures, ranges files, float layers by mAP, and the form for CPUs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import get_args

import onnx
import pytest
import torch

from export.__main__ import main
from export.int8.calibration import calibration_pictures, correction_images
from export.int8.quantize import quantized
from export.int8.ranges import RangesFile, read_ranges, write_ranges
from export.int8.sensitivity import output_errors, sensitivity, spread, write_sensitivity
from export.options import Calibrate, CalibrationError, Int8
from models.checkpoint import build_detector, read_checkpoint, save_checkpoint
from models.config.model import model_config
from models.detector import Detector as Network
from models.layers.blocks import LevelNorm
from models.quant import METHODS, Ranges, UintFakeQuant, correct_biases, quantize
from models.quant.placement import roundings_of
from runtime import Card, read_coco
from runtime.card.card import sha256_file
from runtime.images.image import write_image
from tests.at_fault import raises
from tests.export.networks import save_network

SIZE_HW = (64, 96)


def network(**keys: object) -> Network:
    """Random weights, statistics of noise, and a level norm whose gains differ in size and in sign."""
    torch.manual_seed(1)
    made = Network(model_config({
        "classes": list("abc"), "input_size_hw": list(SIZE_HW), "backbone": {"name": "resnet18", "width": 0.25},
        "neck": {"channels": 16, "levels": [3, 5], "norm": "bn"}, "head": {"depth": 1, "norm": "sepbn", "prior": 0.2},
        "postprocess": {"candidates": 60, "detections": 25}, **keys,
    }))  # fmt: skip
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.startswith("head.") and name.endswith("weight") and parameter.ndim == 4:
                parameter.normal_(std=0.1)
        for module in made.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0
        for _ in range(2):
            made(noise(4))
        for module in made.modules():
            if isinstance(module, LevelNorm):
                for level, norm in enumerate(module.norms):
                    norm.weight.uniform_(0.5, 1.5)
                    norm.weight[: level * 2] *= -1
    return made.eval()


def noise(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *SIZE_HW, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of six pictures with annotations of one class, in a.json, and of two, in ab.json."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(noise(6).numpy()):
        write_image(folder / f"{i}.png", image)
    for name, classes in (("a", (1, 1)), ("ab", (1, 2))):
        objects = [{"id": i + 1, "image_id": i, "category_id": classes[i % 2], "bbox": [4, 4, 20, 20], "area": 400,
                    "iscrowd": 0} for i in range(6)]  # fmt: skip
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 96} for i in range(6)],
            "annotations": objects, "categories": [{"id": i + 1, "name": c} for i, c in enumerate("abc")],
        }  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("int8") / "w.pt", network())


def card_of(checkpoint: Path) -> Card:
    return Card.from_json(read_checkpoint(checkpoint)["card"], checkpoint)


def test_what_is_wrong_with_calibration_pictures_is_said(tmp_path, pictures, checkpoint):
    card = card_of(checkpoint)
    (tmp_path / "empty").mkdir()
    for images in (tmp_path / "empty", tmp_path / "absent", None):
        with raises(CalibrationError, path=images or checkpoint):
            calibration_pictures(card, checkpoint, None, images, 4)
    with raises(CalibrationError, key="pictures"):
        Int8(pictures=0)

    one = calibration_pictures(card, checkpoint, pictures / "a.json", pictures, 512)
    assert "only objects of the class 'a'" in one.notes[0]
    assert not calibration_pictures(card, checkpoint, pictures / "ab.json", pictures, 512).notes

    copy = shutil.copytree(pictures, tmp_path / "copy")
    (copy / "5.png").write_bytes((copy / "5.png").read_bytes()[:200])
    said: list[str] = []
    few = calibration_pictures(card, checkpoint, None, copy, 100)
    assert [len(batch) for batch in few.batches(SIZE_HW)] == [5] and few.used == 5
    few.report(100, said.append)
    assert "1 pictures cannot be read" in said[0] and "fewer than the 100" in said[1]
    for path in copy.glob("*.png"):
        path.write_bytes(b"")
    with raises(CalibrationError, key="calibration"):
        quantized(network(), card, checkpoint, Int8(calibration_images=copy))


def test_ranges_are_the_same_after_a_round_trip_and_foreign_ones_are_refused(tmp_path, checkpoint):
    tensors = {
        "x": Ranges(-1.5, 2.0, dict.fromkeys(METHODS, 1.75)),
        "relu": Ranges(0.0, 1e-20, dict.fromkeys(METHODS, 0.0)),
    }
    sha = sha256_file(checkpoint)
    path = write_ranges(tmp_path / "r.json", RangesFile(sha, 6, "somewhere", tensors))
    again = read_ranges(path, checkpoint, sha)
    assert again.tensors == tensors and again.images == 6 and again.source == "somewhere"
    text = path.read_text()
    for broken, told in (
        (text[: len(text) // 2], "not a whole file of ranges"), (text.replace("isodet int8", "other"), "not a file of"),
        (text.replace(sha, "0" * 64), "of another network"), (text.replace('"format": 1', '"format": 9'), "format 9"),
        (text.replace("1.75", '"?"'), "x.minmax: expected a number"), (text.replace("-1.5", "1.5"), "low <= 0"),
        ("[]", "not a file of ranges"),
    ):  # fmt: skip
        path.write_text(broken)
        with pytest.raises(CalibrationError, match=told):
            read_ranges(path, checkpoint, sha)
    with raises(CalibrationError, path=tmp_path / "none.json"):
        read_ranges(tmp_path / "none.json", checkpoint, sha)


def test_options_name_the_methods_that_there_are():
    assert get_args(Calibrate) == (*METHODS, "best")


def test_ranges_of_one_export_make_the_other_form(tmp_path, pictures, checkpoint):
    """Through the command line: observe for TensorRT, then the CPU's file from the same ranges, without pictures."""
    base = ["onnx", str(checkpoint), "--int8", "--no-verify", "--quiet"]
    assert main([*base, "--calibration-images", str(pictures)]) == 0
    written = checkpoint.with_suffix(".int8.onnx")
    ranges = checkpoint.with_suffix(".int8.ranges.json")
    assert written.is_file() and ranges.is_file()
    assert main([*base, "--cpu", "--ranges", str(ranges)]) == 0
    cards = [json.loads(p.value) for name in (".int8.onnx", ".int8-cpu.onnx")
             for p in onnx.load(checkpoint.with_suffix(name)).metadata_props if p.key == "isodet"]  # fmt: skip
    assert [card["precision"] for card in cards] == ["int8", "int8"]
    assert [card["quantization"].get("form") for card in cards] == [None, "cpu"]
    quantization = {"kind": "ptq", "method": "mse", "images": 6, "float_layers": []}
    assert cards[0]["quantization"] == {**quantization, "bias_correction": 6}
    assert cards[1]["quantization"] == {**quantization, "form": "cpu", "bias_correction": 0}
    foreign = json.loads(ranges.read_text())
    foreign["checkpoint_sha256"] = "0" * 64
    ranges.write_text(json.dumps(foreign))
    before = written.read_bytes()
    assert main([*base, "--ranges", str(ranges)]) == 1
    assert written.read_bytes() == before


def test_biases_are_corrected_by_some_of_the_pictures_unless_told_otherwise(pictures, checkpoint):
    card, said = card_of(checkpoint), []
    made = {
        on: quantized(
            network(), card, checkpoint, Int8(calibration_images=pictures, bias_correction=on), say=said.append
        )
        for on in (True, False)
    }
    assert [made[on].quantization["bias_correction"] for on in (True, False)] == [6, 0]
    (plain, corrected) = (made[on].detector.layers["backbone.conv1"].bias for on in (False, True))
    assert plain.shape == corrected.shape and not torch.equal(plain, corrected)
    by_hand = quantize(network())
    by_hand.set_ranges(made[True].ranges.tensors, "mse")
    batch = torch.cat(list(calibration_pictures(card, checkpoint, None, pictures, 6).batches(SIZE_HW)))
    correct_biases(by_hand, batch)
    assert all(
        torch.equal(a, b)
        for a, b in zip(by_hand.state_dict().values(), made[True].detector.state_dict().values(), strict=True)
    )
    said.clear()
    with raises(CalibrationError, path=checkpoint):  # pictures that nothing names
        correction_images(card, checkpoint, Int8(), said.append)
    assert not said
    assert correction_images(card, checkpoint, Int8(ranges=Path("r.json")), said.append) is None
    assert "biases stay as they are" in said[-1] and str(checkpoint) in said[-1]


def test_errors_are_those_of_one_layer_alone():
    made = quantize(network())
    made.calibrate([noise(4)], "minmax")
    bad = "backbone.layer2.0.conv1"
    fine = output_errors(made, [noise(2)])
    assert list(fine) == list(made.layers) and min(fine.values()) > 0
    module = next(made.fake_quants[name] for name in roundings_of(made.graph, bad))
    module.scale *= 30
    errors = output_errors(made, [noise(2)])
    # Steps 30 times as long err up to 30 times as much; 5 is far from that and from 1, which is no change.
    assert errors[bad] > 5 * fine[bad]
    others = {name for name in fine if errors[name] != fine[name]} - {bad}
    assert others <= {"backbone.layer2.0.downsample.0"}, "only who reads the same rounded tensor suffers with it"
    assert all(module.enabled for module in (*made.layers.values(), *made.fake_quants.values()))


def test_the_layer_that_was_made_bad_goes_back_to_float_alone(shapes_run, tmp_path):
    """Its weights of one input are 300 times those of the others, whose input is 300 times smaller: the same network in
    float, and nothing left of the others in 8 bits.
    """
    detector, card_json = build_detector(shapes_run / "best.pt")
    config = card_json["training"]["data"]["val"]
    data = spread(read_coco(config["annotations"], config["images"], card_json["classes"]), 40)
    spoiled = spoil(detector)
    save_checkpoint(tmp_path / "bad.pt", detector.state_dict(), card_json)
    said: list[str] = []
    made = quantized(
        detector, Card.from_json(card_json, "bad.pt"), tmp_path / "bad.pt", Int8(pictures=16, keep_map=2.0), data,
        said.append,
    )  # fmt: skip
    assert made.quantization["float_layers"] == [spoiled], said
    assert any(f"{spoiled} is float again" in line for line in said)
    assert spoiled not in made.detector.layers

    result = sensitivity(tmp_path / "bad.pt", Int8(pictures=16), images=8, map_images=20, map_layers=1)
    assert result.layers[0].name == spoiled and result.layers[0].lost_map is not None
    assert all(layer.lost_map is None for layer in result.layers[1:])
    assert spoiled in result.table(rows=1) and "layers with less" in result.table(rows=1)
    written = write_sensitivity(result, tmp_path)
    assert [path.name for path in written] == ["sensitivity.json", "sensitivity.png"]
    assert json.loads(written[0].read_text())["layers"][0]["name"] == spoiled


def spoil(detector: Network) -> str:
    """Half of the channels between two convolutions 300 times larger, and the weights that read them smaller: behind a
    ReLU the same in float. Returns the name of the convolution that reads them.
    """
    first, second = detector.backbone.get_submodule("layer2.0.bn1"), detector.backbone.get_submodule("layer2.0.conv2")
    with torch.no_grad():
        first.weight[::2] *= 300
        first.bias[::2] *= 300
        second.weight[:, ::2] /= 300
    return "backbone.layer2.0.conv2"


def test_what_was_trained_as_8_bits_keeps_its_ranges(checkpoint, tmp_path, pictures):
    trained = quantize(network())
    trained.calibrate([noise(4)], "mse")
    card_json = read_checkpoint(checkpoint)["card"] | {"quantization": {"kind": "qat", "float_layers": []}}
    save_checkpoint(tmp_path / "q.pt", trained.state_dict(), card_json)
    detector, _ = build_detector(tmp_path / "q.pt")
    card = Card.from_json(card_json, "q.pt")
    as_it_is = quantized(detector, card, tmp_path / "q.pt", Int8())
    assert as_it_is.detector is detector and as_it_is.ranges is None and as_it_is.quantization["kind"] == "qat"
    for_cpu = quantized(detector, card, tmp_path / "q.pt", Int8(cpu=True, calibration_images=pictures))
    assert for_cpu.quantization == {"kind": "qat", "float_layers": [], "form": "cpu"}
    scale = float(trained.fake_quants["backbone_conv1"].scale)
    theirs = next(m for m in for_cpu.detector.fake_quants.values())
    assert isinstance(theirs, UintFakeQuant)
    longer = max(int(theirs.zero), 255 - int(theirs.zero))  # the side of zero that the trained range was made for
    # 255 steps in the place of 254, and zero on a whole one of them: two steps in 127 at most, 1.6 %.
    assert float(theirs.scale) * longer == pytest.approx(127 * scale, rel=0.02)
    for refused in (
        Int8(keep_map=0.5), Int8(calibrate="best"), Int8(float_layers=("backbone.conv1",)),
        Int8(ranges=tmp_path / "typo.json"), Int8(calibrate="minmax"), Int8(calibration_images=pictures),
    ):  # fmt: skip
        with pytest.raises(CalibrationError, match=r"trained as 8 bits|needs validation"):
            quantized(detector, card, tmp_path / "q.pt", refused)
