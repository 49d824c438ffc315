"""What `runtime eval` measures beyond COCO's line: buckets, other engines, the table, the report."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pytest import CaptureFixture, MonkeyPatch

import runtime.evaluation.coco_eval
import runtime.evaluation.evaluate
from isodet.errors import ArgumentError
from runtime.__main__ import main
from runtime.datasets.annotations import CocoDataset, ImageRecord, Problems
from runtime.datasets.coco import read_coco
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.evaluation.coco_eval import coco_engine, coco_metrics
from runtime.evaluation.curves import curves, recommended
from runtime.evaluation.details import measure
from runtime.evaluation.evaluate import Evaluation, EvaluationError, evaluate_detections
from runtime.evaluation.matching import match
from runtime.evaluation.plots import write_plots
from runtime.evaluation.report import write_report
from runtime.evaluation.sizes import Bucket, bucket_scores, parse_buckets
from tests.at_fault import raises
from tests.runtime.as_found import coco_json
from tests.runtime.conftest import random_scene

OnnxFile = Callable[..., Path]


def judged(dataset: CocoDataset, found: dict[int, Detections]) -> Evaluation:
    """What `evaluate` makes of detections, without pictures and without a detector."""
    metrics, per_class = coco_metrics(found, dataset)
    matches = match(found, dataset)
    _, thresholds = recommended(curves(matches, dataset.class_names), metrics["threshold"])
    return Evaluation(
        **metrics, per_class=per_class, images=len(found), seconds=1.0, skipped=(), detections=found, matches=matches,
        thresholds=thresholds,
    )  # fmt: skip


def test_faster_coco_eval_gives_the_same_numbers(monkeypatch: MonkeyPatch) -> None:
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed (the extra fast-eval)")
    assert coco_engine()[1].__name__ == "COCOeval_faster"
    buckets = parse_buckets("tiny:0-16,rest:16-inf")
    cases = [random_scene(seed, images=20, crowds=c, tie=t) for seed, c, t in ((0, 0.0, False), (1, 0.3, True))]
    cases += [random_scene(found=False), random_scene(objects=False), random_scene(objects=False, found=False)]
    faster = [(coco_metrics(found, data), bucket_scores(found, data, buckets)) for data, found in cases]
    monkeypatch.setattr(runtime.evaluation.coco_eval, "coco_engine", lambda: (COCO, COCOeval))
    for (data, found), ((metrics, per_class), scores) in zip(cases, faster, strict=True):
        expected, expected_classes = coco_metrics(found, data)
        for name in ("map_at", "per_class_ap50"):
            assert metrics.pop(name) == pytest.approx(expected.pop(name), abs=1e-9, nan_ok=True)
        assert metrics == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert per_class == pytest.approx(expected_classes, abs=1e-9, nan_ok=True)
        for ours, theirs in zip(scores, bucket_scores(found, data, buckets), strict=True):
            assert (ours.ap, ours.ap50, ours.ar100) == pytest.approx(
                (theirs.ap, theirs.ap50, theirs.ar100), abs=1e-9, nan_ok=True
            )


def test_without_an_engine_the_error_says_what_to_install(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(runtime.evaluation.evaluate.EvaluationError, match="pip install pycocotools"):
        coco_engine()


def test_cocos_own_sizes_as_buckets_are_cocos_numbers() -> None:
    dataset, found = random_scene(0, images=30, crowds=0.2)
    records = tuple(replace(r, area=r.area * np.float32(1.3)) for r in dataset.records)  # a file's own areas
    dataset = replace(dataset, records=records)
    metrics, _ = coco_metrics(found, dataset)
    scores = bucket_scores(found, dataset, parse_buckets("s:0-32,m:32-96,l:96-inf,none:4000-5000,all:0-inf"))
    assert [s.ap for s in scores[:3]] == pytest.approx(
        [metrics[k] for k in ("ap_small", "ap_medium", "ap_large")], nan_ok=True
    )
    assert (scores[4].ap, scores[4].ap50, scores[4].ar100) == pytest.approx(
        (metrics["map"], metrics["ap50"], metrics["ar100"])
    )
    assert scores[3].objects == 0 and math.isnan(scores[3].ap)
    objects = [math.sqrt(a) for r in records for a in r.area[~r.crowd]]
    assert [s.objects for s in scores[:2]] == [sum(v <= 32 for v in objects), sum(32 <= v <= 96 for v in objects)]


@pytest.mark.parametrize(
    "text", ["", "tiny", "tiny:5", "tiny:16-0", "tiny:-1-5", ":0-5", "a:0-5,a:5-9", "a:x-y", "a:nan-5", "a:inf-inf"]
)
def test_buckets_that_are_none(text: str) -> None:
    with raises(ArgumentError, key="buckets"):
        parse_buckets(text)
    assert parse_buckets(" tiny:0-16, big:16-inf") == (Bucket("tiny", 0, 16), Bucket("big", 16, math.inf))


def test_the_measurement_agrees_with_itself() -> None:
    dataset, found = random_scene(2, images=25, crowds=0.2)
    evaluation = judged(dataset, found)
    m = measure(evaluation, dataset, "voc07", 0.6, parse_buckets("all:0-inf"))
    assert m.thresholds.keys() == evaluation.thresholds.keys() == {"ant", "bee"}
    assert m.thresholds != evaluation.thresholds  # those are for the best F1
    by_name = {score.name: score for score in m.classes}
    assert by_name["dog"].objects == 0 and math.isnan(by_name["dog"].ap) and not by_name["dog"].measured
    assert by_name["cat"].recall == 0 and math.isnan(by_name["cat"].precision)
    assert by_name["cat"].threshold == evaluation.threshold
    assert m.map == pytest.approx(np.mean([by_name[n].ap for n in ("ant", "bee", "cat")]))
    assert np.mean([by_name[n].ap50 for n in ("ant", "bee", "cat")]) == pytest.approx(evaluation.ap50)
    assert "VOC 2007" in m.table() and "? nothing to measure" in m.table() and "all (0-inf px)" in m.table()
    content = json.loads(json.dumps(m.to_json(), allow_nan=False))
    assert content["map"] == pytest.approx(evaluation.map, abs=1e-3) and content["classes"]["dog"]["ap"] is None
    assert content["buckets"][0]["high"] is None and content["confusion"]["names"][-1] == "background"


@pytest.mark.parametrize("keywords", [{"found": False}, {"objects": False}, {"found": False, "objects": False}])
def test_empty_sets_are_measured_and_drawn(tmp_path: Path, keywords: dict[str, bool]) -> None:
    dataset, found = random_scene(**keywords)
    m = measure(judged(dataset, found), dataset, "voc12", buckets=parse_buckets("all:0-inf"))
    assert math.isnan(m.map) == ("objects" in keywords) and m.thresholds == {}
    assert json.dumps(m.to_json(), allow_nan=False) and m.table().count("\n") > 8
    (tmp_path / "curves.png").write_bytes(b"of an older report")
    names = {path.name for path in write_plots(m, tmp_path)}
    assert names == {path.name for path in tmp_path.glob("*.png")}
    assert ("curves.png" in names) == ("objects" not in keywords)
    assert ("confusion.png" in names) == (len(keywords) == 1)


def test_many_classes_with_odd_names_can_be_drawn(tmp_path: Path) -> None:
    dataset, found = random_scene(1)
    names = ("ant", "a $ b $ c", "_hidden", "汽车", *(f"a rather long class name {i}" for i in range(36)))
    wide = replace(dataset, class_names=names, category_ids=tuple(range(1, 41)))
    seen = {i: Detections(d.boxes_xyxy, d.scores, d.labels, names) for i, d in found.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of letters that matplotlib would draw as empty boxes
        paths = write_plots(measure(judged(wide, seen), wide), tmp_path)
    assert len(paths) == 2
    for path in paths:
        picture = cv2.imread(str(path))
        assert picture is not None and picture.std() > 5


def coco_file(folder: Path) -> dict[str, object]:
    """Six pictures for the pixel detector: blue is the class it says, green its score, red the side of its box."""
    colors = [(0, 200, 20), (1, 220, 20), (2, 90, 20), (0, 240, 24), (1, 60, 16), (1, 0, 0)]
    truth = [(1, 20), (2, 20), (2, 20), (1, 24), (1, 16), (3, 9)]
    (folder / "images").mkdir()
    for i, color in enumerate(colors):
        cv2.imwrite(str(folder / "images" / f"{i + 1}.png"), np.full((32, 48, 3), color, np.uint8))
    rows = [(i + 1, c, [0.0, 0, s, s]) for i, (c, s) in enumerate(truth)]
    return coco_json(dict.fromkeys(range(1, 7), (32, 48)), {1: "ant", 2: "bee", 3: "cat"}, rows)


def test_the_command_measures_and_reports(tmp_path: Path, onnx_file: OnnxFile, capsys: CaptureFixture[str]) -> None:
    (tmp_path / "val.json").write_text(json.dumps(coco_file(tmp_path)))
    data = ["--annotations", str(tmp_path / "val.json"), "--images", str(tmp_path / "images"), "--quiet"]
    report, numbers = tmp_path / "report", tmp_path / "numbers.json"
    command = ["eval", str(onnx_file()), *data, "--report", str(report), "--json", str(numbers)]
    assert main([*command, "--protocol", "voc12", "--precision", "0.95", "--buckets", "small:0-18,rest:18-inf"]) == 0
    out = capsys.readouterr().out
    assert "VOC 2012" in out and "rest (18-inf px)" in out and f"wrote {report / 'report.html'}" in out
    content = json.loads(numbers.read_text())
    assert content == json.loads((report / "metrics.json").read_text()) and content["wanted_precision"] == 0.95
    names = content["confusion"]["names"]
    counts = {(t, r): n for t, row in zip(names, content["confusion"]["counts"], strict=True)
              for r, n in zip(names, row, strict=True) if n}  # fmt: skip
    # ant: right at 0.94 and 0.78, an inner box of half the score each; bee: right at 0.86, then taken for ant at 0.24.
    assert counts["ant", "ant"] == 2 and counts["bee", "bee"] == 1 and counts["cat", "background"] == 1
    assert content["classes"]["ant"]["threshold"] == pytest.approx(200 / 255, abs=1e-3)
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and page.count("data:image/jpeg;base64,") == 1
    assert 'src="http' not in page and "Worst images" in page and "of 6 images have a mistake" in page
    for name in ("curves.png", "confusion.png", "worst.jpg"):
        assert cv2.imread(str(report / name)) is not None
    assert main([*command[:-4], "--report", str(numbers)]) == 1
    assert "is a file, expected a folder" in capsys.readouterr().err
    for wrong in (["--precision", "2"], ["--buckets", "x"], ["--protocol", "voc"], ["--nms", "soft"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, *wrong])
        assert stop.value.code == 2


def test_a_perfect_detector_has_no_worst_images(tmp_path: Path) -> None:
    dataset, _ = random_scene(1)
    names = dataset.class_names
    found = {
        r.id: Detections(r.boxes_xyxy, np.full(len(r.labels), 0.9, np.float32), r.labels.astype(np.int32), names)
        for r in dataset.records
    }
    (tmp_path / "worst.jpg").write_bytes(b"of an older report")
    page = write_report(measure(judged(dataset, found), dataset), tmp_path, "a <model>").read_text()
    assert "Worst images" not in page and not (tmp_path / "worst.jpg").exists() and "a &lt;model&gt;" in page


def test_evaluate_keeps_what_measure_reads(tmp_path: Path, onnx_file: OnnxFile, monkeypatch: MonkeyPatch) -> None:
    """A picture that cannot be read is in neither."""
    (tmp_path / "val.json").write_text(json.dumps(coco_file(tmp_path)))
    (tmp_path / "images" / "1.png").write_bytes(b"broken")
    dataset = read_coco(tmp_path / "val.json", tmp_path / "images")
    m = measure(runtime.evaluation.evaluate.evaluate(Detector(onnx_file()), dataset), dataset)
    assert [x.record.id for x in m.evaluation.matches] == [2, 3, 4, 5, 6]
    assert sum(s.objects for s in m.classes) == 5 and "1 unreadable" in m.table()
    assert m.thresholds == m.evaluation.thresholds


# From here on: pictures with more than 100 objects, of which COCO's limit cuts some
@pytest.fixture(params=["pycocotools", "faster-coco-eval"])
def engine(request: pytest.FixtureRequest, monkeypatch: MonkeyPatch) -> None:
    """Each of the two that may be installed."""
    if request.param == "pycocotools":
        monkeypatch.setattr(runtime.evaluation.coco_eval, "coco_engine", lambda: (COCO, COCOeval))
    elif importlib.util.find_spec("faster_coco_eval") is None:
        pytest.skip("faster-coco-eval is not installed (the extra fast-eval)")


def crowd(objects: int, images: int = 1) -> tuple[CocoDataset, dict[int, Detections]]:
    """Pictures with a grid of `objects` of one class and one of another, all found exactly but every seventh."""
    x, y = np.arange(objects) % 40 * 40, np.arange(objects) // 40 * 40
    boxes = np.stack([x, y, x + 30, y + 30], axis=1).astype(np.float32)
    labels = (np.arange(objects) == 3).astype(np.int64)
    area = np.full(objects, 900, np.float32)
    records = tuple(
        ImageRecord(i, Path(f"{i}.jpg"), 2000, 2000, boxes, labels, np.zeros(objects, bool), area)
        for i in range(1, images + 1)
    )
    moved = boxes + np.where(np.arange(objects)[:, None] % 7 == 6, 25, 0).astype(np.float32)
    scores = np.linspace(0.95, 0.6, objects).astype(np.float32)
    found = Detections(moved, scores, labels.astype(np.int32), ("cell", "rod"))
    dataset = CocoDataset(Path("x"), Path("."), ("cell", "rod"), (1, 2), records, Problems())
    return dataset, {record.id: found for record in records}


def directly(dataset: CocoDataset, found: dict[int, Detections], most: int) -> list[float]:
    """AP, AP50, AP75, APs, APm and AR as pycocotools' `summarize` gives them for at most `most` detections."""
    truth, rows, results = COCO(), [], []
    for record in dataset.records:
        boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in record.boxes_xyxy.tolist()]
        rows += [(record.id, int(label) + 1, box) for label, box in zip(record.labels, boxes, strict=True)]
        results += found[record.id].to_coco(record.id, dataset.category_ids)
    sizes = {record.id: (record.height, record.width) for record in dataset.records}
    truth.dataset = coco_json(sizes, {1: "cell", 2: "rod"}, rows)
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(results), "bbox")
        judge.params.maxDets = [1, 10, most]
        judge.evaluate(), judge.accumulate(), judge.summarize()
        # pycocotools' own first line reads "at most 100" whatever its parameters are.
        precision = judge.eval["precision"][..., 0, -1]
    return [100 * float(v) for v in (precision[precision > -1].mean(), *(judge.stats[i] for i in (1, 2, 3, 4, 8)))]


@pytest.mark.parametrize("most", [100, 250, 500])
def test_every_limit_gives_pycocotools_numbers(engine: None, most: int) -> None:
    dataset, found = crowd(300, images=2)
    result = evaluate_detections(found, dataset, max_dets=(10, most))
    ours = [result.map, result.ap50, result.ap75, result.ap_small, result.ap_medium, result.ar100]
    expected = [value if value >= 0 else math.nan for value in directly(dataset, found, most)]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    assert list(result.map_at) == [10, most] and result.map_at[most] == result.map > result.map_at[10]
    alone = evaluate_detections(found, dataset, max_dets=(most,))
    assert alone.per_class == result.per_class and alone.threshold == result.threshold


@pytest.mark.parametrize("objects", [50, 150, 500])
def test_thresholds_keep_every_right_detection_however_many_there_are(engine: None, objects: int) -> None:
    dataset, found = crowd(objects)
    result = evaluate_detections(found, dataset)
    assert result.threshold == 0.6
    measured = measure(result, dataset, buckets=parse_buckets("all:0-inf"))
    assert {name: round(t, 2) for name, t in measured.thresholds.items()}["cell"] == pytest.approx(0.6, abs=0.011)
    assert measured.classes[0].recall == pytest.approx(6 / 7, abs=0.02)
    assert measured.classes[0].ap50 == pytest.approx(result.per_class_ap50["cell"])
    assert measured.buckets[0].ap == pytest.approx(result.map)


def test_what_the_limit_cut_is_said_in_one_line(engine: None) -> None:
    dataset, found = crowd(150, images=3)
    cut = evaluate_detections(found, dataset)
    assert cut.cap_note() == (
        "mAP reads the 100 best detections of a class in an image: 3 of 3 images have more, 3 of 3 have more objects "
        "of one; --max-dets 100,500 reads more. The threshold is read from all"
    )
    assert cut.cap_note() in measure(cut, dataset).table() and cut.to_json()["max_dets"] == {"100": round(cut.map, 3)}
    whole = evaluate_detections(found, dataset, max_dets=(100, 500))
    assert whole.map > cut.map == whole.map_at[100] and not whole.cap_note()
    assert f"{cut.map:.1f} at 100, {whole.map:.1f} at 500" in whole.footer()
    sparse, few = crowd(90)
    assert not evaluate_detections(few, sparse).cap_note()


def test_buckets_read_as_many(engine: None) -> None:
    dataset, found = crowd(300)
    buckets = parse_buckets("all:0-inf")
    (few,), (many,) = bucket_scores(found, dataset, buckets), bucket_scores(found, dataset, buckets, 500)
    assert many.ap > few.ap + 20


@pytest.mark.parametrize("text", ["", "0", "500,100", "100,100", "1e3", "100,", "-5"])
def test_limits_that_are_none(text: str, capsys: CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", f"--max-dets={text}"])
    assert re.search("argument --max-dets: expected (rising )?whole numbers", capsys.readouterr().err)
    dataset, found = crowd(5)
    with raises(EvaluationError, key="max_dets"):
        evaluate_detections(found, dataset, max_dets=(500, 100))
