"""A server in a process of its own, started by the command, as a user would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np

from tests.processes import ROOT
from tests.runtime.cameras import until


class Served:
    """A server that runs. `client` keeps its connections; `log` is what went to stderr so far."""

    def __init__(self, process: subprocess.Popen[str], address: str, errors: Path) -> None:
        self.process, self.address, self._errors = process, address, errors
        self.client = httpx.Client(base_url=address, timeout=60)
        self.port = int(address.rpartition(":")[2])

    @property
    def log(self) -> str:
        return self._errors.read_text()

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def metric(self, line: str) -> float | None:
        """The value of the metric whose line begins so, with its labels; None where there is none."""
        lines = httpx.get(f"{self.address}/metrics").text.splitlines()
        return next((float(text.rpartition(" ")[2]) for text in lines if text.startswith(f"{line} ")), None)

    def model(self) -> dict[str, Any]:
        (model,) = self.client.get("/v1/models").json()["models"]
        return dict(model)

    def end(self) -> int:
        """SIGTERM, and the exit status."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(folder: Path, *words: object) -> Iterator[Served]:
    """`runtime serve` with these words, at a free port; its errors go to a file in `folder`."""
    errors = folder / "serve.log"
    command = [sys.executable, "-m", "runtime", "serve", *map(str, words), "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with errors.open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, cwd=folder)
    try:
        assert process.stdout is not None
        address = next((line.split()[-1] for line in process.stdout if line.startswith("serving at ")), None)
        assert address is not None, errors.read_text()
        served = Served(process, address, errors)
        try:
            yield served
        finally:
            served.client.close()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)
        process.stdout.close()


def picture(suffix: str = ".png", bgr: tuple[int, int, int] = (2, 255, 30), hw: tuple[int, int] = (64, 96)) -> bytes:
    """An encoded picture of one color, in which the tiny model finds label min(b, 2), score g / 255, a box of r."""
    done, data = cv2.imencode(suffix, np.full((*hw, 3), bgr, np.uint8))
    assert done
    return data.tobytes()


__all__ = ["Served", "picture", "serving", "until"]
