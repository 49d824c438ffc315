"""What ends a training before its time, and the sentence that says what to do."""

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
"""What to do where a loader process could not send a batch, by the system's number for why."""


class LostBatch(IsodetError, RuntimeError):
    """A loader process made a batch that it could not send."""


def why_lost(error: Exception) -> str:
    """The reason and what to do, in a line, for the error that sending a batch raised."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    for known in _LOST:  # torch's errors have the number in their text only
        if os.strerror(known) in str(error):
            number = known
    return _LOST.get(number or 0, " ".join(f"{type(error).__name__}: {error}".split()))


class TrainingError(IsodetError, RuntimeError):
    """Training cannot go on; the message says where it stands and what to do."""


class Interrupted(KeyboardInterrupt):
    """Stopped by a signal after the state was saved; the message holds the command that goes on."""


@contextmanager
def dead_processes(saved: Callable[[], str]) -> Iterator[None]:
    """Within it, a loader process or a fellow that dies is a `TrainingError` with advice. `saved`: what last.pt holds.

    torch may raise from its SIGCHLD handler, wherever the main process happens to be, so the whole epoch stands
    in this block and not only the line that waits for a batch.
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
            raise  # Caught: an error in the work of a loader process, which lives
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
