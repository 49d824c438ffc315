"""Stand-ins for webcams, for the processes that read them."""

from __future__ import annotations

import os
import signal
import threading
import time

import cv2
import numpy as np

from runtime.images.image import Image

WELL, OPENING_HANGS, READING_HANGS, CRASHES, ABSENT = range(5)
"""Their numbers. READING_HANGS and CRASHES do so after three frames."""


class Webcam:
    def __init__(self, number: int) -> None:
        self._number, self._reads = number, 0
        if number == OPENING_HANGS:
            threading.Event().wait()

    def isOpened(self) -> bool:
        return self._number != ABSENT

    def get(self, prop: int) -> float:
        return -1.0  # as of a device that does not know

    def read(self, image: Image | None = None) -> tuple[bool, Image]:
        """A picture that holds the number of this process."""
        if self._reads == 3 and self._number == READING_HANGS:
            threading.Event().wait()
        if self._reads == 3 and self._number == CRASHES:
            os.kill(os.getpid(), signal.SIGSEGV)
        self._reads += 1
        time.sleep(0.005)
        picture = np.zeros((64, 96, 3), np.uint8) if image is None else image
        picture[0, :4, 0] = list(os.getpid().to_bytes(4, "big"))
        return True, picture

    def grab(self) -> bool:
        return True

    def release(self) -> None:
        return


def process(image: Image) -> int:
    """Which process made the picture."""
    return int.from_bytes(bytes(image[0, :4, 0].tolist()), "big")


def plug_in() -> None:
    """From here on, OpenCV opens these webcams in this process, and nothing else."""
    cv2.VideoCapture = Webcam  # type: ignore[assignment, misc]
