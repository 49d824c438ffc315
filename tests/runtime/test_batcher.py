"""The batcher: every frame is answered exactly once, whatever happens around it. Nothing here is a timed test: what
has to wait waits on an event of the test, or for a time that would fail a broken batcher by pytest's own limit."""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isodet.errors import ArgumentError
from runtime import BatcherClosed, DeadlineExpired, FrameDropped, QueueFull
from runtime.backends.protocol import BackendError, OutOfMemory
from runtime.batcher.admission import Admission
from runtime.batcher.metrics import LATENCIES, Tally
from runtime.batcher.queue import FairQueue, Input, Request
from runtime.card.card import Card
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.images.frames import FrameError
from runtime.images.image import Letterbox
from runtime.tiles import Grid
from tests.at_fault import raises
from tests.runtime.cameras import until
from tests.runtime.echo import FOREVER, Echo, Gate, frame, number
from tests.threads import in_threads


def test_frames_of_every_kind_are_answered_as_by_a_call(card: Card) -> None:
    detector = Detector(Echo(card), threshold=0.0)
    frames = [frame(i, (20 + i, 90 - i)) for i in range(30)]
    with detector.batcher(max_batch=8, max_wait_ms=1) as batcher:
        futures = [batcher.submit(f, stream=i % 3) for i, f in enumerate(frames)]
        strict = batcher.submit(frame(2**22), threshold=0.5)
        wide = batcher.submit(frame(7, (40, 80)), roi=(40, 0, 80, 40))
        turned = batcher.submit(frame(7)[..., ::-1], color="rgb")
    for i, (future, expected) in enumerate(zip(futures, detector(frames), strict=True)):
        assert number(future.result()) == i
        assert future.started is not None and future.started <= future.finished <= time.monotonic()
        np.testing.assert_array_equal(future.result().boxes_xyxy, expected.boxes_xyxy)
    assert len(strict.result()) == 0 and number(turned.result()) == 7
    np.testing.assert_array_equal(
        wide.result().boxes_xyxy, detector(frame(7, (40, 80)), roi=(40, 0, 80, 40))[0].boxes_xyxy
    )
    done = batcher.metrics()
    assert done.submitted == done.answered == 33 and done.waiting == done.running == 0
    assert sum(size * count for size, count in done.batch_sizes.items()) == 33 and done.batches > 3
    assert max(done.batch_sizes) <= 8 and 0 < done.p50_ms <= done.p95_ms <= done.p99_ms and done.mean_batch > 1


def test_the_frame_is_the_callers_again_at_once(gated: tuple[Detector, Echo, Gate]) -> None:
    detector, _, gate = gated
    with detector.batcher(max_wait_ms=0) as batcher:
        shared = frame(1)
        first = batcher.submit(shared)
        shared[:] = 99
        gate.open.set()
    assert number(first.result()) == 1


@pytest.mark.parametrize("seed", range(6))
def test_every_submit_is_answered_exactly_once(card: Card, seed: int) -> None:
    """Threads, coroutines, every policy, deadlines, cancels, raising engines, odd sizes of everything."""
    rng = random.Random(seed)
    answers: dict[int, int] = {}
    lock = threading.Lock()

    def sometimes(numbers: list[int]) -> None:
        if random.Random(numbers[0] + seed).random() < 0.2:
            raise (BackendError, RuntimeError, SystemExit, OutOfMemory)[numbers[0] % 4]("this batch only")
        time.sleep(random.Random(numbers[0]).random() * 0.002)

    detector = Detector(Echo(card, before=sometimes), threshold=0.0)
    policy = ("block", "drop_oldest", "refuse")[seed % 3]
    batcher = detector.batcher(rng.choice([1, 3, 16]), rng.choice([0, 1, 4]), rng.choice([1, 5, 40]), policy,
                               rng.choice([1, 2, 3]))  # fmt: skip
    outcomes: dict[str, int] = {}
    futures: list[tuple[int, Future[Detections]]] = []

    def count(name: str) -> None:
        with lock:
            outcomes[name] = outcomes.get(name, 0) + 1

    def answered(i: int) -> Callable[[Any], None]:
        def call(_: Any) -> None:
            with lock:
                answers[i] = answers.get(i, 0) + 1

        return call

    def camera(stream: int) -> None:
        mine = random.Random(seed * 100 + stream)
        for k in range(60):
            i = stream * 1000 + k
            try:
                future = batcher.submit(frame(i), stream, mine.choice([None, None, 0, 1, 50]))
            except QueueFull:
                count("refused")
                continue
            future.add_done_callback(answered(i))
            with lock:
                futures.append((i, future))
            if mine.random() < 0.1:
                future.cancel()

    async def tasks() -> None:
        async def one(i: int) -> None:
            try:
                assert number(await batcher.detect(frame(i), "async", rng.choice([None, 2]))) == i
                count("answered")
            except (DeadlineExpired, FrameDropped, QueueFull, BackendError, RuntimeError, SystemExit) as error:
                count("refused" if isinstance(error, QueueFull) else "told")
            except asyncio.CancelledError:
                count("cancelled")

        running = [asyncio.ensure_future(one(90_000 + i)) for i in range(40)]
        await asyncio.sleep(0.002)
        running[rng.randrange(40)].cancel()
        await asyncio.gather(*running, return_exceptions=True)

    in_threads(*(partial(camera, stream) for stream in range(5)), lambda: asyncio.run(tasks()))
    batcher.close()
    assert all(future.done() for _, future in futures)
    assert answers == {i: 1 for i, _ in futures}
    for i, future in futures:
        if future.cancelled():
            count("cancelled")
        elif future.exception() is None:
            assert number(future.result()) == i  # the answer of this frame and of no other
            count("answered")
        else:
            count("told")
    m = batcher.metrics()
    assert m.waiting == m.blocked == m.running == 0
    assert m.submitted == m.answered + m.failed + m.dropped + m.expired + m.cancelled + m.closed + m.refused
    # A task that was cancelled before its frame was offered was never submitted; one cancelled after it ran was.
    assert abs(m.answered - outcomes.get("answered", 0)) <= 1 and m.refused == outcomes.get("refused", 0)
    assert abs(m.failed + m.dropped + m.expired - outcomes.get("told", 0)) <= 1
    assert sum(outcomes.values()) == 340
    assert m.dropped == 0 or policy == "drop_oldest"


@pytest.mark.parametrize("workers", [1, 3])
def test_results_of_a_stream_come_in_its_order(card: Card, workers: int) -> None:
    echo = Echo(card, before=lambda numbers: time.sleep(0.003 if len(numbers) % 2 else 0))
    order: dict[int, list[int]] = {0: [], 1: [], 2: []}
    with Detector(echo, threshold=0.0).batcher(5, 0, workers=workers) as batcher:
        for i in range(150):
            future = batcher.submit(frame(i), stream=i % 3)
            future.add_done_callback(lambda f: order[number(f.result()) % 3].append(number(f.result())))
    assert order == {s: list(range(s, 150, 3)) for s in range(3)}


def test_a_flood_does_not_starve_a_trickle(gated: tuple[Detector, Echo, Gate]) -> None:
    detector, echo, gate = gated
    with detector.batcher(4, 0, queue=2000) as batcher:
        batcher.submit(frame(0), "flood")
        assert gate.reached.wait(60)
        for i in range(1, 1000):
            batcher.submit(frame(i), "flood")
        batcher.submit(frame(5000), "trickle")
        gate.open.set()
    assert 5000 in echo.batches[1]  # the very next batch, before 996 that came earlier


def test_drop_oldest_gives_each_camera_its_newest(gated: tuple[Detector, Echo, Gate]) -> None:
    detector, _, gate = gated
    with detector.batcher(2, 0, queue=3, policy="drop_oldest") as batcher:
        held = batcher.submit(frame(999), "x")
        assert gate.reached.wait(60)
        futures = {i: batcher.submit(frame(i), "abc"[i // 10]) for i in (0, 10, 20, 1, 2, 3, 11, 4, 21)}
        gate.open.set()
    kept = {i for i, future in futures.items() if future.exception() is None}
    assert kept == {4, 11, 21} and number(held.result()) == 999
    assert all(isinstance(f.exception(), FrameDropped) for i, f in futures.items() if i not in kept)
    assert batcher.metrics().dropped == 6


def test_a_full_queue_refuses_or_blocks(gated: tuple[Detector, Echo, Gate]) -> None:
    detector, echo, gate = gated
    with detector.batcher(1, 0, queue=2, policy="refuse") as batcher:
        taken = [batcher.submit(frame(0))]
        assert gate.reached.wait(60)
        taken += [batcher.submit(frame(i)) for i in (1, 2)]
        with pytest.raises(QueueFull, match="2 frames wait already"):
            batcher.submit(frame(3))
        gate.open.set()
    assert [number(f.result()) for f in taken] == [0, 1, 2]

    gate.reached.clear()
    gate.open.clear()
    returned = threading.Event()
    with detector.batcher(1, 0, queue=1) as batcher:
        first = batcher.submit(frame(0))
        assert gate.reached.wait(60)
        batcher.submit(frame(1))
        blocked = threading.Thread(target=lambda: (batcher.submit(frame(2)), returned.set()))
        blocked.start()
        until(lambda: batcher.metrics().blocked == 1)
        assert not returned.is_set() and batcher.metrics().waiting == 1
        gate.open.set()
        assert returned.wait(60)
        blocked.join()
    assert number(first.result()) == 0 and echo.batches[-1] == [2]


def test_a_callback_may_submit_but_not_wait(gated: tuple[Detector, Echo, Gate]) -> None:
    detector, _, gate = gated
    seen: list[Any] = []

    def again(_: Any) -> None:
        for i in (10, 11, 12):
            try:
                seen.append(batcher.submit(frame(i)))
            except QueueFull as error:
                seen.append(error)

    with detector.batcher(1, 0, queue=1) as batcher:
        future = batcher.submit(frame(0))
        future.add_done_callback(again)
        gate.open.set()
        future.result(60)
        until(lambda: len(seen) == 3)
    assert isinstance(seen[0], Future) and all(isinstance(s, (Future, QueueFull)) for s in seen)
    assert all("a callback of a future must not wait" in str(s) for s in seen if isinstance(s, QueueFull))
    assert number(seen[0].result()) == 10


def test_a_batch_starts_when_full_or_due(card: Card) -> None:
    echo = Echo(card)
    detector = Detector(echo, threshold=0.0)
    with detector.batcher(3, FOREVER) as batcher:  # full: at once, although waiting could take an hour
        assert [number(f.result(60)) for f in [batcher.submit(frame(i)) for i in range(3)]] == [0, 1, 2]
        lone = batcher.submit(frame(8), deadline_ms=200)  # half of a deadline is the longest wait for company
        assert number(lone.result(60)) == 8
        late = batcher.submit(frame(9))
        assert not late.done()  # it waits, until closing drains
    assert number(late.result()) == 9 and echo.batches == [[0, 1, 2], [8], [9]]
    with detector.batcher(16, 0) as batcher:
        assert number(batcher.submit(frame(4)).result(60)) == 4  # nobody to wait for
    with detector.batcher(16, FOREVER, queue=2) as batcher:  # more than two can never wait
        assert {number(f.result(60)) for f in [batcher.submit(frame(i)) for i in (1, 2)]} == {1, 2}


def test_what_is_late_is_not_run(gated: tuple[Detector, Echo, Gate]) -> None:
    detector, echo, gate = gated
    with detector.batcher(4, 0) as batcher:
        running = batcher.submit(frame(0))
        assert gate.reached.wait(60)
        late, patient = batcher.submit(frame(1), deadline_ms=0), batcher.submit(frame(2), deadline_ms=FOREVER)
        gone = batcher.submit(frame(3))
        assert gone.cancel() and not running.cancel()  # what runs, runs
        gate.open.set()
        assert number(patient.result(60)) == 2
        with pytest.raises(DeadlineExpired, match="deadline passed .* ms before it could run"):
            late.result(60)
    assert echo.batches == [[0], [2]] and number(running.result()) == 0
    with pytest.raises(CancelledError):
        gone.result()
    m = batcher.metrics()
    assert (m.answered, m.expired, m.cancelled) == (2, 1, 1)


def test_what_is_no_frame_is_refused_by_submit(card: Card) -> None:
    with Detector(Echo(card)).batcher() as batcher:
        with pytest.raises(FrameError, match="a gray picture"):
            batcher.submit(np.zeros((4, 4), np.uint8))
        with pytest.raises(FrameError, match="a gray picture"):
            asyncio.run(batcher.detect(np.zeros((4, 4), np.uint8)))
        with raises(ArgumentError, key="deadline_ms"):
            batcher.submit(frame(0), deadline_ms=-1)
        assert batcher.metrics().submitted == 0 and batcher.metrics().p50_ms is None
    with pytest.raises(BatcherClosed):
        batcher.submit(frame(0))
    for wrong in ({"max_batch": 0}, {"queue": 0}, {"workers": 0}, {"max_wait_ms": -1}, {"max_wait_ms": float("nan")},
                  {"policy": "newest"}):  # fmt: skip
        with raises(ArgumentError, key=next(iter(wrong))):
            Detector(Echo(card)).batcher(**wrong)  # type: ignore[arg-type]


# From here on: the queue, at times that the tests choose
def request(stream: object = None, at: float = 0.0, wait: float = 4.0, deadline: float = math.inf) -> Request:
    placement = Letterbox.fit((2, 2), (2, 2))
    inputs = [Input(np.zeros((2, 2, 3), np.uint8), placement)]
    return Request(inputs, Grid.of_one((2, 2)), (2, 2), None, 0.0, stream, at, at + wait, deadline, Future())


@given(st.lists(st.one_of(st.integers(0, 4), st.sampled_from(["pop", "stale"])), max_size=60))
def test_turns_are_those_of_plain_lists(steps: list[int | str]) -> None:
    queue, lists, turn = FairQueue(), {s: [] for s in range(5)}, []  # type: ignore[var-annotated]
    for at, step in enumerate(steps):
        if isinstance(step, int):
            new = request(step, float(at))
            queue.push(new)
            lists[step].append(new)
            turn += [step] if step not in turn else []
        elif not turn:
            if step == "pop":
                with pytest.raises(IndexError, match="nothing waits"):
                    queue.pop()
            continue
        elif step == "pop":
            stream = turn.pop(0)
            assert queue.pop() is lists[stream].pop(0)
            turn += [stream] if lists[stream] else []
        else:
            most = max(len(v) for v in lists.values())
            stream = min((v[0].submitted, s) for s, v in lists.items() if len(v) == most)[1]
            assert queue.pop_stale() is lists[stream].pop(0)
            turn = [s for s in turn if lists[s]]
        assert len(queue) == sum(len(v) for v in lists.values()) == len(list(queue))


def test_when_a_batch_starts() -> None:
    queue = FairQueue()
    assert queue.starts_in(0.0, full=3) is None
    queue.push(request("a", at=10.0, wait=4.0))
    assert queue.starts_in(10.0, 3) == 4.0 and queue.starts_in(13.5, 3) == 0.5 and queue.starts_in(15.0, 3) == 0.0
    queue.push(request("b", at=11.0, wait=0.25))  # a short deadline
    assert queue.starts_in(11.0, 3) == 0.25
    queue.push(request("a", at=11.0))
    assert queue.starts_in(11.0, 3) == 0.0  # full


def test_places_are_given_in_turn_and_cancelled_ones_to_the_next() -> None:
    admission = Admission(2, "block", Tally())
    first, second, *blocked = [request("a") for _ in range(6)]
    assert admission.offer(first) is None and admission.offer(second) is None
    tickets = [admission.offer(r) for r in blocked]
    other = admission.offer(request("b"))  # behind four of another stream, and next but one all the same
    assert all(t is not None and not t.done() for t in [*tickets, other]) and len(admission.blocked) == 5
    with pytest.raises(QueueFull, match="must not wait"):
        admission.offer(request("c"), may_wait=False)
    second.future.cancel()
    assert admission.take(0.0, 1) == [first]
    assert admission.take(0.0, 1) == [blocked[0]] and tickets[0].done() and other.done()  # type: ignore[union-attr]
    assert admission.tally.cancelled == 1 and len(admission.waiting) == 2


def test_the_dropped_are_told_unless_they_left() -> None:
    admission = Admission(1, "drop_oldest", Tally())
    old, left, new = request("a", 1.0), request("a", 2.0), request("a", 3.0)
    admission.offer(old)
    admission.offer(left)
    left.future.cancel()
    admission.offer(new)
    ((told, error),) = admission.turned_away
    assert told is old and isinstance(error, FrameDropped) and admission.take(9.0, 5) == [new]
    assert (admission.tally.submitted, admission.tally.dropped, admission.tally.cancelled) == (3, 1, 1)


def test_percentiles_are_of_the_latest_answers() -> None:
    tally = Tally()
    tally.answers([9.0] * 100, failed=2)
    tally.answers([k / 1000 for k in range(LATENCIES)], failed=0)
    m = tally.snapshot(1, 2, 3)
    assert (m.p50_ms, m.p95_ms, m.p99_ms) == pytest.approx([q * (LATENCIES - 1) for q in (0.5, 0.95, 0.99)])
    assert (m.answered, m.failed, m.blocked, m.waiting, m.running) == (LATENCIES + 100, 2, 1, 2, 3)
    assert m.batches == 0 and m.mean_batch == 0.0 and tally.snapshot(0, 0, 0).batch_sizes == {}
