"""The order of images: a pure function of seed and epoch; repeat factors as in the LVIS paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import RandomSampler

from runtime.datasets.annotations import ImageRecord, Row, make_record
from trainer.data.sampling import EpochSampler, epoch_length, epoch_order, repeat_factors


def record(i: int, *labels: int, crowd: bool = False) -> ImageRecord:
    return make_record(i, Path(f"{i}.jpg"), 9, 9, [Row((0, 0, 1, 1), label, crowd, 1) for label in labels])


def test_repeat_factors_by_the_formula():
    images = [record(0, 0, 0), record(1, 0, 1), record(2, 0), record(3), record(4, 2, crowd=True)]
    # f(0) = 3/5, f(1) = 1/5; with t = 0.8: sqrt(4/3) and 2; a crowd of class 2 is nothing to learn
    expected = [np.sqrt(0.8 / 0.6), 2.0, np.sqrt(0.8 / 0.6), 1.0, 1.0]
    assert repeat_factors(images, 3, 0.8) == pytest.approx(expected)
    assert repeat_factors(images, 3, 0.001).tolist() == [1] * 5
    assert repeat_factors([], 3, 0.5).tolist() == []


def test_uniform_order_is_what_the_first_release_drew():
    sampler = EpochSampler(50, seed=3)
    for epoch in (0, 7):
        generator = torch.Generator().manual_seed(3 * 100_003 + epoch)
        sampler.set_epoch(epoch)
        assert list(sampler) == list(RandomSampler(range(50), generator=generator))
    assert epoch_order(3, 7, 50) == list(sampler) and len(sampler) == 50


@given(st.lists(st.floats(1, 9), min_size=1, max_size=30), st.integers(-5, 5), st.integers(0, 100))
def test_every_epoch_has_the_same_length_and_rounds_each_factor(factors, seed, epoch):
    r = np.array(factors)
    order = epoch_order(seed, epoch, len(r), r)
    assert len(order) == epoch_length(len(r), r) == len(EpochSampler(len(r), seed, r))
    raised = r * len(order) / r.sum()
    counts = np.bincount(order, minlength=len(r))
    assert (counts >= np.floor(raised - 1e-6)).all() and (counts <= np.ceil(raised + 1e-6)).all()
    assert order == epoch_order(seed, epoch, len(r), r)


def test_on_average_an_image_comes_as_often_as_its_factor_says():
    r = np.array([1.0, 1.3, 2.5, 1.2])
    counts = sum(np.bincount(epoch_order(0, e, 4, r), minlength=4) for e in range(2000)) / 2000
    assert counts == pytest.approx(r, abs=0.04)
    assert epoch_order(0, 0, 4, r) != epoch_order(0, 1, 4, r)
