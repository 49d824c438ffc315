"""Nothing is sent to the makers of the libraries that isodet loads, unless the user says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from isodet.telemetry import SILENT
from runtime.backends.ort.library import load_onnxruntime
from tests.processes import python

OnnxFile = Callable[..., Path]


def started(code: str, home: Path, **variables: str) -> str:
    """What `code` prints, in a process with `home` as its home folder and none of the variables of `SILENT`."""
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in (*SILENT, "XDG_CACHE_HOME")}
    done = python("-c", code, env={**kept, "HOME": str(home), **variables})
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_detector_leaves_no_device_id_and_no_queue_of_events(onnx_file: OnnxFile, tmp_path: Path) -> None:
    code = (
        "import numpy as np\nfrom runtime import Detector\n"
        f"print(len(Detector({str(onnx_file())!r})(np.zeros((64, 64, 3), np.uint8))))"
    )
    assert started(code, tmp_path / "home").strip() == "1"
    assert files(tmp_path / "home") == []


@pytest.mark.parametrize("room", ["runtime", "trainer.config.train", "export.onnx_export"])
def test_every_room_silences_them_before_they_are_imported(room: str, tmp_path: Path) -> None:
    code = f"import os, sys, {room}\nprint('onnxruntime' in sys.modules, *(os.environ[n] for n in {tuple(SILENT)!r}))"
    assert started(code, tmp_path / "home").split() == ["False", *SILENT.values()]


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    code = "import os, runtime\nprint(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert started(code, tmp_path / "home", ORT_DISABLE_TELEMETRY="0").strip() == "0"


@pytest.mark.parametrize(("asked", "calls"), [("1", 1), ("0", 0)])
def test_an_onnxruntime_imported_before_is_told(asked: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", asked)
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: told.append(True))
    load_onnxruntime()
    assert len(told) == calls
