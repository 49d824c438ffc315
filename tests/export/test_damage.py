"""One flipped bit in any artifact is told when it is loaded, or changes nothing."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

import export
from export import engine_export
from export.engine.options import EngineOptions
from export.int8.ranges import ranges_path, read_ranges
from export.options import CalibrationError, ExportError, Gate, Int8, OnnxOptions
from models.checkpoint import CheckpointError, read_checkpoint
from models.tensor_files import load_tensors
from runtime import CardError, Detector, read_card
from runtime.__main__ import main as runtime_command
from runtime.backends.options import BackendOptions
from runtime.card.card import Card, sha256_file
from runtime.card.onnx_metadata import graph_sha256
from runtime.card.sidecar import sidecar_path, sidecar_text
from tests.at_fault import raises
from tests.export.damaged import change_weight, edited, set_card, set_first
from tests.runtime.engines import ENGINE

FLIPS = 60
AS_IT_IS = BackendOptions(check_hashes=False)
Result = Callable[[Path], object]


@pytest.fixture(scope="module")
def artifacts(shapes_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one artifact of each kind."""
    folder = tmp_path_factory.mktemp("artifacts")
    for name in ("best.pt", "last.pt", "best.onnx"):
        shutil.copy(shapes_run / name, folder)
    options = OnnxOptions(precision="int8", int8=Int8(pictures=8))
    export.to_onnx(shapes_run / "best.pt", folder / "int8.onnx", options, Gate(verify=False))
    plan = b"ftrt" + bytes(range(256)) * 20
    (folder / "best.engine").write_bytes(plan)
    of_graph = read_card(folder / "best.onnx")
    card = replace(
        of_graph, kind="engine", engine={**ENGINE, "bytes": len(plan)},
        hashes={**of_graph.hashes, "engine": hashlib.sha256(plan).hexdigest()},
    )  # fmt: skip
    sidecar_path(folder / "best.engine").write_text(sidecar_text(card))
    return folder


def _detections(picture: Path) -> Result:
    def run(model: Path) -> object:
        detector = Detector(model, device="cpu", threads=1)
        (found,) = detector(picture, threshold=0.05)
        assert len(found.labels) >= 1  # of nothing, nothing would be compared
        return detector.card, found.boxes_xyxy.tobytes(), found.scores.tobytes(), found.labels.tobytes()

    return run


def _content(checkpoint: Path) -> object:
    content = read_checkpoint(checkpoint)
    resume = content["resume"]["model"]
    return content["card"], [(name, tensor.numpy().tobytes()) for name, tensor in resume.items()]


@pytest.mark.parametrize(
    "name", ["best.pt", "last.pt", "best.onnx", "int8.onnx", "int8.ranges.json", "best.engine", "best.engine.json"]
)
def test_one_flipped_bit_is_told_or_changes_nothing(name, artifacts, shapes_run, tmp_path):
    checkpoint = artifacts / "best.pt"
    (picture, *_) = sorted((shapes_run.parents[1] / "data" / "val").iterdir())
    kinds: dict[str, Result] = {
        "last.pt": _content,
        "int8.ranges.json": lambda path: read_ranges(path, checkpoint, sha256_file(checkpoint)),
        "best.engine": read_card,
        "best.engine.json": lambda sidecar: read_card(sidecar.with_name("best.engine")),
    }
    result = kinds.get(name, _detections(picture))
    for beside in ("best.engine", "best.engine.json"):
        shutil.copy(artifacts / beside, tmp_path)
    whole, expected = (artifacts / name).read_bytes(), result(artifacts / name)
    damaged, told = tmp_path / name, 0
    draw = random.Random(name)
    # Half of them towards the end, where the card of a graph and the directory of a checkpoint are.
    places = [draw.randrange(len(whole)) for _ in range(FLIPS // 2)]
    places += [draw.randrange(max(0, len(whole) - 16_000), len(whole)) for _ in range(FLIPS // 2)]
    for at in places:
        bit = draw.randrange(8)
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            assert result(damaged) == expected, f"bit {bit} of byte {at} changes the result in silence"
        except (CardError, CheckpointError, CalibrationError) as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error), f"bit {bit} of byte {at}: {error}"
            told += 1
    assert told >= FLIPS * 2 // 3  # padding is a small part of any of them


def _nudge(model: onnx.ModelProto) -> None:
    change_weight(model, "", set_first(7.0))


def test_a_graph_that_was_edited_on_purpose_is_loaded_when_told(artifacts, tmp_path, capsys, shapes_run):
    path = edited(Path(shutil.copy(artifacts / "best.onnx", tmp_path)), _nudge)
    with pytest.raises(CardError, match=r"best.onnx: its graph was edited or .*check_hashes=False.*--skip-hash"):
        Detector(path)
    assert Detector(path, options=AS_IT_IS).card.classes == read_card(path).classes
    pictures = shapes_run.parents[1] / "data" / "val"
    command = ["detect", str(pictures), "--model", str(path), "--out", str(tmp_path / "out"), "--quiet"]
    assert runtime_command(command) == 1
    assert "its graph was edited or damaged" in capsys.readouterr().err
    assert runtime_command([*command, "--skip-hashes"]) == 0


@pytest.mark.parametrize(
    ("value", "options", "error", "message"),
    [
        (7.0, EngineOptions(), CardError, "its graph was edited or damaged .* --skip-hashes"),
        *((wrong, EngineOptions(check_hashes=False), ExportError, r"the weight .* \(.*best\.onnx\) .* NaN or infinite")
          for wrong in (float("nan"), float("inf"))),
    ],
)  # fmt: skip
def test_no_engine_is_built_of_a_graph_with_a_wrong_weight(
    artifacts, tmp_path, monkeypatch, value, options, error, message
):
    path = Path(shutil.copy(artifacts / "best.onnx", tmp_path))
    edited(path, lambda model: change_weight(model, "", set_first(value)))
    library = SimpleNamespace(flavour="tensorrt", name="none")
    monkeypatch.setattr(engine_export, "choose_library", lambda engine, gpus: library)
    with pytest.raises(error, match=message):
        engine_export.to_engine(path, options=options)


def test_weights_in_a_file_beside_the_graph_are_part_of_its_hash(artifacts, tmp_path):
    model = onnx.load(artifacts / "best.onnx")
    path = tmp_path / "best.onnx"
    onnx.save(model, path, save_as_external_data=True, location="best.weights", size_threshold=1024)
    card = read_card(path)
    card = replace(card, hashes={**card.hashes, "graph": graph_sha256(path)})
    moved = onnx.load(path, load_external_data=False)
    set_card(moved, card)
    path.write_bytes(moved.SerializeToString())
    Detector(path)
    weights = bytearray((tmp_path / "best.weights").read_bytes())
    weights[len(weights) // 2] ^= 0x10
    (tmp_path / "best.weights").write_bytes(weights)
    with raises(CardError, path=path):
        Detector(path)


def test_files_from_before_there_were_hashes_load(artifacts, tmp_path):
    old = replace(read_card(artifacts / "best.onnx"), hashes={})

    def as_before(model: onnx.ModelProto) -> None:
        set_card(model, old)
        _nudge(model)

    path = edited(Path(shutil.copy(artifacts / "best.onnx", tmp_path)), as_before)
    assert Detector(path).card == old
    lines = ranges_path(artifacts / "int8.onnx").read_text().splitlines(keepends=True)
    assert sum('"sha256"' in line for line in lines) == 1
    ranges = tmp_path / "old.ranges.json"
    ranges.write_text("".join(line for line in lines if '"sha256"' not in line))
    checkpoint = artifacts / "best.pt"
    assert read_ranges(ranges, checkpoint, sha256_file(checkpoint)).images == 8
    weights = tmp_path / "weights.pth"  # PyTorch's format before 1.6 has no checksums
    torch.save({"a": torch.ones(3)}, weights, _use_new_zipfile_serialization=False)
    assert torch.equal(load_tensors(weights)["a"], torch.ones(3))


def test_a_damaged_checkpoint_names_what_is_damaged_and_loads_when_told(artifacts, tmp_path):
    content = bytearray((artifacts / "best.pt").read_bytes())
    content[len(content) // 2] ^= 1  # in a weight
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"best.pt: .*damaged: wrong checksum for file '.*/data/\d+'"):
        Detector(path)
    assert Detector(path, options=AS_IT_IS).card == read_card(artifacts / "best.pt")


def test_a_card_has_its_hash_in_the_file_only(artifacts):
    text = sidecar_path(artifacts / "best.engine").read_text()
    assert "card" in json.loads(text)["hashes"] and "card" not in Card.from_json(text, "s").hashes
    renamed = text.replace('"card":', '"cars":')  # the one flip that hides the hash
    for changed in (renamed, text.replace("0.6", "0.7", 1)):
        assert changed != text
        with pytest.raises(CardError, match="s: its card was edited or damaged"):
            Card.from_json(changed, "s")
    content: dict[str, Any] = json.loads(text)
    assert Card.from_json(dict(reversed(content.items())), "s") == Card.from_json(text, "s")  # order is no content
