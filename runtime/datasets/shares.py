"""A share of a data set for validation, where it has no split: always the same pictures, and copies stay together.

Pictures are ordered by a hash of their name, and the first ones are for validation. So the choice depends on the names
alone, not on the order of files, a machine or a seed. Copies go to the same side: pictures with equal bytes, and those
that Roboflow made of one picture (NAME.rf.HASH.jpg).

`trainer new --val-share` keeps more together and writes lists (`trainer.new.split`). This is for configurations and
cards that say `val_share`, whose pictures must stay the same ones.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runtime.datasets.annotations import CocoDataset, DatasetError, Problems

_COPY = re.compile(r"\.rf\.[0-9A-Za-z]{16,}$")


def part_of(dataset: CocoDataset, split: str, share: float) -> CocoDataset:
    """The records of `dataset` that are for the split `val`, about `share` of them, or the others for `train`.

    Raises `DatasetError` for another split, a share that is not between 0 and 1, or a data set of fewer than two
    pictures.
    """
    if not 0 < share < 1:
        raise DatasetError.at(dataset.annotations, f"expected a share between 0 and 1, got {share}", key="val_share")
    if split not in ("train", "val"):
        raise DatasetError.at(dataset.annotations, f"a share is for train and val, not for {split}", key="val_share")
    chosen = for_validation([record.path for record in dataset.records], share)
    kept = tuple(r for r, is_val in zip(dataset.records, chosen, strict=True) if is_val == (split == "val"))
    if not kept or len(kept) == len(dataset):
        raise DatasetError.at(
            dataset.annotations,
            f"its {len(dataset)} pictures cannot be parted: one, or all alike; name other pictures as data.val",
            key="val_share",
        )
    note = f"{len(kept)} of {len(dataset)} pictures, by a hash of their names (val_share {share:g})"
    notes = (*dataset.problems.notes, note)
    return replace(dataset, records=kept, problems=Problems(dataset.problems.items, notes))


def hash_of_name(name: str) -> bytes:
    """What orders pictures, so that the order depends on their names alone."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()


def name_of_copies(path: Path) -> str | None:
    """The name that all of Roboflow's copies of one picture have (NAME of NAME.rf.HASH.jpg); None for other files."""
    name = _COPY.sub("", path.stem)
    return None if name == path.stem else name


def for_validation(paths: Sequence[Path], share: float) -> list[bool]:
    """Whether each picture is for validation: the groups of copies with the lowest hashes, until they hold `share` of
    all pictures; at least one group, and never all of them."""
    groups = _groups(paths)
    ordered = sorted(groups, key=lambda name: (hash_of_name(name), name))
    chosen = [False] * len(paths)
    wanted, count = max(1, round(share * len(paths))), 0
    for name in ordered[:-1]:
        if count and abs(count + len(groups[name]) - wanted) > abs(count - wanted):
            break
        for place in groups[name]:
            chosen[place] = True
        count += len(groups[name])
        if count >= wanted:
            break
    return chosen


def _groups(paths: Sequence[Path]) -> dict[str, list[int]]:
    """Places of pictures that are copies of each other, by the first of their names."""
    same_bytes = _copies(paths)
    group_of: dict[str, str] = {}

    def first(key: str) -> str:
        while group_of.get(key, key) != key:
            key = group_of[key]
        return key

    names = [_COPY.sub("", path.stem) for path in paths]
    for place, name in enumerate(names):
        keys = sorted({first(name), first(same_bytes.get(place, name))})
        group_of |= dict.fromkeys(keys, keys[0])
    groups = defaultdict(list)
    for place, name in enumerate(names):
        groups[first(name)].append(place)
    return groups


def _copies(paths: Sequence[Path]) -> dict[int, str]:
    """Places of pictures with equal bytes, and for each the first of the names of its copies."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for place, path in enumerate(paths):
        if os.path.isfile(path):
            by_size[path.stat().st_size].append(place)
    names: dict[int, str] = {}
    for places in by_size.values():
        if len(places) < 2:
            continue
        by_hash: dict[bytes, list[int]] = defaultdict(list)
        for place in places:
            try:
                by_hash[hashlib.sha256(paths[place].read_bytes()).digest()].append(place)
            except OSError:
                continue  # its reader reports it; it is a copy of no other
        for alike in by_hash.values():
            name = min(_COPY.sub("", paths[place].stem) for place in alike)
            names |= dict.fromkeys(alike, name)
    return names
