"""Turns, places and times of waiting requests: against plain lists, at times that the tests choose."""

from __future__ import annotations

import math
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.batcher.admission import Admission, FrameDropped, QueueFull
from runtime.batcher.metrics import LATENCIES, Tally
from runtime.batcher.queue import FairQueue, Request
from runtime.images.image import Letterbox


def request(stream: object = None, at: float = 0.0, wait: float = 4.0, deadline: float = math.inf) -> Request:
    placement = Letterbox.fit((2, 2), (2, 2))
    return Request(
        np.zeros((2, 2, 3), np.uint8), placement, (2, 2), None, 0.0, stream, at, at + wait, deadline, Future()
    )


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
