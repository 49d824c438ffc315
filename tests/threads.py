"""Work of several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    """Starts all of `work` at once. Returns their results in order; raises the first error of any."""
    results: list[Any] = [None] * len(work)
    errors: list[BaseException] = []
    together = threading.Barrier(len(work))

    def run(index: int) -> None:
        try:
            together.wait(60)
            results[index] = work[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]
    return results
