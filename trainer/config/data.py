"""The configuration of data: which pictures, in which order, and where decoded ones are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isodet.strict import ConfigError, build, require
from runtime.tiles import Tiles


@dataclass(frozen=True)
class SplitConfig:
    """A data set (docs/data.md).

    annotations: COCO JSON, a JSON list, a folder of Pascal VOC .xml, YOLO's data.yaml or folder of labels.
    images: Folder that file names are relative to; null: the folder that the format uses.
    pictures: Text file that lists the pictures of this split, one path below the folder of pictures in a line; null:
        all. `trainer new --val-share` writes two of them, for a data set that has no split.
    format: auto looks at the content. Only a folder that holds both .xml and labels in .txt needs another value.
    split: Which split of a YOLO data.yaml; null: the one with the name of this section (train or val).
    voc_origin: What coordinates of Pascal VOC files count from: 1 as the development kit's, 0 as most tools write.
        auto: 0 where a coordinate below 1 or a fraction in the set proves it.
    val_share: For one data set that is under both `train` and `val` and has no split: the share of its pictures in val.
        The others are in train; a hash of the name decides. 0: all pictures. `pictures` is the better way: it keeps
        pictures that look the same on one side, and later ones change nothing.
    repeat: How many times an epoch sees these pictures; for training only.
    """

    annotations: str
    images: str | None = None
    pictures: str | None = None
    format: Literal["auto", "coco", "voc", "yolo", "list"] = "auto"
    split: Literal["train", "val", "test"] | None = None
    voc_origin: Literal["auto", 0, 1] = "auto"
    val_share: float = 0.0
    repeat: int = 1

    def __post_init__(self) -> None:
        require(0 <= self.val_share < 1, "val_share", "0, or a share below 1", self.val_share)
        require(not self.val_share or self.pictures is None, "val_share", "0 beside a list of pictures", self.val_share)
        require(self.repeat >= 1, "repeat", "1 or more", self.repeat)


@dataclass(frozen=True)
class TilesConfig:
    """Training and validation on tiles of the pictures (docs/training.md); the detector then cuts frames so, too.

    size: Side of a tile, or its height and width, in pixels of the picture; null: the network's input.
    overlap: Share of a tile that it has in common with the next one.
    whole: Whole pictures are looked at, too, for objects that are larger than a tile.
    whole_share: Share of the views of a large picture in training that are the whole picture, which then comes several
        times; at least once. Else the network would learn too little of what is larger than a tile.
    empty: Share of the tiles without an object that is trained on. They are the same in each epoch.
    visible: An object of which a tile shows less than this share of its area is ignored in it.
    """

    size: int | tuple[int, int] | None = None
    overlap: float = 0.2
    whole: bool = True
    whole_share: float = 0.25
    empty: float = 0.25
    visible: float = 0.3

    def __post_init__(self) -> None:
        _ = self.rule  # raises for tiles that make no sense
        require(0 <= self.whole_share <= 0.9, "whole_share", "a share from 0 to 0.9", self.whole_share)
        require(0 <= self.empty <= 1, "empty", "a share from 0 to 1", self.empty)
        require(0 <= self.visible <= 1, "visible", "a share from 0 to 1", self.visible)

    @property
    def rule(self) -> Tiles:
        """How pictures are cut, in training as at detection."""
        return build(Tiles, {"size": self.size, "overlap": self.overlap, "whole": self.whole})


@dataclass(frozen=True)
class DataConfig:
    """Which pictures are trained and validated on, in which order, and where decoded ones are kept.

    train: One data set, or a list of data sets that are trained on together.
    val: The data set that validates.
    tiles: Cut large pictures into tiles, for small objects; null: never.
    workers: Processes that load pictures. auto: none on a CPU, where they would compete for its cores; else up to 8.
    empty_images: Training pictures without an object to train on. keep: they teach background. drop: they are left out.
    sampling: class_balanced: pictures with rare classes come several times an epoch (`trainer.data.sampling`).
    repeat_threshold: class_balanced: classes in a smaller share of the pictures than this are repeated (0.1 for small
        data).
    reduce_to: Training pictures with a longer side are reduced to this many pixels after decoding, cached or not; 0:
        never.
    cache: Keep decoded training pictures. What does not fit into `cache_gib` is decoded each time, as without a cache.
    cache_gib: Most GiB of memory or disk that the cache takes.
    cache_dir: disk: the folder; null: isodet/ in $XDG_CACHE_HOME or ~/.cache.
    """

    train: SplitConfig | tuple[SplitConfig, ...]
    val: SplitConfig
    tiles: TilesConfig | None = None
    workers: int | Literal["auto"] = "auto"
    empty_images: Literal["keep", "drop"] = "keep"
    sampling: Literal["uniform", "class_balanced"] = "uniform"
    repeat_threshold: float = 0.001
    reduce_to: int = 0
    cache: Literal["none", "ram", "disk"] = "none"
    cache_gib: float = 4.0
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        require(self.workers == "auto" or self.workers >= 0, "workers", "auto, or 0 and more", self.workers)
        require(bool(self.train_splits), "train", "at least one split", self.train)
        require(self.val.repeat == 1, "val.repeat", "1: repeating validation images changes no score", self.val.repeat)
        for split in self.train_splits:
            same = split.annotations == self.val.annotations and split.split == self.val.split
            parted = not same or split.val_share == self.val.val_share
            require(
                parted, "val_share", f"{self.val.val_share} in train as in val, or both see it all", split.val_share
            )
            listed = not same or (split.pictures is None) == (self.val.pictures is None)
            require(listed, "train.pictures", "a list in train as in val, or none in both", split.pictures)
        require(0 < self.repeat_threshold <= 1, "repeat_threshold", "above 0, at most 1", self.repeat_threshold)
        require(self.reduce_to == 0 or self.reduce_to >= 32, "reduce_to", "0, or 32 pixels and more", self.reduce_to)
        if self.tiles is not None and self.reduce_to:
            raise ConfigError("reduce_to: tiles are cut from pictures of full size; set it to 0, or leave out tiles")
        require(self.cache_gib > 0, "cache_gib", "a positive number", self.cache_gib)

    @property
    def train_splits(self) -> tuple[SplitConfig, ...]:
        return (self.train,) if isinstance(self.train, SplitConfig) else self.train
