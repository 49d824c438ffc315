"""Near-duplicates: pictures that look the same, by a perceptual hash that survives another encoding or size.

The hash is pHash: the signs of the 8x8 lowest frequencies of a small gray picture, against their median. dHash (signs
of differences between neighbors) is simpler, but the bits of a white background are noise in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.images.image import Image

Progress = Callable[[int, int], None]
Places = NDArray[np.int64]
Hashes = NDArray[np.uint64]

# Measured on five sets of 200 to 473 photographs (blood cells, raccoons, apples, leaves, cards), 80 pictures of each.
# Copies: JPEG of quality 40 differs from its picture in at most 4 of 64 bits; half the size in 4; stretched to a square
# in 3; 10 % and 12 levels brighter in 4 for 95 % of the pictures of bccd, raccoon, leaf and cards, 7 for apples, where
# white clips. Different pictures: half of all pairs differ in 31 bits or more. Of the 355,000 pairs of pictures with
# different names, 23 differ in 6 bits or fewer. By eye, 21 of them show the same scene; 2 are different apples on
# white. At 8 bits these are 35 pairs, and different cards on one carpet are among them. An odd limit would do no more:
# half of the bits are set in every hash, so that most distances are even.
NEAR_BITS = 6
"""Most bits of 64 in which the hashes of near-duplicates differ."""

_SIDE = 32
_FLATTEST = 2.0
"""Least standard deviation of a picture's gray levels: what is flatter has only noise to hash."""
_BANDS, _BAND_BITS = 4, 16
_MIXED = np.arange(64).reshape(_BAND_BITS, _BANDS).T.ravel()
"""Order of the bits: each band has low and high frequencies, since alike scenes share the low ones."""
_BUCKET = 1024
_CHUNK = 1 << 20
_ONES = np.array([number.bit_count() for number in range(1 << _BAND_BITS)], np.uint8)


def picture_hash(image: Image) -> int | None:
    """The 64-bit hash of a picture (uint8 [H,W,3]); None for a flat one, which has nothing to compare."""
    small = cv2.cvtColor(cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
    gray = small.astype(np.float32)
    if float(gray.std()) < _FLATTEST:
        return None
    waves = np.asarray(cv2.dct(gray), np.float32)[:8, :8].ravel()
    bits = waves > np.median(waves[1:])
    bits[0] = False  # the mean: how bright the picture is
    return int.from_bytes(np.packbits(bits[_MIXED]).tobytes(), "big")


def hash_distance(first: int, second: int) -> int:
    """In how many of 64 bits two hashes differ."""
    return (first ^ second).bit_count()


def near_groups(hashes: Sequence[int | None], progress: Progress | None = None) -> list[list[int]]:
    """Places of pictures that are near-duplicates of each other, directly or through others; groups of two and more."""
    values, members = _distinct(hashes)
    groups = groups_of(len(values), near_pairs(values, progress))
    places = [[place for value in group for place in members[value]] for group in groups]
    return sorted(sorted(group) for group in places if len(group) > 1)


def near_across(
    train: Sequence[int | None], val: Sequence[int | None], progress: Progress | None = None
) -> dict[int, int]:
    """For each place in `val` that has a near-duplicate in `train`: the place of one of them."""
    values, members = _distinct([*train, *val])
    in_train = np.array([min(places) if min(places) < len(train) else -1 for places in members], np.int64)
    near = in_train.copy()
    for first, second in near_pairs(values, progress):
        for one, other in ((first, second), (second, first)):
            is_new = (near[one] < 0) & (in_train[other] >= 0)
            near[one[is_new]] = in_train[other[is_new]]
    partner = {place: int(near[value]) for value, places in enumerate(members) for place in places if near[value] >= 0}
    return {place - len(train): partner[place] for place in sorted(partner) if place >= len(train)}


def near_pairs(hashes: Hashes, progress: Progress | None = None) -> Iterator[tuple[Places, Places]]:
    """The pairs of these distinct hashes that differ in `NEAR_BITS` bits or fewer: arrays of first and second places.

    Not all pairs are compared. A hash is four bands of 16 bits. Where two hashes differ in fewer than 8 bits, one band
    differs in at most one bit. So each hash is compared with those that have one of its bands, or that band with one
    bit changed: with some 100 of 100,000 hashes that are evenly spread. A pair may come more than once. Where more than
    1024 hashes have the same band, as those of one fixed camera, each is compared with 1024 of them only: such pictures
    form one group through each other. `progress` is called with (steps done, steps in all).
    """
    bands = hashes.astype("<u8").view("<u2").reshape(-1, _BANDS)
    changes = [0, *(1 << bit for bit in range(_BAND_BITS))]
    for band in range(_BANDS):
        order = np.lexsort((hashes, bands[:, band]))
        keys = bands[order, band]
        for step, change in enumerate(changes, start=1):
            wanted = keys ^ np.uint16(change)
            start = np.searchsorted(keys, wanted) if change else np.arange(1, len(keys) + 1)
            stop = np.minimum(np.searchsorted(keys, wanted, side="right"), start + _BUCKET)
            stop = np.where(keys <= wanted, stop, start)  # each pair of buckets once
            for left, right in _ranges(start, stop):
                first, second = order[left], order[right]
                is_near = _distances(hashes[first], hashes[second]) <= NEAR_BITS
                yield first[is_near], second[is_near]
            if progress is not None:
                progress(band * len(changes) + step, _BANDS * len(changes))


def groups_of(count: int, pairs: Iterable[tuple[Any, Any]]) -> list[list[int]]:
    """The places 0 to `count` - 1 in groups that `pairs` (arrays of first and second places) connect; all places."""
    parent = np.arange(count)
    for first, second in pairs:
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]
        first, second = parent[first], parent[second]
        is_new = first != second
        for pair in zip(first[is_new].tolist(), second[is_new].tolist(), strict=True):
            low, high = sorted(_root(parent, place) for place in pair)
            parent[high] = low
    groups: dict[int, list[int]] = defaultdict(list)
    for place in range(count):
        groups[_root(parent, place)].append(place)
    return list(groups.values())


def _root(parent: Places, place: int) -> int:
    while parent[place] != place:
        parent[place] = parent[parent[place]]
        place = int(parent[place])
    return place


def _distinct(hashes: Sequence[int | None]) -> tuple[Hashes, list[list[int]]]:
    """The distinct hashes, and for each the places that have it."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, value in enumerate(hashes):
        if value is not None:
            places[value].append(place)
    return np.array(list(places), np.uint64), list(places.values())


def _ranges(start: Places, stop: Places) -> Iterator[tuple[Places, Places]]:
    """Each row with each place from start[row] to stop[row], about `_CHUNK` of them at a time."""
    counts = np.maximum(stop - start, 0)
    rows = np.flatnonzero(counts)
    ends = np.cumsum(counts[rows])
    cuts = np.searchsorted(ends, np.arange(_CHUNK, ends[-1] if len(ends) else 0, _CHUNK))
    for part in np.split(rows, np.unique(cuts)):
        sizes = counts[part]
        offsets = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield np.repeat(part, sizes), np.repeat(start[part], sizes) + offsets


def _distances(first: Hashes, second: Hashes) -> NDArray[np.int64]:
    return np.asarray(_ONES[(first ^ second).view(np.uint16).reshape(-1, _BANDS)].sum(axis=1), np.int64)
