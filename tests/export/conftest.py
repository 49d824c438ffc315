"""What holds for every test of exported graphs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The same sums in the same order, however many cores there are. Random weights put boxes on the very edges of
    thresholds, where a last bit decides what NMS keeps: `tests.export.edges` tells them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
