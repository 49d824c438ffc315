"""Shapes are asserted with both in the message; `python -O` leaves that out."""

import numpy as np
import pytest

from isodet.shapes import assert_shape
from tests.processes import python


@pytest.mark.parametrize("expected", [(0, 4), (None, 4), (..., 4), (...,), (..., 0, 4)])
def test_a_shape_that_fits(expected):
    assert_shape("boxes", np.zeros((0, 4)), *expected)
    assert_shape("count", np.zeros(()))  # a scalar has the shape of nothing


@pytest.mark.parametrize(
    "expected, told",
    [((2, 4), r"\[2, 4\]"), ((None, 5), r"\[any, 5\]"), ((..., 3, 4, 4), r"\[..., 3, 4, 4\]"), ((4,), r"\[4\]"),
     ((), r"\[\]"), ((..., 3), r"\[..., 3\]")],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_told_beside_the_expected_one(expected, told):
    with pytest.raises(AssertionError, match=rf"^boxes: expected the shape {told}, got \[3, 4\]$"):
        assert_shape("boxes", np.zeros((3, 4)), *expected)


def test_an_optimized_interpreter_asserts_nothing():
    code = "import numpy as np; from isodet.shapes import assert_shape; assert_shape('boxes', np.zeros(3), 4)"
    plain, optimized = python("-c", code), python("-O", "-c", code)
    assert plain.returncode == 1 and "boxes: expected the shape [4], got [3]" in plain.stderr
    assert optimized.returncode == 0, optimized.stderr
