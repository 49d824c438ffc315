"""The made data sets: exact boxes, no writer on both sides, the same bytes from the same seed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.datasets.coco import read_coco
from tests.at_fault import raises
from tests.trainer.pixels import extent
from trainer.config_reader import read_config
from trainer.recipes import RecipeError, digits_video, make_digits, make_shapes
from trainer.recipes import digits as digits_recipe
from trainer.recipes.glyphs import TRAIN_SAMPLES, VAL_SAMPLES, load_material, render_glyph
from trainer.recipes.shapes import draw_scene

MAKERS = {"digits": make_digits, "shapes": make_shapes}


@pytest.fixture(scope="module", params=["digits", "shapes"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp(request.param) / "set"
    MAKERS[request.param](out, 24, 8, (160, 192))
    return request.param, out


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_same_bytes_other_seed_other_bytes(made, tmp_path):
    name, out = made
    MAKERS[name](tmp_path / "again", 24, 8, (160, 192))
    MAKERS[name](tmp_path / "other", 24, 8, (160, 192), seed=1)
    first, again, other = _hashes(out), _hashes(tmp_path / "again"), _hashes(tmp_path / "other")
    assert first == again
    pictures = [key for key in first if key.endswith(".jpg")]
    assert len(pictures) == 32 and all(first[key] != other[key] for key in pictures)


def test_coco_reads_without_problems_and_has_objects(made):
    name, out = made
    for split, count in (("train", 24), ("val", 8)):
        dataset = read_coco(out / f"{split}.json", out / split)
        assert len(dataset) == count and len(dataset.problems) == 0
        assert sum(len(record.labels) for record in dataset.records) > count
        for record in dataset.records:
            picture = cv2.imread(str(record.path))
            assert picture.shape == (record.height, record.width, 3) == (160, 192, 3)
    assert dataset.class_names == (tuple("0123456789") if name == "digits" else ("circle", "square", "triangle"))


def test_recipe_is_a_complete_config(made):
    name, out = made
    config = read_config(out / f"{name}.yaml")
    assert config.name == name
    assert config.model.input_size_hw == (160, 192)
    dataset = read_coco(config.data.train.annotations, config.data.train.images, config.model.classes)
    assert dataset.class_names == config.model.classes
    if name == "digits":
        assert config.augment.flip == 0


def test_input_size_is_rounded_up_to_a_multiple_of_32(tmp_path):
    make_shapes(tmp_path / "odd", 1, 1, (100, 130))
    assert read_config(tmp_path / "odd" / "shapes.yaml").model.input_size_hw == (128, 160)


def test_used_folder_and_bad_numbers_are_refused(made, tmp_path):
    name, out = made
    before = _hashes(out)
    with raises(RecipeError, path=out):
        MAKERS[name](out, 1, 1)
    assert _hashes(out) == before
    with raises(RecipeError, key="val"):
        MAKERS[name](tmp_path / "none", 4, 0)
    with raises(RecipeError, key="size_hw"):
        MAKERS[name](tmp_path / "tiny", 4, 4, (32, 320))
    assert not (tmp_path / "none").exists() and not (tmp_path / "tiny").exists()


def test_interruption_leaves_no_json_and_can_be_repeated(tmp_path):
    def interrupt(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path / "set", 8, 2, progress=interrupt)
    assert _hashes(tmp_path / "set") == {}
    (tmp_path / "set" / ".partial").mkdir()  # as a killed run leaves it
    (tmp_path / "set" / ".partial" / "rest.jpg").write_bytes(b"cut")
    make_shapes(tmp_path / "set", 8, 2)
    assert len(_hashes(tmp_path / "set")) == 8 + 2 + 2 + 1


def test_progress_counts_every_image(tmp_path):
    calls: list[tuple[int, int]] = []
    make_shapes(tmp_path / "set", 3, 2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i, 5) for i in range(1, 6)]


def test_writers_of_training_and_validation_are_disjoint():
    assert set(TRAIN_SAMPLES).isdisjoint(VAL_SAMPLES)
    assert VAL_SAMPLES.start - TRAIN_SAMPLES.stop >= 1797 / 13  # a whole writer between them
    assert VAL_SAMPLES.stop == 1797
    train, val = load_material(TRAIN_SAMPLES), load_material(VAL_SAMPLES)
    assert len(train.labels) == 1297 and len(val.labels) == 360
    assert set(train.labels) == set(val.labels) == set(range(10))


def test_digits_are_drawn_from_their_own_writers(monkeypatch, tmp_path):
    """Each split's pictures use its own material: recoloring val glyphs must change val pictures only."""
    make_digits(tmp_path / "a", 4, 4, (96, 96))
    real = digits_recipe.load_material

    def empty_val(samples: range) -> digits_recipe.Material:
        material = real(samples)
        if samples == VAL_SAMPLES:
            return digits_recipe.Material(material.glyphs[::-1], material.labels, material.photographs, "")
        return material

    monkeypatch.setattr(digits_recipe, "load_material", empty_val)
    make_digits(tmp_path / "b", 4, 4, (96, 96))
    a, b = _hashes(tmp_path / "a"), _hashes(tmp_path / "b")
    assert all(a[f"train/{i:06d}.jpg"] == b[f"train/{i:06d}.jpg"] for i in range(4))
    assert any(a[f"val/{i:06d}.jpg"] != b[f"val/{i:06d}.jpg"] for i in range(4))


def test_digits_credit_the_photographers(tmp_path):
    make_digits(tmp_path / "set", 1, 1, (64, 64))
    coco = json.loads((tmp_path / "set" / "train.json").read_text(encoding="utf-8"))
    assert "danielbuechele" in coco["info"]["photographs"] and "creativecommons.org" in coco["info"]["photographs"]
    assert "Alpaydin" in coco["info"]["digits"]
    assert {image["license"] for image in coco["images"]} == {entry["id"] for entry in coco["licenses"]}


@pytest.mark.parametrize("height", [12, 40, 160])
def test_glyph_is_as_tall_as_asked_and_cropped_to_its_ink(height):
    glyphs = load_material(VAL_SAMPLES).glyphs
    for i in range(0, 360, 24):
        mask = render_glyph(glyphs[i], height, np.random.default_rng(i))
        assert abs(mask.shape[0] - height) <= max(2, 0.1 * height)
        ink = mask >= 0.5
        assert ink[0].any() and ink[-1].any() and ink[:, 0].any() and ink[:, -1].any()


def test_boxes_of_shapes_are_the_extent_of_their_pixels():
    for seed in range(20):
        scene = draw_scene((128, 128), np.random.default_rng([seed, 0, 0]))
        for x0, y0, x1, y1 in scene.boxes_xyxy:
            color = scene.image[y0:y1, x0:x1].reshape(-1, 3)
            values, counts = np.unique(color, axis=0, return_counts=True)
            same = (scene.image == values[counts.argmax()]).all(2)[y0:y1, x0:x1]  # the fill is one flat color
            assert same[0].any() and same[-1].any() and same[:, 0].any() and same[:, -1].any()


def test_no_digit_is_covered_past_recognition(monkeypatch):
    """Counts each digit's own pixels after everything is drawn, from the strokes as they are painted."""
    material = load_material(VAL_SAMPLES)
    drawn: list[np.ndarray] = []

    def record(image: np.ndarray, mask: np.ndarray, stroke: np.ndarray, corner: tuple[int, int]) -> None:
        whole = np.zeros((480, 480), np.bool_)  # the picture with 160 px around it
        y, x = corner[0] + 160, corner[1] + 160
        whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask >= 0.5
        drawn.append(whole)

    monkeypatch.setattr(digits_recipe, "paint", record)
    monkeypatch.setattr(digits_recipe, "_cover", lambda *_: None)
    covered = 0
    for seed in range(60):
        drawn.clear()
        scene = digits_recipe.draw_scene(material, (160, 160), np.random.default_rng(seed))
        assert len(drawn) == len(scene.labels)
        for i, (whole, box) in enumerate(zip(drawn, scene.boxes_xyxy, strict=True)):
            visible = whole.copy()
            for later in drawn[i + 1 :]:
                visible &= ~later
            inside = visible[160:320, 160:320]
            assert inside.sum() >= 0.5 * whole.sum()
            covered += int(inside.sum() < 0.95 * whole.sum())
            assert box.tolist() == (np.array(extent(whole)) - 160).clip(0, 160).tolist()
    assert covered > 5  # the claim is about pictures in which digits do cover each other


def test_video_has_the_frames_that_were_asked_for(tmp_path):
    digits_video(tmp_path / "v.mp4", seconds=0.8, fps=10, size_hw=(128, 160))
    video = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    assert len(frames) == 8 and frames[0].shape == (128, 160, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]
    with pytest.raises(RecipeError, match="expected an .mp4 path"):
        digits_video(tmp_path / "v.avi")
