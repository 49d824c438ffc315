"""Pictures with more than 100 objects: what COCO's limit cuts is said, and no threshold is read from what is left."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import runtime.evaluation.coco_eval
from runtime.__main__ import main
from runtime.datasets.annotations import CocoDataset, ImageRecord, Problems
from runtime.detections import Detections
from runtime.evaluation.details import measure
from runtime.evaluation.evaluate import EvaluationError, evaluate_detections
from runtime.evaluation.sizes import bucket_scores, parse_buckets
from tests.at_fault import raises


@pytest.fixture(params=["pycocotools", "faster-coco-eval"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
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
    truth, results = COCO(), []
    annotations = []
    for record in dataset.records:
        for box, label, area in zip(
            record.boxes_xyxy.tolist(), record.labels.tolist(), record.area.tolist(), strict=True
        ):
            annotations.append({
                "id": len(annotations) + 1, "image_id": record.id, "category_id": label + 1, "area": area, "iscrowd": 0,
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            })  # fmt: skip
        results += found[record.id].to_coco(record.id, dataset.category_ids)
    truth.dataset = {
        "images": [{"id": record.id} for record in dataset.records],
        "categories": [{"id": 1}, {"id": 2}], "annotations": annotations,
    }  # fmt: skip
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
def test_limits_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", f"--max-dets={text}"])
    assert re.search("argument --max-dets: expected (rising )?whole numbers", capsys.readouterr().err)
    dataset, found = crowd(5)
    with raises(EvaluationError, key="max_dets"):
        evaluate_detections(found, dataset, max_dets=(500, 100))
