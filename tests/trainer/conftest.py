"""The data set of tests that train, and a copy of it to break."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trainer.recipes.shapes import make_shapes


@pytest.fixture(scope="module")
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shapes recipe at 64x64 px. The test file's `PICTURES` says how many pictures the recipe has,
    for training and for validation: what tests count (batches, epochs, names of files) depends on them.
    """
    train_images, val_images = request.module.PICTURES
    folder = tmp_path_factory.mktemp("tiny") / "data"
    make_shapes(folder, train_images=train_images, val_images=val_images, size_hw=(64, 64))
    return folder


@pytest.fixture
def own(data: Path, tmp_path: Path) -> Path:
    """A copy of `data` that the test may break."""
    return Path(shutil.copytree(data, tmp_path / "data"))
