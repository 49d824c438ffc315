"""`runtime eval --detections`: what another program found, scored without a model, without torch, without pictures."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from runtime.__main__ import main
from runtime.datasets.annotations import DatasetError
from runtime.datasets.coco import read_coco
from runtime.evaluation.results_file import read_coco_results
from tests.processes import python

Files = Callable[..., tuple[Path, Path]]


def content() -> dict[str, Any]:
    """Twelve pictures with two objects each; ids with gaps."""
    return {
        "images": [{"id": 10 * i, "file_name": f"{i}.png", "height": 96, "width": 128} for i in range(1, 13)],
        "categories": [{"id": 3, "name": "ant"}, {"id": 7, "name": "bee"}],
        "annotations": [
            {"id": 2 * i + j + 1, "image_id": 10 * i, "category_id": (3, 7)[j], "bbox": [5 + 50 * j, 8, 30, 20 + i],
             "area": 30 * (20 + i), "iscrowd": 0}
            for i in range(1, 13) for j in range(2)
        ],
    }  # fmt: skip


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


def test_the_numbers_are_pycocotools_own(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, path = files
    numbers, report = tmp_path / "n.json", tmp_path / "report"
    command = ["eval", "--detections", str(path), "--annotations", str(annotations), "--json", str(numbers)]
    assert main([*command, "--max-dets", "1,100", "--report", str(report)]) == 0
    assert "12 images" in capsys.readouterr().out
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        judge = COCOeval(truth, truth.loadRes(str(path)), "bbox")
        judge.evaluate(), judge.accumulate(), judge.summarize()
    ours = json.loads(numbers.read_text())
    for name, i in (("map", 0), ("ap50", 1), ("ap75", 2), ("ap_small", 3), ("ar100", 8)):
        assert ours[name] == pytest.approx(100 * judge.stats[i], abs=1e-3)
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
def test_a_file_of_another_kind_is_refused(
    files: tuple[Path, Path], text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, path = files
    path.write_text(text)
    assert main(["eval", "--detections", str(path), "--annotations", str(annotations)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("runtime eval: error:") and "results.json" in error and "Traceback" not in error
    with pytest.raises(DatasetError, match=said):
        read_coco_results(path, read_coco(annotations, annotations.parent, check_files=False))


def test_nothing_found_is_a_score_of_zero(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    annotations, path = files
    path.write_text("[]")
    assert main(["eval", "--detections", str(path), "--annotations", str(annotations)]) == 0
    out, error = capsys.readouterr()
    assert "     0.0" in out and "warning" in error and "results.json: it is an empty list" in error
    path.write_text(json.dumps(results(content())[:1]))
    assert main(["eval", "--detections", str(path), "--annotations", str(annotations)]) == 0
    assert "warning" not in capsys.readouterr().err, "most pictures without a detection are no fault"


def test_wrong_usage_and_data_without_objects(
    files: tuple[Path, Path], coco_files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
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
