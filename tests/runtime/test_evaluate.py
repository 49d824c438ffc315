from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pytest import CaptureFixture

from runtime.__main__ import main
from runtime.backends.protocol import Backend, RawOutputs
from runtime.card.card import Card
from runtime.datasets import read_dataset
from runtime.datasets.annotations import DatasetError
from runtime.datasets.coco import CocoDataset, read_coco
from runtime.detector import Detector
from runtime.evaluation.evaluate import EvaluationError, evaluate
from runtime.evaluation.results_file import read_coco_results
from runtime.images.image import letterbox, write_image
from tests.at_fault import raises
from tests.processes import python
from tests.runtime.as_found import coco_json, voc_file, voc_object
from tests.runtime.conftest import make_card

Files, Ask = Callable[..., tuple[Path, Path]], Callable[..., Detector]
Found = tuple[list[list[float]], list[float], list[int]]
SIZE = (128, 192)


class Oracle(Backend):
    """A backend that knows what to say about each picture by its gray value (its image id)."""

    name, device, max_batch, fixed_batch = "oracle", "cpu", 3, None

    def __init__(self, card: Card, answers: dict[int, Found]) -> None:
        self.card, self.answers = card, answers

    def __call__(self, images: np.ndarray) -> RawOutputs:
        slots = 120
        count, boxes = np.zeros((len(images), 1), np.int32), np.zeros((len(images), slots, 4), np.float32)
        scores, labels = np.zeros((len(images), slots), np.float32), np.zeros((len(images), slots), np.int32)
        for i, image in enumerate(images):
            b, s, c = self.answers.get(int(image[0, 0, 0]), ([], [], []))
            count[i] = n = len(s)
            if n:
                boxes[i, :n], scores[i, :n], labels[i, :n] = b, s, c
        return RawOutputs(count, boxes, scores, labels)


def coco_content(seed: int = 0, crowds: bool = False, images: int = 9) -> dict[str, Any]:
    """Pictures exactly as large as the input, so that input pixels are frame pixels."""
    rng = np.random.default_rng(seed)
    content = coco_json(dict.fromkeys(range(1, images + 1), SIZE), {2: "ant", 5: "bee", 9: "cat"}, [])
    for image_id in range(1, images + 1):
        for _ in range(rng.integers(0, 6)):
            w, h = rng.integers(4, 120, 2)
            x, y = rng.integers(0, SIZE[1] - w + 1), rng.integers(0, SIZE[0] - h + 1)
            bbox = [int(x), int(y), int(w), int(h)]
            area = float(w * h) * (1 if rng.random() < 0.5 else 0.7)  # a mask's area is smaller than its box's
            content["annotations"].append({
                "id": len(content["annotations"]), "image_id": image_id, "category_id": int(rng.choice([2, 5, 9])),
                "bbox": bbox, "area": area, "iscrowd": int(crowds and rng.random() < 0.3),
            })  # fmt: skip
    return content


def noisy(dataset: CocoDataset, seed: int = 1) -> dict[int, Found]:
    """Answers that are partly right: shifted boxes, confused labels, misses, duplicates, inventions."""
    rng = np.random.default_rng(seed)
    answers: dict[int, Found] = {}
    for record in dataset.records:
        rows = []
        for box, label in zip(record.boxes_xyxy, record.labels, strict=True):
            for _ in range(rng.integers(0, 3)):
                moved = box + rng.normal(0, 4, 4)
                x1, y1, x2, y2 = np.clip(moved, 0, (SIZE[1], SIZE[0]) * 2)
                if x2 > x1 and y2 > y1:
                    rows.append(([x1, y1, x2, y2], rng.random(), int(label if rng.random() < 0.8 else rng.integers(3))))
        rows += [([3.0, 3, 40, 50], rng.random(), int(rng.integers(3))) for _ in range(rng.integers(0, 3))]
        rows.sort(key=lambda row: -row[1])
        answers[record.id] = ([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows])
    return answers


@pytest.fixture
def oracle() -> Callable[..., Detector]:
    """Makes the detector that gives these answers."""

    def make(answers: dict[int, Found], **changes: Any) -> Detector:
        return Detector(Oracle(make_card(input_size_hw=SIZE, **changes), answers))

    return make


def perfect(dataset: CocoDataset) -> dict[int, Found]:
    return {r.id: (r.boxes_xyxy.tolist(), [0.9] * len(r.labels), r.labels.tolist()) for r in dataset.records}


def pycocotools_directly(annotations: Path, results: Path | list[Any]) -> list[float]:
    """The twelve numbers as pycocotools' own readers and evaluation give them from files."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        judge = COCOeval(truth, truth.loadRes(results if isinstance(results, list) else str(results)), "bbox")
        judge.evaluate(), judge.accumulate(), judge.summarize()
    return [100 * float(v) if v >= 0 else math.nan for v in judge.stats]


@pytest.mark.parametrize("crowds", [False, True])
def test_it_equals_pycocotools(coco_files: Files, oracle: Ask, crowds: bool, capsys: CaptureFixture[str]) -> None:
    content = coco_content(crowds=crowds, images=25)
    for annotation in content["annotations"]:
        annotation["id"] += 1  # pycocotools itself loses the match with an annotation of id 0
    annotations, images = coco_files(content)
    dataset = read_coco(annotations, images)
    assert any(r.crowd.any() for r in dataset.records) == crowds
    steps: list[tuple[int, int]] = []
    result = evaluate(oracle(noisy(dataset)), dataset, 4, lambda done, total: steps.append((done, total)))
    assert capsys.readouterr().out == "" and steps[0] == (4, 25) and steps[-1] == (25, 25) and len(steps) == 7
    rows = [
        row for image_id, found in result.detections.items() for row in found.to_coco(image_id, dataset.category_ids)
    ]
    direct = pycocotools_directly(annotations, rows)
    ours = [result.map, result.ap50, result.ap75, result.ap_small, result.ap_medium, result.ap_large, result.ar100]
    np.testing.assert_allclose(ours, [direct[i] for i in (0, 1, 2, 3, 4, 5, 8)], rtol=1e-6)
    assert 5 < result.map < 95 and result.ap50 > result.ap75
    np.testing.assert_allclose(np.mean(list(result.per_class.values())), result.map, rtol=1e-6)
    assert result.images == 25 and result.skipped == () and set(result.detections) == set(range(1, 26))


def test_annotation_id_zero_counts_and_perfection_is_100(coco_files: Files, oracle: Ask) -> None:
    dataset = read_coco(*coco_files(coco_content()))
    result = evaluate(oracle(perfect(dataset)), dataset)
    assert result.map == pytest.approx(100) and result.ar100 == pytest.approx(100)
    assert all(value == pytest.approx(100) for value in result.per_class.values())


def test_the_order_of_labels_does_not_matter(coco_files: Files, oracle: Ask) -> None:
    files = coco_files(coco_content())
    straight = read_coco(*files)
    answers = noisy(straight)
    a = evaluate(oracle(answers), straight)
    turned = read_coco(*files, classes=["cat", "ant", "bee"])
    relabel = [1, 2, 0]
    moved = {k: (b, s, [relabel[c] for c in c_]) for k, (b, s, c_) in answers.items()}
    b = evaluate(oracle(moved, classes=("cat", "ant", "bee")), turned)
    assert b.map == pytest.approx(a.map) and b.per_class == pytest.approx(a.per_class)


def test_nothing_found_and_nothing_to_find(coco_files: Files, oracle: Ask) -> None:
    content = coco_content()
    files = coco_files(content)
    result = evaluate(oracle({}), read_coco(*files))
    assert result.map == 0 and result.ar100 == 0 and set(result.per_class.values()) == {0}
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 5 and a["area"] < 32**2]
    result = evaluate(oracle({}), read_coco(*coco_files(content)))
    assert math.isnan(result.ap_large) and math.isnan(result.per_class["ant"]) and result.per_class["bee"] == 0
    content["annotations"] = []
    dataset = read_coco(*coco_files(content))
    for answers in ({}, {1: ([[0.0, 0, 5, 5]], [0.5], [0])}):
        result = evaluate(oracle(answers), dataset)
        assert math.isnan(result.map) and all(map(math.isnan, result.per_class.values()))
        assert result.to_json()["map"] is None and json.dumps(result.to_json(), allow_nan=False)
        assert "-" in result.table()


def test_a_broken_picture_is_left_out_with_its_objects(coco_files: Files, oracle: Ask) -> None:
    dataset = read_coco(*coco_files(coco_content()))
    broken = dataset.records[0].path
    broken.write_bytes(broken.read_bytes()[:40])
    result = evaluate(oracle(perfect(dataset)), dataset, batch_size=1)
    assert [path for path, _ in result.skipped] == [broken] and "truncated" in result.skipped[0][1]
    assert result.map == pytest.approx(100) and result.images == 8 and 1 not in result.detections
    assert "1 unreadable" in result.table() and result.to_json()["skipped"][0]["path"] == str(broken)
    for record in dataset.records:
        record.path.write_bytes(b"")
    with raises(EvaluationError, path=dataset.annotations):
        evaluate(oracle({}), dataset)


def test_frames_of_another_size_are_judged_in_their_own_pixels(coco_files: Files, oracle: Ask) -> None:
    content = coco_content()
    for image in content["images"]:
        image["height"], image["width"] = 64 + 13 * image["id"], 250
    dataset = read_coco(*coco_files(content))
    answers = {}
    for r in dataset.records:
        _, placement = letterbox(np.zeros((r.height, r.width, 3), np.uint8), SIZE)
        answers[r.id] = (placement.to_input(r.boxes_xyxy).tolist(), [0.9] * len(r.labels), r.labels.tolist())
    assert evaluate(oracle(answers), dataset).map == pytest.approx(100)


def test_classes_must_agree(coco_files: Files, oracle: Ask) -> None:
    content = coco_content()
    content["categories"][0]["name"] = "dog"
    detector = oracle({})
    with pytest.raises(EvaluationError, match="only the model has ant; only the annotations have dog"):
        evaluate(detector, read_coco(*coco_files(content)))
    dataset = read_coco(*coco_files(coco_content()), classes=["cat", "bee", "ant"])
    with pytest.raises(EvaluationError, match="the same names in another order"):
        evaluate(detector, dataset)
    with raises(EvaluationError, key="batch_size"):
        evaluate(detector, dataset, batch_size=0)


def test_the_recommended_threshold_separates_found_from_invented(coco_files: Files, oracle: Ask) -> None:
    """Every object found with a score of 0.6 or more, inventions below 0.4: the threshold lies between."""
    content = coco_content(seed=3)
    dataset = read_coco(*coco_files(content))
    answers: dict[int, Found] = {}
    rng = np.random.default_rng(0)
    for record in dataset.records:
        boxes, labels = record.boxes_xyxy.tolist(), record.labels.tolist()
        invented = [[150.0, 100.0 + i, 160.0 + i, 120.0] for i in range(4)]
        scores = sorted(rng.uniform(0.6, 0.95, len(boxes)))[::-1] + sorted(rng.uniform(0.1, 0.4, 4))[::-1]
        answers[record.id] = (boxes + invented, scores, labels + rng.integers(0, 3, 4).tolist())
    evaluation = evaluate(oracle(answers), dataset)
    assert 0.4 <= evaluation.threshold <= 0.61
    assert evaluation.to_json()["threshold"] == pytest.approx(evaluation.threshold, abs=1e-3)


IGNORED = [[10, 10, 60, 60], [12, 14, 50, 50]]


@pytest.mark.parametrize("kind", ["list", "voc"])
def test_ignored_regions_of_other_formats_count_neither_way(tmp_path: Path, oracle: Ask, kind: str) -> None:
    """Found: the one object, and two things in the ignored region, of another class (list) or of its class (VOC)."""
    write_image(tmp_path / "JPEGImages" / "a.png", np.full((*SIZE, 3), 1, np.uint8))
    if kind == "list":
        ann = {"bboxes": [[100, 0, 150, 50]], "labels": [0], "bboxes_ignore": IGNORED[:1]}
        source = tmp_path / "a.json"
        source.write_text(json.dumps([{"filename": "a.png", "ann": ann}]))
        (tmp_path / "classes.txt").write_text("ant\nbee\ncat\n")
    else:
        source = tmp_path / "Annotations"
        source.mkdir()
        objects = voc_object("ant", (101, 1, 150, 50)), voc_object("ant", (11, 11, 60, 60), "<difficult>1</difficult>")
        (source / "a.xml").write_text(voc_file("a.png", *objects, size=""))
    data = read_dataset(source, tmp_path / "JPEGImages", ["ant", "bee", "cat"])
    label = 1 if kind == "list" else 0
    found = ([*IGNORED, [100, 0, 150, 50]], [0.9, 0.8, 0.7], [0, label, 0])
    assert evaluate(oracle({1: found}), data).map == pytest.approx(100)
    outside = ([[10, 70, 60, 120], [100, 0, 150, 50]], [0.9, 0.7], [0, 0])
    assert evaluate(oracle({1: outside}), data).map == pytest.approx(50, abs=1)


def test_a_turned_picture_is_judged_with_its_boxes_turned(coco_files: Files, oracle: Ask) -> None:
    """Annotated as stored, 128 wide and 192 high; upright, by orientation 6, it is 192 wide and 128 high."""
    rows = [(1, 2, [10.0, 20, 30, 40]), (2, 2, [10.0, 20, 30, 40])]
    classes = {2: "ant", 5: "bee", 9: "cat"}
    annotations, images = coco_files(coco_json(dict.fromkeys((1, 2), SIZE[::-1]), classes, rows))
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.fromarray(np.full((SIZE[1], SIZE[0], 3), 1, np.uint8)).save(images / "1.png", exif=exif)
    write_image(images / "2.png", np.full((*SIZE, 3), 2, np.uint8))  # turned by somebody who kept the annotations
    turned = [[192 - 60.0, 10, 192 - 20.0, 40]]  # x = height - y, y = x
    result = evaluate(oracle({1: (turned, [0.9], [0])}), read_coco(annotations, images))
    assert result.map == pytest.approx(100) and result.images == 1
    assert "no EXIF orientation" in result.skipped[0][1] and result.skipped[0][0].name == "2.png"


# From here on: `runtime eval --detections`, without a model and without torch
def content() -> dict[str, Any]:
    """Twelve pictures with two objects each; ids with gaps."""
    rows = [(10 * i, (3, 7)[j], [5.0 + 50 * j, 8, 30, 20 + i]) for i in range(1, 13) for j in range(2)]
    return coco_json({10 * i: (96, 128) for i in range(1, 13)}, {3: "ant", 7: "bee"}, rows)


def results(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Moved by a little, some doubled, some missed; not sorted; one picture has none."""
    rng = np.random.default_rng(0)
    rows = []
    for a in truth["annotations"]:
        for _ in range(int(rng.integers(0, 3)) if a["image_id"] != 50 else 0):
            box = [round(float(v), 2) for v in np.array(a["bbox"]) + rng.normal(0, 2, 4)]
            score = round(float(rng.random()), 4)
            rows.append({"image_id": a["image_id"], "category_id": a["category_id"], "bbox": box, "score": score})
    return rows


@pytest.fixture
def files(tmp_path: Path, coco_files: Files) -> tuple[Path, Path]:
    """Annotations without pictures, and results."""
    annotations, _ = coco_files(content(), pictures=False)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results(content())))
    return annotations, path


def test_the_numbers_are_pycocotools_own(files: tuple[Path, Path], tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    annotations, path = files
    numbers, report = tmp_path / "n.json", tmp_path / "report"
    command = ["eval", "--detections", str(path), "--annotations", str(annotations), "--json", str(numbers)]
    assert main([*command, "--max-dets", "1,100", "--report", str(report)]) == 0
    assert "12 images" in capsys.readouterr().out
    direct, ours = pycocotools_directly(annotations, path), json.loads(numbers.read_text())
    for name, i in (("map", 0), ("ap50", 1), ("ap75", 2), ("ap_small", 3), ("ar100", 8)):
        assert ours[name] == pytest.approx(direct[i], abs=1e-3)
    assert 5 < ours["map"] < 95 and ours["images"] == 12 and [*ours["max_dets"]] == ["1", "100"]
    page = (report / "report.html").read_text()
    assert "results.json" in page and "The pictures are not there" in page and not (report / "worst.jpg").exists()


def test_pictures_are_drawn_where_they_are(tmp_path: Path, coco_files: Files) -> None:
    annotations, images = coco_files(content())
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results(content())))
    data = ["--annotations", str(annotations), "--images", str(images)]
    assert main(["eval", "--detections", str(path), *data, "--report", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "worst.jpg").is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 55}, r"image_id: .*annotations\.json has no image 55"),
        ({"image_id": "10"}, r"image_id: expected a whole number, an id of the annotations; got '10'"),
        ({"image_id": None}, r"image_id: expected a whole number"),
        ({"category_id": 1}, r"category_id: .* has no category 1; it has 3 \(ant\), 7 \(bee\)"),
        ({"category_id": True}, r"category_id: expected a whole number"),
        ({"bbox": [1, 2, 3]}, r"bbox: expected four numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, r"bbox: expected"),
        ({"bbox": [1, 2, 1e400, 4]}, r"bbox: expected four numbers"),
        ({"bbox": [90, 50, -20, 4]}, r"bbox: expected .* no side below 0, .*converted"),
        ({"bbox": "1 2 3 4"}, r"bbox: expected four numbers"),
        ({"score": 87}, r"score: expected a number from 0 to 1, got 87"),
        ({"score": float("nan")}, r"score: expected a number from 0 to 1"),
        ({"score": "0.5"}, r"score: expected a number from 0 to 1, got '0.5'"),
    ],
)
def test_a_wrong_entry_is_named(files: tuple[Path, Path], change: dict[str, Any], said: str) -> None:
    annotations, path = files
    rows = results(content())
    wrong = copy.deepcopy(rows)
    wrong[4] |= change
    path.write_text(json.dumps(wrong))
    dataset = read_coco(annotations, annotations.parent, check_files=False)
    with pytest.raises(DatasetError, match=rf"results\.json: entry 4: {said}"):
        read_coco_results(path, dataset)
    del rows[4]["score"]
    path.write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match=r"entry 4: score: .*got None"):
        read_coco_results(path, dataset)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"), ('{"images": []}', "this is COCO annotations"), ("3", "this is something else"),
        ('{"results": [], "info": {}}', r"this is an object \(results, info\)"), ("{}", r"an object \(empty\)"),
        ("[[1, 2]]", r"entry 0: expected an object"), ('[{"boxes": 1}]', r"it has only boxes"),
    ],
)  # fmt: skip
def test_other_files_are_refused(files: tuple[Path, Path], text: str, said: str, capsys: CaptureFixture[str]) -> None:
    annotations, path = files
    path.write_text(text)
    assert main(["eval", "--detections", str(path), "--annotations", str(annotations)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("runtime eval: error:") and "results.json" in error and "Traceback" not in error
    with pytest.raises(DatasetError, match=said):
        read_coco_results(path, read_coco(annotations, annotations.parent, check_files=False))


def test_nothing_found_is_a_score_of_zero(files: tuple[Path, Path], capsys: CaptureFixture[str]) -> None:
    annotations, path = files
    path.write_text("[]")
    assert main(["eval", "--detections", str(path), "--annotations", str(annotations)]) == 0
    out, error = capsys.readouterr()
    assert "     0.0" in out and "warning" in error and "results.json: it is an empty list" in error
    path.write_text(json.dumps(results(content())[:1]))
    assert main(["eval", "--detections", str(path), "--annotations", str(annotations)]) == 0
    assert "warning" not in capsys.readouterr().err, "most pictures without a detection are no fault"


def test_wrong_usage_and_no_objects(files: tuple[Path, Path], coco_files: Files, capsys: CaptureFixture[str]) -> None:
    annotations, path = files
    for wrong in ([], ["--annotations", str(annotations), "best.onnx"]):
        with pytest.raises(SystemExit) as stop:
            main(["eval", "--detections", str(path), *wrong])
        assert stop.value.code == 2 and "--detections needs --annotations, and no model" in capsys.readouterr().err
    empty, _ = coco_files(content() | {"annotations": []}, pictures=False)
    assert main(["eval", "--detections", str(path), "--annotations", str(empty)]) == 1
    assert "none of its 12 images has an object to find" in capsys.readouterr().err


def test_neither_torch_nor_an_engine_is_loaded(files: tuple[Path, Path]) -> None:
    annotations, path = files
    code = (
        "import sys\n"
        "for name in ('torch', 'onnxruntime', 'onnx', 'tensorrt'): sys.modules[name] = None\n"
        "from runtime.__main__ import main\n"
        f"sys.exit(main(['eval', '--detections', {str(path)!r}, '--annotations', {str(annotations)!r}]))"
    )
    done = python("-c", code)
    assert done.returncode == 0 and "mAP" in done.stdout, done.stderr
