"""A program may have a package `models` of its own; where that cannot work, the error names both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regular installation: no editable finder serves the submodules."""
    folder = tmp_path_factory.mktemp("site")
    for room in ("isodet", "models", "runtime", "trainer", "export"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def program(site: Path, app: Path, code: str) -> str:
    """The last line of what a script in `app` says, with isodet in `site` behind the script's folder."""
    start = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
        f"sys.path[:] = [{str(app)!r}, *(p for p in sys.path if p not in ('', {str(ROOT)!r})), {str(site)!r}]\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, cwd=app, env=environment, check=False
    )
    return (done.stdout + done.stderr).strip().splitlines()[-1]


def detects(checkpoint: Path) -> str:
    return (
        "import numpy as np; from runtime import Detector\n"
        f"print(len(Detector({str(checkpoint)!r}, device='cpu', threads=1)(np.zeros((64, 64, 3), np.uint8))), 'frame')"
    )


def test_a_package_models_of_the_programs_own(site: Path, tmp_path: Path, shapes_run: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("class Mine: pass\n")
    (tmp_path / "models" / "mine.py").write_text("")
    assert program(site, tmp_path, detects(shapes_run / "best.pt")) == "1 frame"
    both = (
        "import trainer.config.train, models, models.mine, models.config.model\n"
        "print(models.Mine.__name__, models.config.model.__file__)"
    )
    assert program(site, tmp_path, both) == f"Mine {site / 'models' / 'config' / 'model.py'}"
    assert program(site, tmp_path, "import export.onnx_export; print('exports')") == "exports"


@pytest.mark.parametrize("hiding", ["models.py", "models/detector.py", "models/backbones/__init__.py"])
def test_what_hides_ours_is_named_with_it(site: Path, tmp_path: Path, shapes_run: Path, hiding: str) -> None:
    (tmp_path / hiding).parent.mkdir(parents=True, exist_ok=True)
    if hiding != "models.py":
        (tmp_path / "models" / "__init__.py").write_text("")
    (tmp_path / hiding).write_text("")
    for code in (detects(shapes_run / "best.pt"), "import trainer", "import export"):
        told = program(site, tmp_path, code)
        assert told.startswith("runtime.rooms.RoomError: ") and "rename yours" in told
        assert str(tmp_path / hiding) in told and str(site / "models") in told


@pytest.mark.parametrize("hiding", ["runtime.py", "runtime/__init__.py"])
def test_a_runtime_of_the_programs_own_is_named_with_ours(site: Path, tmp_path: Path, hiding: str) -> None:
    (tmp_path / hiding).parent.mkdir(exist_ok=True)
    (tmp_path / hiding).write_text("")
    for room in ("trainer", "export"):
        told = program(site, tmp_path, f"import {room}")
        assert str(tmp_path / hiding) in told and str(site / "runtime") in told and f"which {room} needs" in told
