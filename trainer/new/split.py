"""Dividing a data set without a split: pictures that belong together stay on one side.

Together belong

- files with the same bytes, and Roboflow's copies of one picture (NAME.rf.HASH.jpg);
- near-duplicates (`trainer.check.near`);
- neighbors in a sequence, such as a video or a burst. Two pictures are neighbors if they lie in one folder, have the
  same size, have names that differ in the last number only, have no picture between them in the order of that number,
  and look alike: their hashes differ in `NEIGHBOR_BITS` bits or fewer.

A running number alone proves nothing: cameras and download scripts number unrelated pictures, too.

The groups with the lowest hashes of their names validate. So the choice is the same on every machine.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from isodet.strict import ConfigError
from runtime.datasets.annotations import CocoDataset
from runtime.datasets.shares import hash_of_name, name_of_copies
from trainer.check.decoded import Decoded, Progress, decode_pictures
from trainer.check.near import groups_of, hash_distance, near_groups

# Measured on 921 neighbors by number in three sets of photographs that have running numbers and are no videos (blood
# cells, raccoons, cards): 7 are as alike as this. By eye, 6 of them show one scene twice; the last, two cards that lie
# alike on one carpet.
NEIGHBOR_BITS = 12
"""Most bits of 64 in which the perceptual hashes of neighbors differ."""

_ADVICE = "give validation data of its own (--val), or more pictures"


def divide(
    dataset: CocoDataset, share: float, progress: Progress | None = None, comparing: Progress | None = None
) -> tuple[list[Path], list[Path]]:
    """The pictures of `dataset` to train on, and those to validate on: about `share` of them, and at least one.

    Every picture is decoded: `progress` is called with (pictures done, pictures in all), `comparing` with the steps of
    the search for near-duplicates. Raises `ConfigError` of `val_share` for a share that is not between 0 and 1, one
    picture, or pictures that all belong together.
    """
    if not 0 < share < 1:
        raise ConfigError.of("val_share", f"expected a share between 0 and 1, such as 0.2, got {share:g}")
    paths = list(dict.fromkeys(record.path for record in dataset.records))
    if len(paths) < 2:
        raise ConfigError.of("val_share", f"{dataset.annotations} has one picture, which cannot be divided; {_ADVICE}")
    groups = picture_groups(list(decode_pictures(paths, progress)), comparing)
    if len(groups) < 2:
        raise ConfigError.of(
            "val_share",
            f"the {len(paths)} pictures of {dataset.annotations} are one group of near-duplicates, or one sequence: "
            f"any part of them would be a copy of the rest; {_ADVICE}",
        )
    places = for_validation([[paths[place] for place in group] for group in groups], share)
    val = {paths[place] for chosen in places for place in groups[chosen]}
    return [path for path in paths if path not in val], [path for path in paths if path in val]


def picture_groups(pictures: Sequence[Decoded], comparing: Progress | None = None) -> list[list[int]]:
    """The places of `pictures` in groups that belong together; each place is in one of them."""
    pairs = [*_with_same_key(pictures)]
    for group in near_groups([picture.look for picture in pictures], comparing):
        pairs += zip(group, group[1:], strict=False)
    pairs += _neighbors(pictures)
    first, second = (np.array(side, np.int64) for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    return groups_of(len(pictures), [(first, second)])


def for_validation(groups: Sequence[Sequence[Path]], share: float) -> list[int]:
    """The places of the groups that validate: in the order of the hashes of their names, each that brings the number of
    pictures nearer to `share` of all; at least one group, and never all of them."""
    total = sum(map(len, groups))
    wanted = min(max(1, round(share * total)), total - 1)
    ordered = sorted(range(len(groups)), key=lambda place: _order(groups[place]))
    chosen, count = [], 0
    for place in ordered:
        size = len(groups[place])
        if count + size < total and abs(count + size - wanted) < abs(count - wanted):
            chosen.append(place)
            count += size
    return chosen or [min(ordered, key=lambda place: len(groups[place]))]


def _order(group: Sequence[Path]) -> tuple[bytes, str]:
    """The hash of the first name in a group; the path decides between groups of the same name."""
    name, path = min((name_of_copies(path) or path.stem, path.as_posix()) for path in group)
    return hash_of_name(name), path


def _with_same_key(pictures: Sequence[Decoded]) -> Iterator[tuple[int, int]]:
    """Pairs of pictures with the same bytes, or with one name before Roboflow's hash."""
    first: dict[tuple[str, str], int] = {}
    for place, picture in enumerate(pictures):
        for kind, key in (("bytes", picture.digest), ("name", name_of_copies(picture.path))):
            if key:
                yield first.setdefault((kind, key), place), place


def _neighbors(pictures: Sequence[Decoded]) -> Iterator[tuple[int, int]]:
    """Pairs of pictures that are neighbors in a sequence, by the rule of this module."""
    numbered: dict[tuple[Path, str, str], list[tuple[int, int]]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        match = re.fullmatch(r"(.*?)([0-9]+)([^0-9]*)", name_of_copies(picture.path) or picture.path.stem)
        if match is not None:
            numbered[picture.path.parent, match[1], match[3]].append((int(match[2]), place))
    for entries in numbered.values():
        entries.sort()
        for (_, place), (_, following) in zip(entries, entries[1:], strict=False):
            one, other = pictures[place], pictures[following]
            if one.look is None or other.look is None or one.size_hw != other.size_hw:
                continue
            if hash_distance(one.look, other.look) <= NEIGHBOR_BITS:
                yield place, following
