"""How many candidates enter NMS: cut exactly, chosen by mAP, told, and written down."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import export
import export.graph.candidates
from export.__main__ import main
from export.engine.options import EngineOptions
from export.engine_export import _rebuild
from export.graph.candidates import COUNTS, CandidateRecorder, chosen_candidates, set_candidates
from export.graph.form import float_forms
from export.int8.quantize import quantized
from export.options import ExportError, Gate, Int8, OnnxOptions
from models.checkpoint import build_detector, read_checkpoint, save_checkpoint
from models.deploy.graph import Deploy
from models.detector import Detector as Network
from runtime import Card, Detector, read_card, read_dataset
from runtime.backends.torch.backend import TorchBackend
from runtime.datasets.annotations import CocoDataset
from runtime.evaluation.evaluate import evaluate
from tests.at_fault import raises
from tests.export.networks import untrained


def loaded(checkpoint: Path, **post: object) -> tuple[Network, Card]:
    """The network and the card of a checkpoint, with other values in `model.postprocess`."""
    content = read_checkpoint(checkpoint)
    card = content["card"]
    card["model"]["postprocess"] |= post
    card["nms"]["candidates"] = card["model"]["postprocess"]["candidates"]
    changed = checkpoint.with_name("changed.pt")
    save_checkpoint(changed, content["model"], card)
    network, card = build_detector(changed)
    return network, Card.from_json(card, changed)


@pytest.fixture
def checkpoint(shapes_run: Path, tmp_path: Path) -> Path:
    """The trained detector of shapes with 1000 candidates and the limit of 20 detections."""
    content = read_checkpoint(shapes_run / "best.pt")
    content["card"]["model"]["postprocess"]["candidates"] = content["card"]["nms"]["candidates"] = 1000
    save_checkpoint(tmp_path / "best.pt", content["model"], content["card"])
    return tmp_path / "best.pt"


@pytest.fixture
def val(shapes_run: Path) -> CocoDataset:
    data = shapes_run.parents[1] / "data"
    return read_dataset(data / "val.json", data / "val")


def pictures(network: Network, count: int = 5) -> list[np.ndarray]:
    """Noise of a size that is letterboxed."""
    height, width = network.config.input_size_hw
    return list(np.random.default_rng(7).integers(0, 256, (count, height + 9, width - 21, 3), dtype=np.uint8))


@pytest.mark.parametrize("detector", ["atss", "retinanet", "fcos"])
@pytest.mark.parametrize("post", [
    {}, {"level_candidates": 90}, {"level_candidates": 90, "level_by": "class", "threshold_on": "class"},
    {"empty_boxes": "keep", "score": "product"},
])  # fmt: skip
def test_cut_candidates_give_what_a_graph_with_that_count_gives(tmp_path, detector, post):
    """Bit for bit, of every count, from one pass of the network."""
    network, card = loaded(untrained(tmp_path / "a.pt", detector), candidates=1000, **post)
    frames = pictures(network)
    recorder = CandidateRecorder(network, card, "cpu")
    recorder(frames[:3])
    recorder(frames[3:])
    for count in (25, 60, 100, 150, 300, recorder.most):
        set_candidates(network, count)
        expected = Detector(TorchBackend(Deploy(network).eval(), card, "cpu"), threshold=0.0)(frames)
        cut = recorder.detections(count)
        assert len(cut) == len(expected) == 5 and any(len(found) for found in expected)
        for one, other in zip(cut, expected, strict=True):
            assert np.array_equal(one.boxes_xyxy, other.boxes_xyxy) and np.array_equal(one.scores, other.scores)
            assert np.array_equal(one.labels, other.labels)


def test_the_fewest_that_keep_the_map_are_exported_told_and_written_down(checkpoint, val, monkeypatch):
    """Their mAP is that of the graph; the gate compares with the checkpoint as it is."""
    passes = []
    real = export.graph.candidates.evaluate
    monkeypatch.setattr("export.graph.candidates.evaluate", lambda *a, **k: passes.append(1) or real(*a, **k))
    said: list[str] = []
    gate = Gate(annotations=val.annotations, images=val.records[0].path.parent)
    result = export.to_onnx(checkpoint, gate=gate, say=said.append)
    choice = result.card.verification["candidates"]
    maps = {int(count): score for count, score in choice["map"].items()}
    assert passes == [1] and choice["configured"] == 1000 and choice["images"] == len(val.records)
    count = result.card.nms["candidates"]
    tried = [number for number in COUNTS[:-1] if number <= count]
    assert list(maps) == [*tried, 1000] and count == choice["count"] < 1000
    assert maps[1000] - maps[count] <= 0.05 + 1e-3
    assert all(maps[1000] - maps[number] > 0.05 - 1e-3 for number in tried[:-1])
    assert result.verification.reference.evaluation.map == pytest.approx(maps[1000], abs=1e-3)
    assert result.verification.artifacts[0].evaluation.map == pytest.approx(maps[count], abs=0.02)
    (line,) = [line for line in said if line.startswith("candidates: ")]
    assert (
        f"{count}, the fewest" in line and f"1000: {maps[1000]:.2f}" in line and f"{count}: {maps[count]:.2f}" in line
    )
    assert read_card(result.path).nms["candidates"] == count
    assert result.card.model["postprocess"]["candidates"] == 1000, "the card's model is the checkpoint's"


def test_a_card_of_this_kind_has_no_new_key(checkpoint):
    """An isodet that knows nothing of the choice reads `nms` and the free mapping `verification`."""
    result = export.to_onnx(checkpoint, options=OnnxOptions(candidates=150), gate=Gate(verify=False))
    card = result.card.to_json()
    assert set(card["nms"]) == {"kind", "iou", "candidates", "detections"} and card["nms"]["candidates"] == 150
    assert card["verification"]["candidates"] == {"count": 150, "configured": 1000, "reason": "as asked for"}
    assert set(card) <= {"format", *(name for name in Card.__dataclass_fields__)}
    traced, simple = float_forms(build_detector(checkpoint)[0], result.card)  # what `exporter bisect` compares with
    for graph in (traced, simple):
        nms = next(node for node in graph.graph.node if node.op_type == "EfficientNMS_TRT")
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.graph.value_info}
        assert shapes[nms.input[0]][1] == 150


def test_the_number_that_is_asked_for_is_measured_nowhere(checkpoint, val, monkeypatch):
    monkeypatch.setattr("export.graph.candidates.evaluate", None)
    network, card_json = build_detector(checkpoint)
    card = Card.from_json(card_json, checkpoint)

    def count(options: OnnxOptions, gate: Gate = Gate(), data: CocoDataset | None = val) -> tuple[int, str]:
        said: list[str] = []
        choice = chosen_candidates(network, card, options, gate, data, said.append, None)
        assert said == [f"candidates: {choice.count}, {choice.reason}"]
        return choice.count, choice.reason

    assert count(OnnxOptions(candidates=37)) == (37, "as asked for")
    assert count(OnnxOptions(candidates="config"))[0] == 1000
    assert "no validation data" in count(OnnxOptions(), data=None)[1]
    assert "without scoring" in count(OnnxOptions(), Gate(verify=False))[1]
    set_candidates(network, 100)
    assert count(OnnxOptions()) == (100, "as configured; no smaller count is tried")
    for wrong in (0, -1, 3841, "many", 1.5):
        with raises(ExportError, key="candidates"):
            OnnxOptions(candidates=wrong)
    with raises(ExportError, key="candidates"):
        count(OnnxOptions(candidates=19))  # of 20 detections


def test_a_count_that_also_chooses_the_points_is_left_as_it_is(tmp_path, val):
    network, card = loaded(untrained(tmp_path / "a.pt"), candidates=1000, threshold_on="class")
    choice = chosen_candidates(network, card, OnnxOptions(), Gate(), val, print, None)
    assert choice.count == 1000 and "threshold_on: class" in choice.reason and not choice.maps


def test_a_smaller_count_takes_at_most_half_of_what_may_be_lost(checkpoint, val, monkeypatch):
    """A gate without tolerance, or `--keep-mAP 0`, is not failed by fewer candidates."""
    network, card_json = build_detector(checkpoint)
    card = Card.from_json(card_json, checkpoint)
    monkeypatch.setattr("export.graph.candidates.evaluate", lambda recorder, *_, **__: SimpleNamespace(
        map=50.0, detections={record.id: None for record in val.records}))  # fmt: skip
    monkeypatch.setattr(CandidateRecorder, "detections", lambda self, count: [count] * len(val.records))
    monkeypatch.setattr(
        "export.graph.candidates.coco_metrics",
        lambda found, *_: ({"map": 50 - 12 / next(iter(found.values()))}, {}),
    )

    def count(gate: Gate) -> tuple[int, float]:
        choice = chosen_candidates(network, card, OnnxOptions(), gate, val, print, None)
        return choice.count, choice.may_lose

    assert count(Gate()) == count(Gate(tolerance=1.0)) == (300, 0.05)
    assert count(Gate(tolerance=0.05)) == (500, 0.025)
    assert count(Gate().for_int8(Int8(keep_map=0.0))) == (1000, 0.0)


def test_8_bits_have_the_count_that_was_chosen_in_float(checkpoint, val):
    """`keep_map` compares the 8-bit network with that count against the float one with its own."""
    network, card_json = build_detector(checkpoint)
    card = Card.from_json(card_json, checkpoint)
    options = Int8(pictures=8, keep_map=100.0)
    made = quantized(network, card, checkpoint, options, val, candidates=150)
    assert made.detector.config.postprocess.candidates == 150 and network.config.postprocess.candidates == 1000
    assert quantized(network, card, checkpoint, Int8(pictures=8)).detector.config.postprocess.candidates == 1000


def test_what_is_recorded_scores_what_the_checkpoint_scores(checkpoint, val):
    network, card_json = build_detector(checkpoint)
    recorded = evaluate(CandidateRecorder(network, Card.from_json(card_json, checkpoint), "cpu"), val)
    assert recorded.map == evaluate(Detector(checkpoint, "cpu"), val).map > 20


def test_the_command_line_takes_a_number_or_a_word(checkpoint, capsys):
    assert main(["onnx", str(checkpoint), "--candidates", "200", "--no-verify", "--quiet"]) == 0
    assert "candidates: 200, as asked for" in capsys.readouterr().out
    assert read_card(checkpoint.with_suffix(".onnx")).nms["candidates"] == 200
    for command in ("onnx", "trt"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(checkpoint), "--candidates", "few"])
        assert ended.value.code == 2 and "--candidates: expected auto, config or" in capsys.readouterr().err


def test_an_engine_is_built_again_with_the_count_that_was_chosen(shapes_run, tmp_path):
    card = read_card(shapes_run / "best.onnx")
    library = SimpleNamespace(flavour="rtx")

    def words(choice: dict[str, object] | None) -> str:
        graph = None if choice is None else Card.from_json(
            json.dumps({**card.to_json(), "verification": {"candidates": choice}}), tmp_path, False)  # fmt: skip
        return _rebuild(tmp_path / "best.pt", EngineOptions(), library, "auto", graph)

    assert "--candidates 150" in words({"count": 150, "configured": 1000})
    assert "--candidates" not in words({"count": 1000, "configured": 1000}) + words(None)
