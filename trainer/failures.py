"""The errors that end a training early, each with advice."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from isodet.errors import IsodetError

_LOST: dict[int, str] = {
    errno.ENOSPC: "shared memory is full: give /dev/shm more room (docker run --shm-size=1g), or lower batch_size",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENOMEM: "memory is short: lower data.workers or batch_size",
}
"""The reason why a loader process could not send a batch, and what to do, by the system's error number."""


class LostBatch(IsodetError, RuntimeError):
    """A loader process made a batch that it could not send."""


def why_lost(error: Exception) -> str:
    """One line with the reason and what to do, for an `error` of sending a batch."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    for known in _LOST:  # torch's errors have the number in their text only
        if os.strerror(known) in str(error):
            number = known
    return _LOST.get(number or 0, " ".join(f"{type(error).__name__}: {error}".split()))


class TrainingError(IsodetError, RuntimeError):
    """Training cannot go on; the message says how far it came and what to do."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the training after its state was saved; the message has the command that resumes it."""


@contextmanager
def dead_processes(saved: Callable[[], str]) -> Iterator[None]:
    """Within it, the death of a loader process, or of another training process, raises a `TrainingError` with advice.

    `saved` says what last.pt holds. torch may raise from its SIGCHLD handler at any line of the main process, so this
    block is around the whole epoch and not only around the wait for a batch.
    """
    try:
        yield
    except RuntimeError as error:
        if "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error):
            raise TrainingError(
                f"another process of this training died; its own message says why. {saved()} Start all of them again "
                "with --resume"
            ) from error
        if isinstance(error, LostBatch):  # a traceback, whose last line is the reason
            reason = str(error).strip().splitlines()[-1].partition(": ")[2]
            raise TrainingError(
                f"a data loading process could not send a batch: {reason}; or set data.workers=0. {saved()}"
            ) from error
        if "DataLoader worker" not in str(error) or str(error).startswith("Caught "):
            raise  # "Caught": an error within a loader process that lives
        reason = str(error).split("\n")[0]
        raise TrainingError(
            f"a data loading process died: {reason} When the system killed it, memory was short: lower data.workers "
            f"or batch_size. {saved()}"
        ) from error


def not_finite(quantity: str, epoch: int, losses: Mapping[str, float], image_ids: Sequence[int], saved: str) -> str:
    """The message for a loss or a gradient (`quantity`) with NaN or infinity in it; `losses` by name."""
    values = ", ".join(f"{name} {value}" for name, value in losses.items())
    return (
        f"the {quantity} is not finite in epoch {epoch + 1} ({values}) on images "
        f"{list(image_ids)}; {saved} Lower optim.lr, lengthen schedule.warmup_steps, set amp=off, or leave such "
        "batches out with optim.on_nan=skip"
    )
