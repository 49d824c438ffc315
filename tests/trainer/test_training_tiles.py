"""Training on tiles: the views are what a detector with the same tiles sees, and everything later is cut alike."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as Pillow

from export.int8.calibration import Pictures
from export.onnx_export import to_onnx
from export.options import Gate
from export.verification.verify import verify
from isodet.strict import ConfigError, UnknownKeyError
from models.loss import REGION
from runtime import Detector, Tiles
from runtime.artifact import read_card
from runtime.backends.protocol import Backend, RawOutputs
from runtime.card.card import Card, CardError
from runtime.datasets.annotations import ImageRecord
from runtime.evaluation.evaluate import evaluate
from runtime.images.image import FixedSize, read_image, write_image
from runtime.tiles import Window
from tests.at_fault import raises
from tests.runtime.conftest import make_card
from tests.trainer.tiny import tiny_config
from trainer.__main__ import main
from trainer.check.data import check_data
from trainer.config.train import TrainConfig
from trainer.data.datasets import train_data, val_data
from trainer.data.tiles import TileRecord, cut, in_tiles, views_line
from trainer.data.train_set import TrainSet, resize_rule
from trainer.loop import fit
from trainer.lr_find import find_lr

PICTURES = (8, 6)
SIZES = [(64, 64), (100, 150), (64, 200), (130, 70), (40, 30), (200, 64)]
"""Height and width of the pictures below: some fit into a tile of 64, one is smaller."""


def large(data: Path, folder: Path) -> Path:
    """The data set in `folder` with its pictures put into larger ones, at random places, boxes moved along."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        content = json.loads((data / f"{split}.json").read_text())
        for i, entry in enumerate(content["images"]):
            height, width = (max(side, 64) for side in SIZES[i % len(SIZES)])
            image = rng.integers(60, 100, (height, width, 3), dtype=np.uint8)
            y, x = int(rng.integers(height - 63)), int(rng.integers(width - 63))
            image[y : y + 64, x : x + 64] = read_image(data / split / entry["file_name"])
            write_image(folder / split / entry["file_name"], image)
            entry |= {"height": height, "width": width}
            for annotation in content["annotations"]:
                if annotation["image_id"] == entry["id"]:
                    annotation["bbox"][0] += x
                    annotation["bbox"][1] += y
        (folder / f"{split}.json").write_text(json.dumps(content))
    (folder / "shapes.yaml").write_text((data / "shapes.yaml").read_text())
    return folder


@pytest.fixture(scope="module")
def wide(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large(data, tmp_path_factory.mktemp("wide") / "data")


def config(data: Path, *overrides: str) -> TrainConfig:
    return tiny_config(data, "data.tiles.overlap=0.25", *overrides)


@pytest.fixture(scope="module")
def run(wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(
        config(wide, "schedule.epochs=40", "val_interval=40", "optim.lr=0.003"),
        tmp_path_factory.mktemp("runs"),
        quiet=True,
    ).run


class Seen(Backend):
    """Keeps the network's inputs, and finds nothing."""

    name, device, max_batch, fixed_batch = "seen", "cpu", 3, None

    def __init__(self, card: Card) -> None:
        self.card, self.images = card, []

    def __call__(self, images: Any) -> RawOutputs:
        self.images += [image.copy() for image in images]
        n = len(images)
        return RawOutputs(np.zeros((n, 1), np.int32), np.zeros((n, 5, 4), np.float32),
                          np.zeros((n, 5), np.float32), np.zeros((n, 5), np.int32))  # fmt: skip


# ---------------------------------------------------------------------------------------------
# views


@pytest.mark.parametrize("keys", [[], ["data.tiles.size=80"], ["data.tiles.size=[64,100]", "data.tiles.whole=false"]])
def test_training_and_detection_see_the_same_pixels(wide, keys):
    settings = config(wide, "data.tiles.empty=1", "data.tiles.whole_share=0", *keys)
    dataset = train_data(settings)
    views = TrainSet(in_tiles(dataset, settings), resize_rule(settings.model), None)
    card = make_card(input_size_hw=settings.model.input_size_hw, tiles=vars(settings.data.tiles.rule))
    backend = Seen(card)
    Detector(backend)([record.path for record in dataset.records])
    trained = [views[i].image for i in range(len(views))]
    assert len(trained) == len(backend.images) > len(dataset)
    assert all(np.array_equal(one, other) for one, other in zip(trained, backend.images, strict=True))


def cut_by_loops(record: ImageRecord, window: Window, visible: float) -> list[tuple[list[float], int, bool]]:
    rows = []
    for box, label, crowd in zip(
        record.boxes_xyxy.tolist(), record.labels.tolist(), record.crowd.tolist(), strict=True
    ):
        x1, y1, x2, y2 = max(box[0], window.x1), max(box[1], window.y1), min(box[2], window.x2), min(box[3], window.y2)
        if x2 <= x1 or y2 <= y1:
            continue
        share = (x2 - x1) * (y2 - y1) / ((box[2] - box[0]) * (box[3] - box[1]))
        place = [x1 - window.x1, y1 - window.y1, x2 - window.x1, y2 - window.y1]
        rows.append((place, label, crowd or share < visible))
    return rows


@pytest.mark.parametrize("objects", [0, 1, 40])
@pytest.mark.parametrize("visible", [0.0, 0.3, 1.0])
def test_objects_of_a_tile_are_those_of_plain_loops(objects, visible):
    rng = np.random.default_rng(objects)
    corners = rng.integers(0, 90, (objects, 2))
    boxes = np.hstack([corners, corners + rng.integers(1, 60, (objects, 2))]).astype(np.float32)
    record = ImageRecord(
        7,
        Path("a.png"),
        150,
        150,
        boxes,
        rng.integers(0, 3, objects),
        rng.random(objects) < 0.2,
        np.prod(boxes, axis=1),
    )
    for window in (Window(0, 0, 64, 64), Window(30, 50, 94, 114), Window(140, 140, 150, 150)):
        tile = cut(record, window, visible)
        rows = list(zip(tile.boxes_xyxy.tolist(), tile.labels.tolist(), tile.crowd.tolist(), strict=True))
        assert rows == cut_by_loops(record, window, visible)
        assert (tile.id, tile.path) == (7, record.path)
        assert (tile.height, tile.width) == (window.y2 - window.y1, window.x2 - window.x1)


def test_what_a_tile_shows_little_of_is_an_ignore_region_in_it(wide):
    settings = config(wide, "data.tiles.visible=0.9")
    views = TrainSet(in_tiles(train_data(settings), settings), resize_rule(settings.model), None)
    labels = np.concatenate([views[i].labels for i in range(len(views))])
    assert (labels == REGION).any() and (labels >= 0).any()


def test_a_share_of_the_empty_tiles_comes_and_every_other_view(wide):
    counts = []
    for empty in (0, 0.5, 1):
        records = in_tiles(train_data(config(wide)), config(wide, f"data.tiles.empty={empty}")).records
        counts.append(sum(not len(record.labels) for record in records))
        again = in_tiles(train_data(config(wide)), config(wide, f"data.tiles.empty={empty}")).records
        windows = [[getattr(r, "window", None) for r in part] for part in (records, again)]
        assert windows[0] == windows[1]
        objects = defaultdict(int)
        for record in records:
            objects[record.path] += len(record.labels)
        assert all(objects[record.path] >= len(record.labels) for record in train_data(config(wide)).records)
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_whole_pictures_come_as_often_as_asked(wide, share):
    settings = config(wide, f"data.tiles.whole_share={share}")
    views = [record for record in in_tiles(train_data(settings), settings).records if isinstance(record, TileRecord)]
    whole = defaultdict(list)
    for view in views:
        whole[view.path].append((view.height, view.width) == (view.picture.height, view.picture.width))
    for flags in whole.values():
        tiles = flags.count(False)
        assert flags.count(True) == max(1, round(tiles * share / (1 - share))) and flags[-1]
    without = config(wide, "data.tiles.whole=false")
    assert not any(
        r.window[2:] == (r.picture.width, r.picture.height) and r.window[:2] == (0, 0)
        for r in in_tiles(train_data(without), without).records
        if isinstance(r, TileRecord)
    )


def test_a_picture_that_fits_is_one_view(wide):
    settings = config(wide, "data.tiles.size=200")
    dataset = train_data(settings)
    assert in_tiles(dataset, settings).records == dataset.records
    assert in_tiles(dataset, tiny_config(wide)) is dataset


def test_tiles_of_a_turned_picture_are_those_of_the_upright_one(wide, tmp_path):
    """Annotated as stored: 100 high and 150 wide. EXIF orientation 6 makes it 150 high and 100 wide."""
    settings = config(wide, "data.tiles.empty=1", "data.tiles.visible=0", "data.tiles.whole_share=0")
    record = train_data(settings).records[1]
    assert (record.height, record.width) == (100, 150)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Pillow.fromarray(read_image(record.path)[..., ::-1]).save(path, exif=exif, quality=100, subsampling=0)
    turned = replace(train_data(settings), records=(replace(record, path=path),))
    tiles = in_tiles(turned, settings)
    views = TrainSet(tiles, resize_rule(settings.model), None)
    upright = cv2.rotate(read_image(record.path), cv2.ROTATE_90_CLOCKWISE)
    assert [tile.window for tile in tiles.records] == list(Tiles(overlap=0.25).grid((150, 100), (64, 64)).windows)
    for i, tile in enumerate(tiles.records):
        x1, y1, x2, y2 = tile.window
        expected = FixedSize((64, 64)).fit((y2 - y1, x2 - x1)).apply(upright[y1:y2, x1:x2])
        assert np.abs(views[i].image.astype(int) - expected).mean() < 3  # JPEG
    whole = tiles.records[-1]
    assert len(whole.labels) == len(record.labels) and whole.picture.height == 150


def test_a_picture_that_cannot_be_read_is_left_out_once(wide, tmp_path, caplog):
    settings = config(wide)
    records = train_data(settings).records
    broken = tmp_path / "broken.png"
    broken.write_bytes(records[1].path.read_bytes()[:60])
    dataset = replace(train_data(settings), records=(replace(records[1], path=broken), *records[2:4]))
    views = TrainSet(in_tiles(dataset, settings), resize_rule(settings.model), None)
    items = [views[i] for i in range(len(views))]
    assert items[0] is None and all(item is not None for item in items[1:])
    assert views.unusable == [broken] and str(broken) in caplog.text


# ---------------------------------------------------------------------------------------------
# trainings and what comes after


def test_a_training_on_tiles_is_validated_exported_and_verified_on_tiles(wide, run):
    card = read_card(run / "best.pt")
    assert card.tiling() == Tiles(overlap=0.25)
    pictures, views = train_data(config(wide)), in_tiles(train_data(config(wide)), config(wide))
    assert f"8 pictures are {len(views)} views" in views_line(pictures, views, config(wide))
    assert views_line(pictures, pictures, tiny_config(wide)) == ""
    detector, val = Detector(run / "best.pt", threshold=0.0), val_data(config(wide))
    assert detector.tiles == card.tiling()
    assert evaluate(detector, val).map == pytest.approx(card.metrics["map"], abs=5e-4)
    onnx = to_onnx(run / "best.pt", run / "best.onnx", gate=Gate(verify=False)).path
    assert read_card(onnx).tiling() == card.tiling()
    told = verify([onnx])
    assert told.passed and told.artifacts[0].evaluation.map == pytest.approx(card.metrics["map"], abs=0.1)
    assert "tiles of the model's input size, overlap 0.25" in " ".join(told.notes)
    assert "tiles" not in " ".join(verify([onnx], tiles=None).notes)


def test_commands_cut_as_the_training_did(wide, run, tmp_path, capsys):
    scores = {}
    for name, options in (
        ("card", []),
        ("same", ["--tiles", "auto", "--tile-overlap", "0.25"]),
        ("off", ["--tiles", "off"]),
    ):
        out = tmp_path / f"{name}.json"
        assert main(["eval", str(run / "best.pt"), "--json", str(out), "--quiet", *options]) == 0
        scores[name] = json.loads(out.read_text())["map"]
        said = "in tiles of the model's input size, overlap 0.25, and the whole picture"
        assert (said in capsys.readouterr().out) == (name != "off")
    off = evaluate(Detector(run / "best.pt", threshold=0.0, tiles=None), val_data(config(wide))).map
    assert scores["card"] == scores["same"] and scores["off"] == pytest.approx(off, abs=5e-4) != scores["card"]
    assert main(["eval", str(run / "best.pt"), "--quiet", "--tta", "flip", "--tiles", "96"]) == 0


def test_calibration_looks_at_tiles(wide, run):
    card, paths = read_card(run / "best.pt"), sorted((wide / "train").iterdir())
    grids = [Tiles(overlap=0.25).grid(read_image(path).shape[:2], (64, 64)).windows for path in paths]
    everything = Pictures.spread(paths, card, 10_000, "here")
    assert list(zip(everything.paths, everything.tiles, strict=True)) == [
        (path, window) for path, grid in zip(paths, grids, strict=True) for window in grid
    ]
    (batch,) = Pictures.spread(paths, card, 7, "here").batches((64, 64))
    assert batch.shape == (7, 64, 64, 3)
    (first, *_), (x1, y1, x2, y2) = everything.batches((64, 64)), everything.tiles[0]
    assert np.array_equal(first[0].numpy(), read_image(paths[0])[y1:y2, x1:x2])
    whole = Pictures.spread(paths, replace(card, tiles={}), 3, "here")
    assert len(whole.paths) == 3 and not whole.tiles


def test_a_validation_loss_a_range_test_and_check_data_look_at_tiles(wide, tmp_path):
    settings = config(wide, "val_loss=true", "schedule.epochs=1")
    result = fit(settings, tmp_path, quiet=True)
    assert "val_loss" in (result.run / "metrics.csv").read_text()
    assert len(find_lr(settings, steps=10).rates) >= 5
    tiled, plain = (
        check_data(one, tmp_path / name, augment="on").train.input_wh
        for name, one in (("tiles", settings), ("whole", tiny_config(wide)))
    )
    sides = np.concatenate([r.boxes_xyxy[:, 2:] - r.boxes_xyxy[:, :2] for r in train_data(settings).records])
    assert np.allclose(tiled, np.minimum(sides, 64), atol=1e-4) and plain.mean() < tiled.mean()


# ---------------------------------------------------------------------------------------------
# faults


@pytest.mark.parametrize(
    ("key", "override"),
    [
        ("data.tiles.size", "data.tiles.size=31"), ("data.tiles.size", "data.tiles.size=[64]"),
        ("data.tiles.size", "data.tiles.size=auto"), ("data.tiles.overlap", "data.tiles.overlap=1"),
        ("data.tiles.overlap", "data.tiles.overlap=-0.1"), ("data.tiles.empty", "data.tiles.empty=1.1"),
        ("data.tiles.visible", "data.tiles.visible=-1"), ("data.tiles.whole_share", "data.tiles.whole_share=1"),
        ("data.reduce_to", "data.reduce_to=320"),
        ("data.tiles.size", "data.tiles={size: 32}"), ("data.tiles.sise", "data.tiles={sise: 64}"),
    ],
)  # fmt: skip
def test_impossible_tiles_are_refused_by_key(wide, key, override):
    kind = UnknownKeyError if "sise" in key else ConfigError
    with raises(kind, key=key, path=wide / "shapes.yaml"):
        config(wide, "model.neck.levels=[3,6]", override)


@pytest.mark.parametrize(("key", "tiles"), [("tiles.overlap", {"overlap": 2}), ("tiles.sise", {"sise": 64})])
def test_a_card_with_impossible_tiles_is_refused_by_key(key, tiles):
    card = make_card().to_json()
    assert "tiles" not in card  # so that an older runtime reads it
    with raises(CardError, key=key, path="a.onnx"):
        Card.from_json(card | {"tiles": tiles}, "a.onnx", check_hashes=False)
    with pytest.raises(ValueError, match="card"):
        Detector(Seen(make_card()), tiles="all")


def test_tile_records_survive_pickling(wide):
    """Loader processes get copies of them."""
    import pickle

    views = in_tiles(train_data(config(wide)), config(wide))
    copy = pickle.loads(pickle.dumps(views.records))
    assert [r.window for r in copy if isinstance(r, TileRecord)] == [
        r.window for r in views.records if isinstance(r, TileRecord)
    ]
