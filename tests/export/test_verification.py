"""What is proven, what is not, and what is refused before any time is spent on it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import export
import export.graph.form
from export.__main__ import main
from export.verification.report import check_folder, write_reports
from export.verification.scores import Verification
from export.verification.targets import targets
from export.verification.verify import VerifyError, _score
from models.checkpoint import read_checkpoint, save_checkpoint
from runtime import CardError, Detector, Tiles, read_card, read_dataset, read_image, write_image
from runtime.backends.protocol import Backend, BackendError, RawOutputs
from runtime.card.card import METADATA_KEY
from tests.at_fault import raises
from tests.export.damaged import change_weight, edited, foreign_graph, set_first
from tests.processes import python


@pytest.fixture(scope="module")
def verified(shapes_run: Path) -> Verification:
    return export.verify([shapes_run / "best.onnx"])


@pytest.fixture
def copies(shapes_run: Path, tmp_path: Path) -> Path:
    """A folder with best.pt and best.onnx that a test may damage."""
    for name in ("best.pt", "best.onnx"):
        shutil.copy(shapes_run / name, tmp_path)
    return tmp_path


def test_a_gpu_is_asked_of_the_driver(shapes_run, monkeypatch):
    card = read_card(shapes_run / "best.onnx")
    monkeypatch.setattr("export.verification.targets.cuda_device_count", lambda: 0)
    cpu, gpu = targets(card)
    assert (cpu.device, cpu.missing) == ("cpu", "") and "the CUDA driver finds no devices here" in gpu.missing
    assert [target.device for target in targets(card, "cpu")] == ["cpu"]
    monkeypatch.setattr("export.verification.targets.cuda_device_count", lambda: 1)
    assert [target.missing for target in targets(card)] == ["", ""]
    assert [(p.device, bool(p.missing)) for p in targets(card, "cuda:1")] == [("cuda:1", True)]
    with raises(BackendError, key="device"):
        targets(card, "gpu")


def test_what_cannot_run_here_is_built_and_not_scored_everywhere(copies, verified, monkeypatch):
    """In table, JSON and HTML beside the row that was scored; alone, it is never passed."""
    monkeypatch.setattr("export.verification.targets.cuda_device_count", lambda: 0)
    (row,) = verified.not_scored
    assert verified.passed and row.device == "cuda:0"
    assert f"built, not scored: {row.why}" in verified.table()
    data, page = write_reports(verified, copies)
    assert json.loads(data.read_text())["not_scored"][0]["status"] == "built, not scored"
    assert f"built, not scored: {row.why}" in page.read_text()

    path = row.path
    summary = verified.summary(path)
    assert summary["scored"] and [b["scored"] for b in summary["backends"]] == [True, False]
    alone = replace(verified, artifacts=())
    assert alone.verdict == "not scored" and not alone.passed and alone.unproven == (path,)
    assert alone.metrics(path) == {} and alone.to_json()["passed"] is False
    summary = alone.summary(path)
    assert summary["scored"] is False and summary["status"] == "built, not scored" and row.why in summary["why"]
    lost = replace(verified, artifacts=(replace(verified.artifacts[0], passed=False),))
    assert lost.verdict == "failed" and not lost.summary(path)["passed"]


def test_the_card_of_an_export_says_where_it_was_scored(shapes_run):
    proof = read_card(shapes_run / "best.onnx").verification
    assert proof["passed"] and proof["backends"][0]["device"] == "cpu"
    assert all(row["scored"] or row["status"] == "built, not scored" for row in proof["backends"])


def test_the_report_is_one_file_with_the_table_first_and_pictures_after(verified, tmp_path):
    _, page = write_reports(verified, tmp_path, "proof")
    text = page.read_text()
    assert text.index("<table>") < text.index("<img ") and 'src="data:image/jpeg;base64,' in text
    assert "http" not in text.replace("http-equiv", "")
    (picture,) = tmp_path.glob("proof.*.jpg")
    assert picture.name == "proof.best.onnx-cpu.jpg"
    assert "convolution FLOPs FP32 100.0 %" in text


def test_a_graph_that_was_edited_is_not_the_one_that_was_exported(copies):
    """It may score what it likes: one bit is enough."""

    def nudged(values: np.ndarray) -> np.ndarray:
        return set_first(np.nextafter(values.flat[0], np.float32(1)))(values)

    edited(copies / "best.onnx", lambda model: change_weight(model, "conv1.weight", nudged))
    result = export.verify([copies / "best.onnx"], device="cpu")
    assert not result.passed and abs(result.artifacts[0].delta_map) < 0.1
    assert "was edited or damaged after the export" in result.table()


def test_foreign_and_broken_files_are_refused_by_name(copies):
    whole, path = (copies / "best.onnx").read_bytes(), copies / "broken.onnx"
    noise = np.random.default_rng(0).bytes(5000)
    for content in (b"", noise, b"\x08" + noise, whole[:100], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises((CardError, BackendError), match=r"broken\.onnx"):
            export.verify([path], copies / "best.pt")
    card = next(p.value for p in onnx.load(copies / "best.onnx").metadata_props if p.key == METADATA_KEY)
    foreign = foreign_graph()
    onnx.save(foreign, path)
    with pytest.raises(CardError, match=r"broken\.onnx: an ONNX file without an isodet card"):
        export.verify([path], copies / "best.pt")
    onnx.helper.set_model_props(foreign, {METADATA_KEY: card})  # of another project, with a card that is not its own
    onnx.save(foreign, path)
    with pytest.raises(CardError, match=r"broken\.onnx: expected one input"):
        export.verify([path], copies / "best.pt")


def test_a_checkpoint_of_other_classes_is_no_reference(copies):
    content = read_checkpoint(copies / "best.pt")
    other = [f"other {name}" for name in content["card"]["classes"]]
    card = {**content["card"], "classes": other, "model": {**content["card"]["model"], "classes": other}}
    card["thresholds"] = {}
    save_checkpoint(copies / "other.pt", content["model"], card)
    with pytest.raises(VerifyError, match=r"its classes \(.*\) are not those of .*other\.pt \(other "):
        export.verify([copies / "best.onnx"], copies / "other.pt")


def coco_of(shapes_run: Path, images: int) -> tuple[dict[str, list[dict[str, object]]], Path]:
    data = shapes_run.parent.parent / "data"
    content = json.loads((data / "val.json").read_text())
    content["images"] = content["images"][:images]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    return content, data / "val"


def test_annotations_without_boxes_prove_nothing(shapes_run, tmp_path):
    content, folder = coco_of(shapes_run, 4)
    (tmp_path / "empty.json").write_text(json.dumps({**content, "annotations": []}))
    with raises(VerifyError, path=tmp_path / "empty.json"):
        export.verify([shapes_run / "best.onnx"], annotations=tmp_path / "empty.json", images=folder)


def test_the_limit_on_detections_is_that_of_both_and_is_said(shapes_run, tmp_path, capsys):
    content, folder = coco_of(shapes_run, 4)
    (tmp_path / "few.json").write_text(json.dumps(content))
    command = ["verify", str(shapes_run / "best.onnx"), "--annotations", str(tmp_path / "few.json"), "--images"]
    command += [str(folder), "--report", str(tmp_path), "--quiet", "--device", "cpu"]
    scores = {}
    for limit in ("1", "1,100"):
        assert main([*command, "--max-dets", limit]) == 0
        written = json.loads((tmp_path / "verify.json").read_text())
        scores[limit] = [score["max_dets"] for score in (written["reference"], *written["artifacts"])]
    assert "mAP reads the 1 best detections of a class in an image" in capsys.readouterr().out
    assert all(few["1"] == many["1"] < many["100"] for few, many in zip(*scores.values(), strict=True)), scores


def test_tiles_are_those_of_all_and_are_said(shapes_run, tmp_path, capsys):
    """Four validation pictures in one, which is too large for the model in one look."""
    content, folder = coco_of(shapes_run, 4)
    pictures = [read_image(folder / image["file_name"]) for image in content["images"]]
    height, width = pictures[0].shape[:2]
    whole = np.concatenate([np.concatenate(pictures[:2], axis=1), np.concatenate(pictures[2:], axis=1)])
    write_image(tmp_path / "whole.png", whole)
    numbers = {image["id"]: number for number, image in enumerate(content["images"])}
    for box in content["annotations"]:
        number, (x, y, *sides) = numbers[box["image_id"]], box["bbox"]
        box |= {"image_id": 1, "bbox": [x + width * (number % 2), y + height * (number // 2), *sides]}
    content["images"] = [{"id": 1, "file_name": "whole.png", "height": 2 * height, "width": 2 * width}]
    (tmp_path / "whole.json").write_text(json.dumps(content))
    command = ["verify", str(shapes_run / "best.onnx"), "--annotations", str(tmp_path / "whole.json"), "--images"]
    command += [str(tmp_path), "--report", str(tmp_path), "--quiet", "--device", "cpu", "--tolerance", "0.5"]
    maps = []
    for options in ([], ["--tiles", "auto", "--tile-overlap", "0.3"]):
        assert main([*command, *options]) == 0
        written = json.loads((tmp_path / "verify.json").read_text())
        maps.append([score["map"] for score in (written["reference"], *written["artifacts"])])
    assert "that of pictures in tiles of the model's input size, overlap 0.3, and the whole" in capsys.readouterr().out
    assert maps[1][0] == pytest.approx(maps[1][1], abs=0.5) and maps[1][0] > maps[0][0], maps
    eager, onnx_ = (Detector(shapes_run / name, "cpu", tiles=Tiles())(whole)[0] for name in ("best.pt", "best.onnx"))
    assert len(eager) == len(onnx_) > 0
    np.testing.assert_allclose(eager.boxes_xyxy, onnx_.boxes_xyxy, atol=0.05)
    with pytest.raises(SystemExit) as exit_:
        main(["verify", "--tile-overlap", "0.3"])
    assert exit_.value.code == 2


def test_pictures_that_are_missing_are_said_to_be(shapes_run, tmp_path):
    content, folder = coco_of(shapes_run, 6)
    for image in content["images"][:4]:
        shutil.copy(folder / str(image["file_name"]), tmp_path)
    (tmp_path / str(content["images"][0]["file_name"])).write_bytes(b"no picture")
    (tmp_path / "val.json").write_text(json.dumps(content))
    annotations = tmp_path / "val.json"
    result = export.verify([shapes_run / "best.onnx"], annotations=annotations, images=tmp_path, device="cpu")
    assert "2 of the 6 pictures in " in result.table() and "2 images whose file is missing" in result.table()
    assert "the scores are of 3 of 4 pictures: 1 could not be read, the first: " in result.table()
    assert len(result.to_json()["notes"]) == 2


def test_nms_that_does_not_settle_is_counted(shapes_run):
    """A graph with a certificate says of each image whether its NMS is exact; the others say nothing."""
    card = read_card(shapes_run / "best.onnx")

    class Unsettled(Backend):
        name, device, max_batch, fixed_batch = "fake", "cpu", 4, None

        def __init__(self, certificate: bool) -> None:
            self.card = replace(card, nms={**card.nms, "kind": "portable", "certificate": certificate})

        def __call__(self, images: np.ndarray) -> RawOutputs:
            none = np.zeros((len(images), 1), np.int32)
            exact = np.arange(len(images))[:, None] % 2 == 0 if self.card.nms["certificate"] else None
            boxes = np.zeros((len(images), 1, 4), np.float32)
            return RawOutputs(none, boxes, boxes[..., 0], boxes[..., 0].astype(np.int32), exact)

    data = shapes_run.parent.parent / "data"
    dataset = read_dataset(data / "val.json", data / "val", card.classes)
    score = _score(shapes_run / "best.onnx", Detector(Unsettled(True)), dataset, None)
    assert score.inexact == sum(min(4, len(dataset) - start) // 2 for start in range(0, len(dataset), 4))
    assert _score(shapes_run / "best.onnx", Detector(Unsettled(False)), dataset, None).inexact is None


def test_a_report_that_cannot_be_written_is_known_before_the_work(copies, capsys, monkeypatch):
    (copies / "file").write_text("in the way")
    monkeypatch.setattr("export.verification.verify.verify", lambda *_: pytest.fail("the work was begun"))
    for folder in (copies / "file", copies / "file" / "below"):
        assert main(["verify", str(copies / "best.onnx"), "--report", str(folder), "--quiet"]) == 1
        error = capsys.readouterr().err
        assert f"{folder}: no report can be written here" in error and "--report" in error

    def full(*_: object, **__: object) -> object:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("export.verification.report.tempfile.TemporaryFile", full)
    with raises(VerifyError, path=copies):
        check_folder(copies)


def test_a_disk_that_fills_up_leaves_the_old_report(verified, tmp_path, monkeypatch):
    data, page = write_reports(verified, tmp_path)
    before = (data.read_bytes(), page.read_bytes())

    def full(path: Path, *_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_reports(verified, tmp_path)
    monkeypatch.undo()
    assert (data.read_bytes(), page.read_bytes()) == before
    assert not list(tmp_path.glob("*.partial*"))


def test_a_refused_export_names_its_layer_and_keeps_the_report_and_the_old_file(copies, monkeypatch, capsys):
    """One weight of the backbone is three times as large in the file, and not in what it is compared with."""
    old = (copies / "best.onnx").read_bytes()
    real = export.graph.form.simplified

    def wrong(model: onnx.ModelProto) -> onnx.ModelProto:
        model = real(model)
        if not wrong_once:
            change_weight(model, "layer2", lambda values: values * 3)
            wrong_once.append(True)
        return model

    wrong_once: list[bool] = []
    monkeypatch.setattr("export.graph.form.simplified", wrong)
    monkeypatch.setattr("export.onnx_export._run_check", lambda *_: None)
    assert main(["onnx", str(copies / "best.pt"), "--simplify", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert "nothing was written" in printed.err and "loses" in printed.err
    assert "the first layer that departs is Conv" in printed.out and "backbone.layer2" in printed.out
    assert (copies / "best.onnx").read_bytes() == old
    names = {path.name for path in copies.iterdir()}
    assert {"best.refused.html", "best.refused.json"} <= names and not any("partial" in name for name in names)
    report = json.loads((copies / "best.refused.json").read_text())
    assert report["verdict"] == "failed" and "layer2" in report["bisections"][0]["first"]["module"]
    assert "Where it departs" in (copies / "best.refused.html").read_text()


def test_killed_during_verification_leaves_nothing_under_the_final_name(copies):
    (copies / "best.onnx").unlink()
    program = """
        import os, signal, sys
        import export
        def progress(what, done, total):
            if what == "best.onnx":
                os.kill(os.getpid(), signal.SIGKILL)
        export.to_onnx(sys.argv[1], progress=progress)
    """
    ended = python("-c", textwrap.dedent(program), copies / "best.pt")
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert not (copies / "best.onnx").exists()
    assert [path.name for path in copies.iterdir() if not path.name.startswith(".")] == ["best.pt"]
