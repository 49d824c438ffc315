"""The wait for the next batch of loader processes. It always ends, and a signal can end it."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import multiprocessing.queues
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from trainer.data.batch_memory import SentBatch
from trainer.data.train_set import Batch
from trainer.failures import LostBatch, TrainingError, why_lost

log = logging.getLogger(__name__)

TICK_S = 5
"""The `timeout` of the loader, after which a wait checks whether to end. Whole seconds, and long enough for a loader
process to begin an epoch, which must not time out."""
LONGEST_S = 600.0
"""A longer wait for a batch is an error: a disk hangs, or processes wait for each other."""

Waiting = Callable[[float, int], None]
"""Called at each tick with the seconds that the wait has taken and the number of the batch; it may raise to end it."""


def starting(loader: DataLoader[Any]) -> Iterator[Any]:
    """`iter(loader)`. Raises `TrainingError` where its processes, their pipes or semaphores cannot be made."""
    try:
        if loader.num_workers:
            _rehearse(loader.num_workers)
        return iter(loader)
    except OSError as error:
        advice = {
            errno.EMFILE: "raise the limit of open files (ulimit -n)",
            errno.ENFILE: "the system's limit of open files is reached",
            errno.EAGAIN: "raise the limit of processes (ulimit -u)",
            errno.ENOMEM: "memory is short",
        }.get(error.errno or 0, "semaphores need a /dev/shm that can be written (docker run --shm-size, --ipc)")
        raise TrainingError.of(
            "data.workers",
            f"{loader.num_workers} loader processes cannot be started ({error}): {advice}; or set "
            "data.workers=0, which reads pictures in the training process",
        ) from error


def _rehearse(workers: int) -> None:
    """Make the queues and pipes of so many processes, and close them again.

    Where this fails, torch's own attempt would leave an iterator half made, which prints an error of its own.
    """
    with ExitStack() as stack:
        for _ in range(workers + 2):  # one queue for each process, one for results, and events
            queue: Any = multiprocessing.SimpleQueue()
            stack.callback(queue.close)
        for end in (end for _ in range(workers) for end in os.pipe()):
            stack.callback(os.close, end)


def received(loader: DataLoader[Any], first: int = 0, waiting: Waiting | None = None) -> Iterator[Batch]:
    """The batches of `loader` from its next epoch; the first of them is number `first`.

    Raises `TrainingError` where none comes for `LONGEST_S` or the thread that pins memory ended; and what `starting`
    and `waiting` raise.
    """
    return _received(starting(loader), first, waiting)


def _received(iterator: Iterator[Any], first: int, waiting: Waiting | None) -> Iterator[Batch]:
    number, since = first, time.monotonic()
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader timed out" not in str(error):
                raise
            seconds = time.monotonic() - since
            if waiting is not None:
                waiting(seconds, number)
            pinning = getattr(iterator, "_pin_memory_thread", None)
            if pinning is not None and not pinning.is_alive():
                raise TrainingError("the thread that pins memory ended; its own message above says why") from None
            if seconds >= LONGEST_S:
                raise TrainingError(
                    f"no batch of pictures came for {seconds:.0f} s, while the loader processes live: does the disk or "
                    "network drive with the pictures answer? data.workers=0 reads them in the training process, where "
                    "what hangs can be seen"
                ) from None
            continue
        yield batch.open() if isinstance(batch, SentBatch) else batch
        number, since = number + 1, time.monotonic()


def report_lost_batches() -> None:
    """In a loader process: where its queue cannot send a batch, send the reason instead.

    multiprocessing's thread would print the error and drop the batch, and the training would wait for it in vain.
    """
    setattr(multiprocessing.queues.Queue, "_on_queue_feeder_error", _lost)  # noqa: B010  (it is typed as static)


def _lost(queue: Any, error: Exception, item: Any) -> None:
    log.error("a data loading process cannot send a batch: %s", error)
    if not isinstance(item, tuple) or isinstance(item[1], ExceptionWrapper):
        return  # the pipe is broken, or there is no memory for a message: the wait ends by `LONGEST_S`
    reason = LostBatch(why_lost(error))
    queue.put((item[0], ExceptionWrapper((LostBatch, reason, None), "in DataLoader worker")))
