"""The ranges of 8 bits: counted as values come, and chosen as each method says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.quant import METHODS, FakeQuant
from models.quant.fake_quant import rounded
from models.quant.ranges import BINS, Histogram


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50), st.integers(1, 49))
def test_counts_do_not_depend_on_the_order_in_which_the_range_grew(values, cut):
    whole, parts = Histogram(), Histogram()
    values = [max(values), *values]  # the first decides the bins
    whole.add(torch.tensor(values))
    for part in (values[:cut], values[cut:]):
        if part:
            parts.add(torch.tensor(part))
    assert torch.equal(whole.counts, parts.counts) and whole.top == parts.top


def test_a_larger_value_doubles_the_bins_and_loses_nothing():
    histogram = Histogram()
    histogram.add(torch.tensor([1.0, 0.25]))
    histogram.add(torch.tensor([-3.0]))
    assert histogram.top == 4.0 and histogram.range("minmax") == 3.0 and histogram.counts.sum() == 3
    assert histogram.counts.nonzero().flatten().tolist() == [BINS // 16, BINS // 4 - 1, 3 * BINS // 4]


def test_methods_on_a_normal_distribution_with_an_outlier():
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    x[0] = 60.0
    histogram = Histogram()
    histogram.add(x)
    ranges = {method: histogram.range(method) for method in METHODS}
    assert ranges["minmax"] == 60.0
    # A histogram knows a value to the width of its bin.
    assert ranges["percentile"] == pytest.approx(float(x.abs().quantile(0.9999)), abs=60 / BINS)

    def error(limit: float) -> float:
        return float((rounded(x, torch.tensor(limit / 127)) - x).square().sum())

    best = min(np.linspace(3, 60, 200), key=error)  # brute force, on the values themselves
    # An eighth of the bins is the least that is kept: 7.5 of 60.
    # The candidates lie 60 / 128 apart and count errors at the middles of bins: 5 % is for both.
    assert error(ranges["mse"]) <= 1.05 * error(max(best, 7.5))
    assert ranges["entropy"] < 20  # of the bulk, which ends below 5; the outlier at 60 does not set it


@pytest.mark.parametrize("method", METHODS)
def test_nothing_but_zeros_and_a_single_value(method):
    histogram = Histogram()
    histogram.add(torch.zeros(5))
    assert histogram.range(method) == 0.0
    quant = FakeQuant()
    quant.observe()
    quant(torch.zeros(3))
    assert quant.histogram is not None
    quant.observing = False
    quant.set_range(quant.histogram.lowest, quant.histogram.highest, quant.histogram.range(method))
    assert torch.equal(quant(torch.zeros(3)), torch.zeros(3))
    histogram.add(torch.tensor([2.0, float("nan"), float("inf")]))  # what is not finite says nothing of the range
    assert histogram.range(method) == pytest.approx(2.0, rel=1 / BINS)  # to half a bin
