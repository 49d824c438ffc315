"""A program may have packages `models` and `runtime` of its own; where that cannot work, the error names both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT, python

ROOMS = ("models", "runtime", "trainer", "export")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regular installation: no editable finder serves the submodules."""
    folder = tmp_path_factory.mktemp("site")
    for room in ("isodet", *ROOMS):
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


def detects(checkpoint: Path, package: str = "runtime") -> str:
    return (
        f"import numpy as np; from {package} import Detector\n"
        f"print(len(Detector({str(checkpoint)!r}, device='cpu', threads=1)(np.zeros((64, 64, 3), np.uint8))), 'frame')"
    )


def own_package(folder: Path) -> None:
    folder.mkdir()
    (folder / "__init__.py").write_text("class Mine: pass\n")
    (folder / "mine.py").write_text("")


def test_a_package_models_of_the_programs_own(site, tmp_path, shapes_run):
    own_package(tmp_path / "models")
    assert program(site, tmp_path, detects(shapes_run / "best.pt")) == "1 frame"
    both = (
        "import trainer.config.train, models, models.mine, models.config.model\n"
        "print(models.Mine.__name__, models.config.model.__file__)"
    )
    assert program(site, tmp_path, both) == f"Mine {site / 'models' / 'config' / 'model.py'}"
    assert program(site, tmp_path, "import export.onnx_export; print('exports')") == "exports"


def test_a_package_runtime_of_the_programs_own(site, tmp_path, shapes_run):
    own_package(tmp_path / "models")
    own_package(tmp_path / "runtime")
    for model in ("best.onnx", "best.pt"):
        for package in ("isodet", "isodet.runtime"):
            assert program(site, tmp_path, detects(shapes_run / model, package)) == "1 frame"
    both = (
        "import isodet.runtime, isodet.runtime.streams.open, isodet.models, runtime.mine\n"
        "from isodet import BatcherError\n"
        "from isodet.runtime import batcher\n"
        "import runtime, runtime.streams.open as opened\n"
        "assert opened is isodet.runtime.streams.open and runtime is not isodet.runtime\n"
        "assert isodet.models.ModelConfig.__module__ == 'models.config.model'\n"
        "print(runtime.Mine.__name__, isodet.runtime.__file__, batcher.__name__)"
    )
    assert program(site, tmp_path, both) == f"Mine {site / 'runtime' / '__init__.py'} runtime.batcher"
    training = (
        "from isodet.trainer import TrainConfig; from isodet import trainer; import trainer as own, export.onnx_export"
    )
    assert program(site, tmp_path, f"{training}; print(own is trainer)") == "True"
    old = "import isodet.runtime, runtime.image"
    assert "No module named 'runtime.image'" in program(site, tmp_path, old)  # the program's, and it has none


def test_a_camera_beside_a_runtime_of_the_programs_own(site, tmp_path):
    """Cameras are read in a process of their own, which has to find isodet's modules too."""
    own_package(tmp_path / "runtime")
    code = (
        "import threading, cv2, numpy as np\n"
        "from isodet.runtime.streams.process import ProcessCapture\n"
        "writer = cv2.VideoWriter('clip.avi', cv2.VideoWriter.fourcc(*'MJPG'), 10.0, (96, 64))\n"
        "writer.write(np.zeros((64, 96, 3), np.uint8)); writer.release()\n"
        "print(ProcessCapture('clip.avi', 'clip', '', 'opencv', 60.0, threading.Event()).read().shape)"
    )
    assert program(site, tmp_path, code) == "(64, 96, 3)"


@pytest.mark.parametrize(
    ("hiding", "unaffected"),
    [(name, "best.onnx") for name in ("models.py", "models/detector.py", "models/backbones/__init__.py")]
    + [(name, None) for name in ("runtime.py", "runtime/detector.py", "runtime/streams/__init__.py")],
)
def test_what_hides_a_room_is_named_with_it(site, tmp_path, shapes_run, hiding, unaffected):
    hide(tmp_path, hiding)
    room = Path(hiding.partition("/")[0]).stem
    codes = {
        "models": (detects(shapes_run / "best.pt"), detects(shapes_run / "best.pt", "isodet"), "import isodet.models",
                   "from isodet.models import Deploy"),
        "runtime": ("from isodet import Detector", "import isodet.runtime.streams"),
    }  # fmt: skip
    for code in (*codes[room], "import trainer", "import export"):
        told = program(site, tmp_path, code)
        assert told.startswith("isodet.rooms.RoomError: ") and "rename yours" in told
        assert str(tmp_path / hiding) in told and str(site / room) in told
    if unaffected:
        assert program(site, tmp_path, detects(shapes_run / unaffected, "isodet")) == "1 frame"


def hide(folder: Path, module: str) -> None:
    (folder / module).parent.mkdir(parents=True, exist_ok=True)
    if "/" in module:
        (folder / module.split("/")[0] / "__init__.py").write_text("")
    (folder / module).write_text("")


@pytest.mark.parametrize("command", ROOMS[1:])
def test_commands_by_their_other_name(site, tmp_path, command):
    own_package(tmp_path / "runtime")
    code = f"import runpy; sys.argv[1:] = ['--help']; runpy.run_module('isodet.{command}', run_name='__main__')"
    assert "Traceback" not in program(site, tmp_path, code)
    done = python("-m", f"isodet.{command}", "--help")
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr


def test_the_same_modules_by_both_names(site, tmp_path):
    code = (
        "import isodet.runtime.detections, pickle, runtime.detections, isodet.trainer.config.train, trainer, isodet\n"
        "from isodet.export import OnnxOptions; import export\n"
        "assert isodet.runtime.detections is runtime.detections and isodet.trainer is trainer\n"
        "assert OnnxOptions is export.OnnxOptions and sys.modules['isodet.runtime'] is runtime\n"
        "assert runtime.__spec__.name == 'runtime' and isodet.trainer.config.train.__name__ == 'trainer.config.train'\n"
        "empty = pickle.loads(pickle.dumps(isodet.Detections.empty(['a'])))\n"
        "print(type(empty) is runtime.Detections, importlib.util.find_spec('isodet.runtime.none'))"
    )
    assert program(site, tmp_path, f"import importlib.util\n{code}") == "True None"
    missing = "import isodet.runtime.none"
    assert program(site, tmp_path, missing) == "ModuleNotFoundError: No module named 'isodet.runtime.none'"
