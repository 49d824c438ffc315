"""What every test stands on: calm threads, repeatable random examples, the golden data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# Before a test imports torch or OpenCV. Two OpenMP threads beside one busy process are many times slower
# than one thread, and test machines are small and shared.
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, max(1, (os.cpu_count() or 1) // 2))))

settings.register_profile(
    "isodet", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("isodet")

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="session", autouse=True)
def _autograd_before_everything() -> None:
    """A first backward pass. Where an ONNX export comes before it, autograd starts threads, and a process that is
    forked later (as tests of killed and of parallel trainings do) can compute no gradients.
    """
    import torch

    torch.ones(1, requires_grad=True).sum().backward()


def _golden_from() -> Callable[[str], Arrays]:
    folder = Path(os.environ.get("ISODET_GOLDEN") or Path(__file__).parent / "golden")
    cache: dict[str, Arrays] = {}

    def load(name: str) -> Arrays:
        if name not in cache:
            path = folder / f"{name}.npz"
            if not path.is_file():
                raise FileNotFoundError(
                    f"golden data: {path} is missing; ISODET_GOLDEN must name a folder with the files of tests/golden"
                )
            with np.load(path, allow_pickle=False) as archive:
                cache[name] = {key: archive[key] for key in archive.files}
        return cache[name]

    return load


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Arrays]:
    """`golden("assign_atss")` -> the arrays of that file, by name.

    Files come from tests/golden, or from the folder that the environment variable ISODET_GOLDEN names.
    A file that is not there is an error, never a skipped test.
    """
    return _golden_from()


@pytest.fixture
def golden_from() -> Callable[[], Callable[[str], Arrays]]:
    """Makes a fresh `golden`, so that a test can change the environment first."""
    return _golden_from


@pytest.fixture(scope="session")
def shapes_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the shapes recipe, trained once for all tests: its folder, with best.pt and best.onnx.

    Tests copy what they change.
    """
    import export
    from trainer.config_reader import read_config
    from trainer.loop import fit
    from trainer.recipes.shapes import make_shapes

    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root / "data")
    result = fit(read_config(root / "data" / "shapes.yaml"), runs=root / "runs", quiet=True)
    export.to_onnx(result.best)
    return result.run
