from hypothesis import given
from hypothesis import strategies as st

from isodet.selection import evenly_spread


def test_nothing_of_nothing():
    assert evenly_spread([], 3) == [] and evenly_spread("abc", 0) == []


@given(st.integers(1, 300), st.integers(1, 320))
def test_first_last_and_even(length, count):
    chosen = evenly_spread(range(length), count)
    assert len(chosen) == min(count, length) and chosen[0] == 0
    assert chosen[-1] == length - 1 or len(chosen) == 1
    gaps = {b - a for a, b in zip(chosen, chosen[1:], strict=False)}
    assert all(gap > 0 for gap in gaps) and (not gaps or max(gaps) - min(gaps) <= 1)
