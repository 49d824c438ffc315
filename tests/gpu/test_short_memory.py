"""A batch that does not fit the GPU is answered all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from runtime import BackendOptions, Detector
from runtime.backends.protocol import OutOfMemory
from tests.gpu.networks import assert_same, backend, pictures

pytestmark = pytest.mark.gpu
GPU, SIZE = "cuda:0", (320, 320)


def needed(count: int, options: BackendOptions) -> int:
    """Bytes that PyTorch holds at most while a batch of `count` runs for the first time."""
    one, images = backend("atss", GPU, options, SIZE), np.stack(pictures(count, SIZE))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    one(images)
    return torch.cuda.max_memory_reserved()


@pytest.mark.parametrize("options", [BackendOptions(), BackendOptions(cuda_graphs=True)])
def test_a_batch_of_64_becomes_smaller_ones(
    options: BackendOptions, memory_limit: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    frames = pictures(64, SIZE)
    plain = Detector(backend("atss", GPU, size_hw=SIZE), threshold=0.0)
    expected = [plain(frame)[0] for frame in frames]
    del plain
    limit = needed(24, options)  # 16 and 24 fit, 32 perhaps, 64 does not
    assert limit < 0.75 * needed(64, options)
    seen: list[int] = []
    short = backend("atss", GPU, options, SIZE)
    short.max_batch = 64
    short.model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    one = Detector(short, threshold=0.0)
    memory_limit(limit)
    assert_same(one(frames), expected)
    (message,) = caplog.messages
    assert message.startswith("cuda:0 has no memory for a batch of 64: batches of ")
    fits = int(message.split("batches of ")[1].split()[0])
    assert fits in (8, 16, 32) and seen[0] == 64 and seen[-1] == fits
    before = len(seen)
    assert_same(one(frames), expected)
    assert len(caplog.messages) == 1 and all(size <= fits for size in seen[before:])
    assert_same(one(frames[:3]), expected[:3])


@pytest.mark.parametrize("options", [BackendOptions(), BackendOptions(cuda_graphs=True)])
def test_where_not_even_one_fits_it_says_so_and_goes_on_when_there_is_room(
    options: BackendOptions, memory_limit: Callable[[int], None]
) -> None:
    one, images = backend("atss", GPU, options, SIZE), np.stack(pictures(8, SIZE))
    torch.cuda.empty_cache()
    memory_limit(torch.cuda.memory_reserved() + (1 << 20))
    detector: Any = Detector(one, threshold=0.0)
    with pytest.raises(OutOfMemory, match="failed on a batch of 1: CUDA out of memory"):
        detector(list(images))
    torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert one(images).boxes.shape[0] == 8


def test_short_while_it_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the runs before it still fit: the memory of a recording is another one."""
    one, images = backend("atss", GPU, BackendOptions(cuda_graphs=True), SIZE), np.stack(pictures(8, SIZE))
    expected = one(images)
    total = torch.cuda.mem_get_info(0)[1]

    def greedy(module: torch.nn.Module, given: Any) -> None:
        if torch.cuda.is_current_stream_capturing() and len(given[0]) == 16:
            torch.empty(2 * total, dtype=torch.uint8, device=GPU)

    hook = one.model.register_forward_pre_hook(greedy)
    twice = np.concatenate([images, images])
    for _ in range(2):
        with pytest.raises(OutOfMemory, match="failed on a batch of 16: "):
            one(twice)
    np.testing.assert_array_equal(one(images).boxes, expected.boxes)
    hook.remove()
    np.testing.assert_allclose(one(twice).scores[:8], expected.scores, rtol=0, atol=1e-3)
