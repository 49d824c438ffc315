"""PyTorch on a GPU: what the CPU says, from wherever the frames come and whoever asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from runtime import BackendOptions, Detections, Detector, FrameError
from runtime.backends.protocol import OutOfMemory
from tests.gpu.networks import DETECTORS, SIZE, assert_same, backend, detector, pictures
from tests.processes import python
from tests.threads import in_threads

pytestmark = pytest.mark.gpu
GPU, LARGE = "cuda:0", (320, 320)
PLAIN, GRAPHS = BackendOptions(), BackendOptions(cuda_graphs=True)
WITH_AND_WITHOUT_GRAPHS = pytest.mark.parametrize("options", [PLAIN, GRAPHS])


@WITH_AND_WITHOUT_GRAPHS
@pytest.mark.parametrize("name", DETECTORS)
def test_the_gpu_says_what_the_cpu_says(name: str, options: BackendOptions) -> None:
    frames = pictures(7)
    expected = detector(name, "cpu")(frames)
    on_gpu = detector(name, GPU, options)
    assert on_gpu.runs_on.endswith("on cuda:0 (as asked)")
    assert_same(on_gpu(frames), expected)
    larger = pictures(5, (300, 500), seed=3)
    assert_same(on_gpu(larger), detector(name, "cpu")(larger))


@WITH_AND_WITHOUT_GRAPHS
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


@WITH_AND_WITHOUT_GRAPHS
def test_arrays_of_cupy(options: BackendOptions) -> None:
    cupy = pytest.importorskip("cupy")
    frames = pictures(3)
    one = detector("fcos", GPU, options)
    assert_same(one(cupy.asarray(np.stack(frames))), one(frames))
    assert_same(one([cupy.asarray(frame) for frame in frames]), one(frames))


@WITH_AND_WITHOUT_GRAPHS
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


@WITH_AND_WITHOUT_GRAPHS
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
    assert all(one.backend.model is first.model for one in contexts)  # type: ignore[attr-defined]
    batches = [pictures(4, seed=i) for i in range(4)]
    expected = [contexts[0](batch) for batch in batches]
    work = [lambda c=c, b=b: [c(b) for _ in range(10)] for c, b in zip(contexts, batches, strict=True)]
    for answers, wanted in zip(in_threads(*work), expected, strict=True):
        for given in answers:
            assert_same(given, wanted)


@WITH_AND_WITHOUT_GRAPHS
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


@WITH_AND_WITHOUT_GRAPHS
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


# From here on: CUDA graphs
def test_batches_of_every_size() -> None:
    recorded, plain = detector("atss", GPU, GRAPHS), detector("atss", GPU)
    frames = pictures(32)
    expected = plain(frames)
    for count in (1, 3, 5, 6, 5, 2, 7, 32, 1, 17, 24, 9, 5):
        assert_same(recorded(frames[:count]), expected[:count])
    assert recorded([]) == []


def test_an_answer_stays_what_it_was() -> None:
    one = backend("atss", GPU, GRAPHS)
    first, second = np.stack(pictures(4, seed=1)), np.stack(pictures(4, seed=2))
    before = one(first)
    boxes, scores = before.boxes.copy(), before.scores.copy()
    assert not np.array_equal(one(second).boxes, boxes)
    np.testing.assert_array_equal(before.boxes, boxes)
    np.testing.assert_array_equal(before.scores, scores)
    np.testing.assert_array_equal(one(first).boxes, boxes)


@pytest.mark.parametrize(
    "options",
    [
        BackendOptions(cuda_graphs=True, channels_last=True),
        BackendOptions(cuda_graphs=True, autocast="bf16"),
        BackendOptions(cuda_graphs=True, autocast="fp16", channels_last=True),
    ],
)
def test_with_other_options(options: BackendOptions) -> None:
    plain = BackendOptions(channels_last=options.channels_last, autocast=options.autocast)
    frames = pictures(4)
    assert_same(detector("atss", GPU, options)(frames), detector("atss", GPU, plain)(frames), pixels=0.5, score=1e-3)


def test_new_weights_show() -> None:
    one = backend("atss", GPU, GRAPHS)
    images = np.stack(pictures(2))
    before = one(images).scores.max()
    bias = dict(one.model.named_parameters())["detector.head.cls.bias"]
    with torch.no_grad():
        bias.sub_(4.0)
    torch.cuda.synchronize()
    assert one(images).scores.max() < before - 0.1


def test_contexts_record_at_the_same_time() -> None:
    first = backend("atss", GPU, GRAPHS)
    contexts = [Detector(b, threshold=0.0) for b in (first, *(first.context() for _ in range(3)))]
    frames = pictures(8)
    expected = detector("atss", GPU)(frames)

    def all_sizes(one: Detector, sizes: list[int]) -> None:
        for count in sizes:
            assert_same(one(frames[:count]), expected[:count])

    orders = ([1, 2, 3, 8], [8, 3, 2, 1], [6, 1, 4, 2], [3, 4, 8, 6])
    in_threads(*(lambda c=c, o=o: all_sizes(c, o) for c, o in zip(contexts, orders, strict=True)))


def test_recordings_share_their_scratch_memory() -> None:
    one = backend("atss", GPU, GRAPHS, (320, 320))
    images = np.stack(pictures(32, (320, 320)))
    torch.cuda.empty_cache()
    sizes = []
    for count in (32, 24, 16, 12):
        before = torch.cuda.memory_reserved()
        one(images[:count])
        torch.cuda.empty_cache()
        sizes.append(torch.cuda.memory_reserved() - before)
    assert max(sizes[1:]) < 0.5 * sizes[0], sizes


CANNOT = """
import numpy as np
import torch
from runtime import BackendOptions
from runtime.backends.protocol import BackendError
from runtime.backends.torch.backend import TorchBackend
from tests.gpu.networks import backend, card, config, deployed, pictures

class Waits(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        return self.inner(images) if float(images.float().mean()) >= 0 else ()

how = config("atss")
waits = TorchBackend(Waits(deployed(how)), card(how), "cuda", BackendOptions(cuda_graphs=True))
images = np.stack(pictures(3))
for _ in range(2):
    try:
        waits(images)
        raise SystemExit("it was recorded")
    except BackendError as error:
        print(error)
plain = backend("atss", "cuda")(images)
print(len(plain.boxes))
"""


def test_what_cannot_be_recorded_says_so_in_one_line() -> None:
    """In a process of its own: PyTorch before 2.12 does not give back the memory of a recording that broke off."""
    done = python("-W", "ignore", "-c", CANNOT)
    assert done.returncode == 0, done.stderr
    first, second, count = done.stdout.splitlines()
    assert first.startswith("cuda_graphs: PyTorch ") and first.endswith("; run it without cuda_graphs")
    assert "cannot record a batch of 3: " in first and "cannot record a batch of 3" in second and count == "3"


# From here on: batches that do not fit
def needed(count: int, options: BackendOptions) -> int:
    """Bytes that PyTorch holds at most while a batch of `count` runs for the first time."""
    one, images = backend("atss", GPU, options, LARGE), np.stack(pictures(count, LARGE))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    one(images)
    return torch.cuda.max_memory_reserved()


@WITH_AND_WITHOUT_GRAPHS
def test_a_batch_of_64_becomes_smaller_ones(
    options: BackendOptions, memory_limit: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    frames = pictures(64, LARGE)
    plain = Detector(backend("atss", GPU, size_hw=LARGE), threshold=0.0)
    expected = [plain(frame)[0] for frame in frames]
    del plain
    limit = needed(24, options)  # 16 and 24 fit, 32 perhaps, 64 does not
    assert limit < 0.75 * needed(64, options)
    seen: list[int] = []
    short = backend("atss", GPU, options, LARGE)
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


@WITH_AND_WITHOUT_GRAPHS
def test_where_not_even_one_fits_it_says_so_and_goes_on_when_there_is_room(
    options: BackendOptions, memory_limit: Callable[[int], None]
) -> None:
    one, images = backend("atss", GPU, options, LARGE), np.stack(pictures(8, LARGE))
    torch.cuda.empty_cache()
    memory_limit(torch.cuda.memory_reserved() + (1 << 20))
    detector: Any = Detector(one, threshold=0.0)
    with pytest.raises(OutOfMemory, match="failed on a batch of 1: CUDA out of memory"):
        detector(list(images))
    torch.cuda.set_per_process_memory_fraction(1.0, 0)
    assert one(images).boxes.shape[0] == 8


def test_short_while_it_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the runs before it still fit: the memory of a recording is another one."""
    one, images = backend("atss", GPU, GRAPHS, LARGE), np.stack(pictures(8, LARGE))
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


# From here on: how a process ends that used the GPU
USES = """
import sys
import numpy as np
import torch
from runtime import BackendOptions, Detector
from runtime.backends.cuda.memory import Buffer, Stream, pinned
from tests.gpu.networks import detector, pictures

stream = Stream(0)
buffer, memory = Buffer((4, 1 << 20), np.uint8), pinned(1 << 20)
memory[:] = 5
recording = stream.record(lambda: stream.upload(buffer, 1, memory.ctypes.data) is None)
for _ in range(100):
    stream.replay(recording)
    stream.upload(buffer, 4)
    stream.download(buffer, 4)

frames = pictures(40)
kept = []
for options in (BackendOptions(), BackendOptions(cuda_graphs=True)):
    one = detector("atss", "cuda", options)
    batcher = one.batcher(4, 1.0, workers=2)
    futures = [batcher.submit(frame) for frame in frames]
    futures[0].result(60)
    kept += [one, batcher, futures]
there = torch.from_numpy(np.stack(frames)).cuda()
kept.append(one(there))
print("used", flush=True)
"""


def test_a_process_ends_normally() -> None:
    """With batchers that nobody closed, and work under way on every stream."""
    done = python("-W", "ignore", "-c", USES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "used\n", "")


def test_a_process_ends_by_an_exception() -> None:
    done = python("-W", "ignore", "-c", USES + "\nraise KeyError('as applications end')\n")
    assert done.returncode == 1 and done.stdout == "used\n"
    assert done.stderr.startswith("Traceback") and done.stderr.endswith("KeyError: 'as applications end'\n")
    assert done.stderr.count("Traceback") == 1 and "ignored" not in done.stderr


def test_a_process_ends_by_sys_exit_in_the_middle_of_a_recording() -> None:
    done = python("-W", "ignore", "-c", USES + "\nstream.record(lambda: sys.exit(3))\n")
    assert (done.returncode, done.stderr) == (3, "")
