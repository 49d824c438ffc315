"""A plan of no real library with its sidecar, and a machine that has a GPU and a TensorRT of some version."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime.backends.trt.backend
from runtime.card.card import Card
from runtime.card.sidecar import sidecar_path, sidecar_text
from tests.fake_cuda import forget_cuda, put_in_fake_cuda
from tests.fake_trt import fake_trt

ENGINE = {
    "flavour": "tensorrt", "version": "10.13.3.9", "sm": [86], "gpu": "NVIDIA A10", "system": "linux-x86_64",
    "hardware_compatible": False, "version_compatible": False, "tf32": True, "profile": [2, 2, 4], "bytes": 0,
    "rebuild": "exporter trt best.pt --fp16 --engine tensorrt", "audit": {},
}  # fmt: skip


@pytest.fixture
def engine_file(tmp_path: Path, card: Card) -> Callable[..., Path]:
    """Writes a plan of no real library, with the sidecar of one that has these facts."""

    def write(name: str = "best.engine", content: bytes = b"ftrt and so on", **facts: Any) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        engine = {**ENGINE, "bytes": len(content), **facts}
        hashes = {"engine": hashlib.sha256(content).hexdigest()}
        its_card = replace(card, input_size_hw=(8, 8), kind="engine", engine=engine, hashes=hashes)
        sidecar_path(path).write_text(sidecar_text(its_card))
        return path

    return write


def pixels_as_boxes(images: np.ndarray) -> dict[str, np.ndarray]:
    """As many detections as the first pixel says, in every image; their boxes end where the second says."""
    count = images[:, 0, 0, 0]
    boxes = np.zeros((len(images), 2, 4), np.float32)
    boxes[..., 2:] = images[:, 0, 1, :1, None]
    scores = (np.arange(2) < count[:, None]) * np.float32(0.75)
    return {"num_dets": count[:, None], "boxes": boxes, "scores": scores, "labels": np.ones((len(images), 2))}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Puts a GPU and a TensorRT of some version into this machine; returns the module."""

    def install(version: str = "tensorrt-10.13", sm: int = 86, gpus: int = 1, **network: Any) -> Any:
        module = fake_trt(version, {"shape": (-1, 8, 8, 3), "profile": (2, 2, 4), **network}, pixels_as_boxes)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        put_in_fake_cuda(monkeypatch, sm)
        monkeypatch.setattr(runtime.backends.trt.backend, "cuda_device_count", lambda: gpus)
        monkeypatch.setattr(runtime.backends.trt.backend, "system", lambda: "linux-x86_64")
        return module

    yield install
    forget_cuda()  # the next one who asks gets the real one


def frames(*counts: int) -> list[np.ndarray]:
    pictures = []
    for count in counts:
        picture = np.zeros((8, 8, 3), np.uint8)
        picture[0, 0], picture[0, 1] = count, 4 + count
        pictures.append(picture)
    return pictures
