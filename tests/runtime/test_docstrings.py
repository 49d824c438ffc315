"""The examples in docstrings of what users make are run."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

import runtime
from isodet.field_docs import field_docs
from runtime.card.card import Card
from runtime.images.image import write_image


@pytest.fixture
def street(tmp_path: Path, make_card_with: Callable[..., Card], pixel_model: Callable[[Card], onnx.ModelProto]) -> Path:
    """A folder with a model, a picture of a car, and a video of six frames of it."""
    card = make_card_with(classes=("person", "car", "bus"))
    (tmp_path / "best.onnx").write_bytes(pixel_model(card).SerializeToString())
    frame = np.full((32, 48, 3), (1, 250, 30), np.uint8)
    write_image(tmp_path / "street.png", frame)
    writer = cv2.VideoWriter(str(tmp_path / "street.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10.0, (48, 32))
    for _ in range(6):
        writer.write(frame)
    writer.release()
    return tmp_path


@pytest.mark.parametrize("name", ["BackendOptions", "Batcher", "Detections", "Detector", "StreamOptions"])
def test_the_examples_of_docstrings(name: str, street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(street)
    names = {name: getattr(runtime, name) for name in runtime.__all__}
    told: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for example in doctest.DocTestFinder().find(names[name], name, globs=names):
        runner.run(example, out=told.append)
    assert runner.tries >= 2 and not runner.failures, "".join(told)


@pytest.mark.parametrize("options", [runtime.BackendOptions, runtime.StreamOptions, runtime.Detections])
def test_every_field_is_explained_where_help_shows_it(options: type) -> None:
    documented = field_docs(options)
    assert set(documented) == set(options.__dataclass_fields__) and all(documented.values())
