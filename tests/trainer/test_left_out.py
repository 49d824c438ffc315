"""What is wrong with the data is said in a quiet run, too, and stands in its report."""

import json
from pathlib import Path

import pytest

from runtime.datasets.annotations import CocoDataset, DatasetError, Problem, Problems
from tests.at_fault import raises
from tests.trainer.tiny import TINY, edit, tiny_config
from trainer.__main__ import main
from trainer.log.report import SHOWN, left_out
from trainer.loop import fit

PICTURES = (8, 3)


@pytest.mark.parametrize("quiet", [[], ["--quiet"]], ids=["loud", "quiet"])
def test_faults_of_the_data_are_told_once_and_listed(own, tmp_path, capsys, caplog, quiet):
    """Boxes beyond their pictures, and pictures that are cut off, empty and gone; two epochs meet each twice."""
    for name in ("train", "val"):
        content = json.loads((own / f"{name}.json").read_text())
        content["annotations"][0]["bbox"] = [40, 40, 60, 60]
        edit(own / f"{name}.json", annotations=content["annotations"])
    (train, empty, gone), val = sorted((own / "train").glob("*.jpg"))[:3], sorted((own / "val").glob("*.jpg"))[0]
    for path in (train, val):
        path.write_bytes(path.read_bytes()[:300])
    empty.write_bytes(b"")
    gone.unlink()
    runs = tmp_path / "runs"
    assert main(["fit", str(own / "shapes.yaml"), *TINY, "--runs", str(runs), *quiet]) == 0
    said = capsys.readouterr().err
    for start in ("train: 1 image whose file is missing (skipped), ", "val: "):
        assert said.count(f"warning: {start}1 box partly outside its image (clipped)") == 1
    assert said.count("warning: 2 of 7 training pictures cannot be used") == 1 and empty.name in said
    for path in (train, empty):
        assert sum(path.name in record.getMessage() for record in caplog.records) == 1
    assert said.count("warning: 1 unreadable validation pictures left out") == 1 and str(val) in said
    assert ("epoch 1/2" in said) == (not quiet)
    page = (runs / "shapes" / "report.html").read_text()
    assert "Left out of the data" in page
    for line in ("training annotations: 1 box partly", "validation annotations: 1 box partly",
                 f"unreadable training picture: {train}", f"unreadable training picture: {empty}",
                 "training annotations: 1 image whose file", f"unreadable validation picture: {val}: "):  # fmt: skip
        assert line in page


def test_a_sound_set_has_no_such_list(data, tmp_path, capsys):
    run = fit(tiny_config(data, "schedule.epochs=1"), tmp_path, quiet=True).run
    assert "Left out" not in (run / "report.html").read_text() and "warning:" not in capsys.readouterr().err


def test_of_many_pictures_the_list_has_some_and_the_number():
    items = (Problem("boxes of zero", 1), Problem("boxes of zero", 2))
    sound = CocoDataset(Path("x"), Path("."), ("a",), (1,), (), Problems())
    broken = CocoDataset(Path("x"), Path("."), ("a",), (1,), (), Problems(items))
    lines = left_out(broken, sound, [Path(f"{i}.jpg") for i in range(SHOWN + 7)], [])
    assert lines[0] == "training annotations: 2 boxes of zero" and lines[-1] == "7 more unreadable training pictures"
    assert len(lines) == SHOWN + 2 and left_out(sound, sound, [], []) == []


@pytest.mark.parametrize(
    ("split", "keys", "key"),
    [("train", {"annotations": []}, None), ("val", {"annotations": []}, None),
     ("train", {"annotations": [], "images": []}, "images")],
)  # fmt: skip
def test_data_without_a_picture_or_an_object_are_refused_before_the_training(own, tmp_path, capsys, split, keys, key):
    """As where label files do not lie where they are looked for, which every picture survives."""
    edit(own / f"{split}.json", **keys)
    with raises(DatasetError, key=key, path=own / f"{split}.json"):
        fit(tiny_config(own), tmp_path / "runs", quiet=True)
    assert main(["fit", str(own / "shapes.yaml"), *TINY, "--runs", str(tmp_path / "runs")]) == 1
    error = capsys.readouterr().err
    assert "trainer fit: error:" in error and "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_a_map_that_is_nan_has_its_reason(own, tmp_path, capsys):
    """The only picture with objects cannot be read: the annotations promised something."""
    content = json.loads((own / "val.json").read_text())
    first = content["annotations"][0]["image_id"]
    edit(own / "val.json", annotations=[a for a in content["annotations"] if a["image_id"] == first])
    (file,) = [image["file_name"] for image in content["images"] if image["id"] == first]
    (own / "val" / file).write_bytes(b"broken")
    fit(tiny_config(own), tmp_path / "runs", quiet=True)
    said = capsys.readouterr().err
    assert said.count("warning: mAP is nan: there is no object to find in any of the 2 images that were judged") == 1
