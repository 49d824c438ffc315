"""The configuration of data: which pictures, in which order, and where decoded ones are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isodet.strict import require


@dataclass(frozen=True)
class SplitConfig:
    annotations: str
    """COCO JSON, a JSON list, a folder of Pascal VOC .xml, YOLO's data.yaml or folder of labels (docs/data.md)."""
    images: str | None = None
    """Folder that file names are relative to; null: where the format has it."""
    format: Literal["auto", "coco", "voc", "yolo", "list"] = "auto"
    """auto: told by content; only a folder that holds both .xml and labels in .txt needs to be told."""
    split: Literal["train", "val", "test"] | None = None
    """Which split of a YOLO data.yaml; null: the one of the same name as this key (train or val)."""
    voc_origin: Literal["auto", 0, 1] = "auto"
    """What coordinates of Pascal VOC files count from: 1 as the development kit's, 0 as most tools write. auto: 0 where
    a coordinate below 1 or a fraction in the set proves it."""
    val_share: float = 0.0
    """For one data set under both keys that has no split: the share of its pictures that validates. val has these,
    train the others; they are chosen by a hash of their names. 0: all pictures."""
    repeat: int = 1
    """How many times an epoch sees these images; for training only."""

    def __post_init__(self) -> None:
        require(0 <= self.val_share < 1, "val_share", "0, or a share below 1", self.val_share)
        require(self.repeat >= 1, "repeat", "1 or more", self.repeat)


@dataclass(frozen=True)
class DataConfig:
    train: SplitConfig | tuple[SplitConfig, ...]
    """One split, or a list of splits that are trained on together."""
    val: SplitConfig
    workers: int | Literal["auto"] = "auto"
    """Loader processes. auto: none on a CPU (they would fight over its cores), else up to 8."""
    empty_images: Literal["keep", "drop"] = "keep"
    """Training images without an object to train on: backgrounds to learn from, or left out."""
    sampling: Literal["uniform", "class_balanced"] = "uniform"
    """class_balanced: images with rare classes come several times an epoch (`trainer.data.sampling`)."""
    repeat_threshold: float = 0.001
    """class_balanced: classes in a smaller share of the images than this are repeated (0.1 for small data)."""
    reduce_to: int = 0
    """Longest side in pixels to which larger training pictures are reduced after decoding, cached or not; 0: never."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keep decoded training pictures; what does not fit into `cache_gib` is decoded each time, as without a cache."""
    cache_gib: float = 4.0
    """Most GiB of memory or disk that the cache takes."""
    cache_dir: str | None = None
    """disk: where; null: isodet/ in $XDG_CACHE_HOME or ~/.cache."""

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
        require(0 < self.repeat_threshold <= 1, "repeat_threshold", "above 0, at most 1", self.repeat_threshold)
        require(self.reduce_to == 0 or self.reduce_to >= 32, "reduce_to", "0, or 32 pixels and more", self.reduce_to)
        require(self.cache_gib > 0, "cache_gib", "a positive number", self.cache_gib)

    @property
    def train_splits(self) -> tuple[SplitConfig, ...]:
        return (self.train,) if isinstance(self.train, SplitConfig) else self.train
