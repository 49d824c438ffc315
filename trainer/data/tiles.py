"""Training views that are tiles: the parts of a picture that a `Detector` with the same `Tiles` looks at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from runtime.datasets.annotations import CocoDataset, ImageRecord
from runtime.datasets.orientation import oriented
from runtime.images.image import ImageError
from runtime.images.image_header import image_size
from runtime.tiles import Window
from trainer.config.data import TilesConfig
from trainer.config.train import TrainConfig


@dataclass(frozen=True)
class TileRecord(ImageRecord):
    """A tile of a picture, with its id and path; height, width and boxes are the tile's.

    A box is cut at the borders of the tile, and is ignored there where less than `TilesConfig.visible` of it is left.
    """

    picture: ImageRecord
    """The whole picture, upright."""
    window: Window


def in_tiles(dataset: CocoDataset, config: TrainConfig) -> CocoDataset:
    """`dataset` with the tiles of its pictures as its records, where `config.data.tiles` says so; else `dataset`.

    The windows are those of `runtime.tiles.Tiles.grid`: a picture that fits into a tile stays as it is, and others come
    as tiles, row by row. Only a share `empty` of those without an object comes, always the same ones for a seed. Where
    `whole` says so the whole picture follows, as often as `whole_share` asks for.
    """
    tiles = config.data.tiles
    if tiles is None:
        return dataset
    records = tuple(part for record in dataset.records for part in _parts(record, tiles, config))
    return replace(dataset, records=records)


def _parts(record: ImageRecord, tiles: TilesConfig, config: TrainConfig) -> Iterator[ImageRecord]:
    try:
        record = oriented(record, image_size(record.path))
    except ImageError:  # of a picture that cannot be used; the reader, or `trainer check-data`, says so
        yield record
        return
    frame_hw = (record.height, record.width)
    windows = tiles.rule.grid(frame_hw, config.tile_hw).windows
    if len(windows) == 1:
        yield record
        return
    rng = np.random.default_rng([config.seed, record.id & 0xFFFFFFFF])
    views = [cut(record, window, tiles.visible) for window in windows]
    whole = views.pop() if tiles.whole else None
    drawn = rng.random(len(views)) < tiles.empty
    kept = [tile for tile, taken in zip(views, drawn, strict=True) if taken or len(tile.labels)]
    yield from kept
    if whole is not None:
        yield from [whole] * max(1, round(len(kept) * tiles.whole_share / (1 - tiles.whole_share)))


def cut(record: ImageRecord, window: Window, visible: float) -> TileRecord:
    """The part of `record` in `window`; objects with less than a share `visible` of their area in it are ignored."""
    boxes = record.boxes_xyxy.astype(np.float64)
    corner = np.array([window.x1, window.y1] * 2)
    limits = np.array([window.x2, window.y2] * 2)
    inside = np.clip(boxes, corner, limits)
    areas, left = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, inside))
    kept = left > 0
    share = left[kept] / areas[kept]
    return TileRecord(
        record.id,
        record.path,
        window.y2 - window.y1,
        window.x2 - window.x1,
        (inside - corner)[kept].astype(np.float32),
        record.labels[kept],
        record.crowd[kept] | (share < visible),
        (record.area[kept] * share).astype(np.float32),
        record,
        window,
    )


def views_line(pictures: CocoDataset, views: CocoDataset, config: TrainConfig) -> str:
    """A sentence for the log on the tiles of `pictures`; '' where they are not cut."""
    tiles = config.data.tiles
    if tiles is None:
        return ""
    tiled = [record for record in views.records if isinstance(record, TileRecord)]
    of_picture = Counter(id(record.picture) for record in tiled)
    most = max(of_picture.values(), default=1)
    size = "x".join(map(str, config.tile_hw))
    return (
        f"tiles of {size} (height x width): {len(pictures)} pictures are {len(views)} views, at most {most} of one; "
        f"{len(views) - len(tiled)} pictures fit into one tile"
    )
