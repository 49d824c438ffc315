"""Measurements that may not come about: no time is left, the memory is too small, or a backend refuses."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator

import torch

from benchmarks.gpu.stage import Row, Setting, one_line
from runtime.backends.protocol import BackendError
from trainer.failures import TrainingError


def attempt(setting: Setting, what: str, seconds: float, rows: Callable[[str], Iterable[Row]]) -> Iterator[Row]:
    """The rows of `rows(what)`; a row without a value where less than `seconds` are left, and as the last one where the
    memory is too small or a backend, the trainer or torch.compile refuses.
    """
    if setting.left() < seconds:
        yield Row(what, None, note="no time left")
        return
    try:
        yield from rows(what)
        return
    except torch.OutOfMemoryError:
        why = "does not fit into the memory"
    except (BackendError, TrainingError, torch._dynamo.exc.TorchDynamoException) as error:
        why = one_line(error)
    free(setting)  # only here: the error held on to what the measurement had
    yield Row(what, None, note=why)


def until_one_fails(attempts: Iterable[Iterable[Row]]) -> Iterator[Row]:
    """The rows of `attempts`, smallest first, up to the first without a value: what is larger has no room either."""
    for rows in attempts:
        for row in rows:
            yield row
            if row.value is None:
                return


def free(setting: Setting) -> None:
    """Give the memory of what is gone back to the card."""
    gc.collect()
    if setting.device == "cuda":
        torch.cuda.empty_cache()
