"""Near-duplicates: copies are found, different pictures of one kind of scene are not, and no pair is missed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.trainer.scenes import copies, scene
from trainer.check import near
from trainer.check.near import NEAR_BITS, groups_of, hash_distance, near_across, near_groups, near_pairs, picture_hash


def looks(count: int) -> list[int]:
    return [hash_ for seed in range(count) if (hash_ := picture_hash(scene(seed))) is not None]


def test_copies_are_near_and_other_pictures_of_the_scene_are_not() -> None:
    hashes = looks(60)
    for seed in range(30):
        for name, copy in copies(scene(seed)).items():
            copied = picture_hash(copy)
            assert copied is not None and hash_distance(hashes[seed], copied) <= NEAR_BITS, (seed, name)
    distances = [hash_distance(a, b) for place, a in enumerate(hashes) for b in hashes[:place]]
    assert min(distances) > NEAR_BITS and np.median(distances) > 24


def test_a_flat_picture_is_like_no_other() -> None:
    assert picture_hash(np.full((64, 96, 3), 90, np.uint8)) is None
    assert near_groups([None, None, 5, None]) == []


def _changed(hashes: list[int], rng: np.random.Generator, most: int) -> list[int]:
    changed = []
    for value in hashes:
        for bit in rng.choice(64, int(rng.integers(0, most + 1)), replace=False):
            value ^= 1 << int(bit)
        changed.append(value)
    return changed


def test_the_search_finds_exactly_the_pairs_that_a_comparison_of_all_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_CHUNK", 64)
    rng = np.random.default_rng(1)
    first = [int(value) for value in rng.integers(0, 1 << 64, 300, dtype=np.uint64)]
    hashes = list(dict.fromkeys([*first, *_changed(first, rng, 9)]))
    wanted = {(i, j) for j in range(len(hashes)) for i in range(j) if hash_distance(hashes[i], hashes[j]) <= NEAR_BITS}
    steps: list[tuple[int, int]] = []
    pairs = near_pairs(np.array(hashes, np.uint64), lambda done, total: steps.append((done, total)))
    found = {
        (min(a, b), max(a, b)) for left, right in pairs for a, b in zip(left.tolist(), right.tolist(), strict=True)
    }
    assert found == wanted and 100 < len(wanted) < 300
    assert steps == [(step, 68) for step in range(1, 69)]


def test_groups_and_pairs_across() -> None:
    base = looks(6)
    far = base[0] ^ 0b11111  # 5 bits
    farther = far ^ (0b11111 << 20)  # 10 bits from the first, 5 from the second: one group through it
    assert near_groups([base[0], base[1], far, base[2], base[1], farther]) == [[0, 2, 5], [1, 4]]
    assert near_across([base[3], base[0]], [base[1], far, base[0], base[3]]) == {1: 1, 2: 1, 3: 0}
    assert near_across([], base) == {} and near_groups([]) == []
    assert groups_of(4, [(np.array([3, 1]), np.array([1, 0]))]) == [[0, 1, 3], [2]]


def test_pictures_of_one_fixed_camera_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_BUCKET", 16)  # of the 2,000 with the same bands, each is compared with 16
    rng = np.random.default_rng(2)
    hashes = [0x0123456789ABCDEF ^ (int(bits) << 8) for bits in rng.permutation(1 << 11)]
    groups = near_groups(hashes)
    assert len(groups) == 1 and len(groups[0]) == len(hashes)
