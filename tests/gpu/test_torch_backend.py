"""PyTorch on a GPU: what the CPU says, from wherever the frames come and whoever asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from runtime import BackendOptions, Detections, Detector, FrameError
from tests.gpu.networks import DETECTORS, SIZE, assert_same, backend, detector, pictures

pytestmark = pytest.mark.gpu
GPU = "cuda:0"
PLAIN = BackendOptions()
GRAPHS = BackendOptions(cuda_graphs=True)


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    """What each gives, all of them started at once; raises what the first one raised that did."""
    given: list[Any] = [None] * len(work)
    failed: list[BaseException] = []
    together = threading.Barrier(len(work))

    def run(index: int) -> None:
        try:
            together.wait(60)
            given[index] = work[index]()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if failed:
        raise failed[0]
    return given


@pytest.mark.parametrize("options", [PLAIN, GRAPHS])
@pytest.mark.parametrize("name", DETECTORS)
def test_the_gpu_says_what_the_cpu_says(name: str, options: BackendOptions) -> None:
    frames = pictures(7)
    expected = detector(name, "cpu")(frames)
    on_gpu = detector(name, GPU, options)
    assert on_gpu.runs_on.endswith("on cuda:0 (as asked)")
    assert_same(on_gpu(frames), expected)
    larger = pictures(5, (300, 500), seed=3)
    assert_same(on_gpu(larger), detector(name, "cpu")(larger))


@pytest.mark.parametrize("options", [PLAIN, GRAPHS])
def test_wherever_the_frames_are(options: BackendOptions) -> None:
    frames = pictures(5)
    one = detector("atss", GPU, options)
    expected = one(frames)
    batch = np.stack(frames)
    locked = one.backend.host_memory(batch.nbytes).reshape(batch.shape)  # type: ignore[attr-defined]
    locked[:] = batch
    assert torch.from_numpy(locked).is_pinned()
    assert_same(one(locked), expected)
    np.testing.assert_allclose(one.backend(locked).scores, one.backend(batch).scores, rtol=0, atol=1e-4)
    there = torch.from_numpy(batch).to(GPU)
    assert_same(one(there), expected)  # type: ignore[arg-type]
    assert_same(one(list(there)), expected)
    whole = torch.zeros(5, SIZE[0] + 8, SIZE[1] + 16, 3, dtype=torch.uint8, device=GPU)
    whole[:, 3 : 3 + SIZE[0], 9 : 9 + SIZE[1]] = there
    assert_same(one(whole[:, 3 : 3 + SIZE[0], 9 : 9 + SIZE[1]]), expected)  # type: ignore[arg-type]
    found = one(list(whole), roi=(9, 3, 9 + SIZE[1], 3 + SIZE[0]))
    assert_same(found, one([frame.cpu().numpy() for frame in whole], roi=(9, 3, 9 + SIZE[1], 3 + SIZE[0])))


@pytest.mark.parametrize("options", [PLAIN, GRAPHS])
def test_arrays_of_cupy(options: BackendOptions) -> None:
    cupy = pytest.importorskip("cupy")
    frames = pictures(3)
    one = detector("fcos", GPU, options)
    assert_same(one(cupy.asarray(np.stack(frames))), one(frames))
    assert_same(one([cupy.asarray(frame) for frame in frames]), one(frames))


@pytest.mark.parametrize("options", [PLAIN, GRAPHS])
def test_a_frame_that_is_still_being_made_is_waited_for(options: BackendOptions) -> None:
    one, (picture,) = detector("atss", GPU, options), pictures(1)
    expected = one(picture)
    there, big = torch.from_numpy(picture).to(GPU), torch.ones(4096, 4096, device=GPU)
    frame, side = torch.zeros_like(there), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        for _ in range(200):
            torch.mm(big, big)
        frame.copy_(there)
        assert not side.query()
        assert_same(one(frame), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [PLAIN, GRAPHS])
def test_frames_of_another_size_are_refused(options: BackendOptions) -> None:
    one = detector("atss", GPU, options)
    for size in ((SIZE[0], SIZE[1] + 1), (1, 1)):
        with pytest.raises(FrameError, match="on a device, expected the graph's own size 128x160"):
            one(torch.zeros(*size, 3, dtype=torch.uint8, device=GPU))  # type: ignore[arg-type]
    with pytest.raises(FrameError, match="takes none; copy it"):
        detector("atss", "cpu")(torch.zeros(*SIZE, 3, dtype=torch.uint8, device=GPU))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [PLAIN, GRAPHS, BackendOptions(autocast="bf16"), BackendOptions(autocast="fp16", cuda_graphs=True)]
)
def test_contexts_in_four_threads_give_what_one_gives(options: BackendOptions) -> None:
    first = backend("atss", GPU, options)
    contexts = [Detector(one, threshold=0.0) for one in (first, *(first.context() for _ in range(3)))]
    batches = [pictures(4, seed=i) for i in range(4)]
    expected = [contexts[0](batch) for batch in batches]
    work = [lambda c=c, b=b: [c(b) for _ in range(10)] for c, b in zip(contexts, batches, strict=True)]
    for answers, wanted in zip(in_threads(*work), expected, strict=True):
        for given in answers:
            assert_same(given, wanted)


@pytest.mark.parametrize("options", [PLAIN, GRAPHS])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_batcher_answers_each_frame_with_its_own(options: BackendOptions, workers: int) -> None:
    one = detector("atss", GPU, options)
    frames = [pictures(30, seed=stream) for stream in range(4)]
    with one.batcher(8, 2.0, workers=workers) as batcher:

        def camera(stream: int) -> list[Detections]:
            futures = [batcher.submit(frame, stream) for frame in frames[stream]]
            return [future.result(120) for future in futures]

        answers = in_threads(*(lambda s=s: camera(s) for s in range(4)))
    for given, sent in zip(answers, frames, strict=True):
        assert_same(given, [one(frame)[0] for frame in sent])


def test_two_detectors_on_one_card_and_threads_that_never_called_cuda() -> None:
    frames = pictures(6)
    two = detector("atss", GPU), detector("fcos", GPU, GRAPHS)
    expected = [detector("atss", "cpu")(frames), detector("fcos", "cpu")(frames)]
    for start in range(6):
        for one, wanted in zip(two, expected, strict=True):
            assert_same(one(frames[start]), wanted[start : start + 1])

    def many(one: Detector, wanted: list[Detections]) -> None:
        for count in (6, 2, 3, 4, 5, 6) * 3:  # one of them records its sizes while the other runs
            assert_same(one(frames[:count]), wanted[:count])

    in_threads(*(lambda one=one, wanted=wanted: many(one, wanted) for one, wanted in zip(two, expected, strict=True)))


@pytest.mark.parametrize("options", [PLAIN, GRAPHS])
def test_the_stages_are_parts_of_the_whole(options: BackendOptions) -> None:
    one, images = backend("atss", GPU, options), np.stack(pictures(8))
    expected = one(images)
    timed = one.timed
    assert timed is not None
    begun = time.perf_counter()
    raw, seconds = timed(images)
    wall = time.perf_counter() - begun
    assert list(seconds) == ["host to device", "engine", "device to host"]
    assert min(seconds.values()) > 0 and sum(seconds.values()) <= wall
    np.testing.assert_allclose(raw.scores, expected.scores, rtol=0, atol=1e-3)
