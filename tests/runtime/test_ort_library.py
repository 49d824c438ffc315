"""ONNX Runtime: which build to install, where it is missing, does not load or is the wrong one; and no telemetry."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
from pytest import MonkeyPatch

from isodet.telemetry import SILENT
from runtime import Detector
from runtime.backends.ort import library as ort_library
from runtime.backends.ort.library import load_onnxruntime
from runtime.backends.protocol import BackendError
from runtime.images.image import write_image
from tests.processes import python

OnnxFile = Callable[..., Path]
CHOICE = "pip install 'isodet[cpu]' or, for an NVIDIA GPU, pip install 'isodet[gpu]'"
BOTH = (
    "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
    "pip uninstall -y onnxruntime onnxruntime-gpu && "
)
ABSENT = f"an ONNX file needs ONNX Runtime; it is not installed: {CHOICE} ("


def installed(monkeypatch: MonkeyPatch, *names: str) -> None:
    """pip's records hold these builds of ONNX Runtime and no other."""

    def version(name: str) -> str:
        if name not in names:
            raise PackageNotFoundError(name)
        return "1.31.1"

    monkeypatch.setattr(ort_library, "version", version)


@pytest.fixture
def neither(monkeypatch: MonkeyPatch) -> None:
    """An environment without ONNX Runtime, as a base install is."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "runtime.backends.ort.backend", raising=False)
    installed(monkeypatch)


@pytest.mark.usefixtures("neither")
def test_without_onnxruntime_the_error_names_both_extras(onnx_file: OnnxFile) -> None:
    for _ in range(2):  # a failed import leaves nothing behind that a second call would find
        with pytest.raises(BackendError) as raised:
            Detector(onnx_file())
        assert str(raised.value).startswith(ABSENT) and "\n" not in str(raised.value)


WITHOUT_ONNXRUNTIME = """
import importlib.metadata, runpy, sys
sys.modules["onnxruntime"] = None
found = importlib.metadata.version
def version(name):
    if name.startswith("onnxruntime"):
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version
sys.argv[0] = "runtime"
runpy.run_module("runtime", run_name="__main__")
"""


@pytest.mark.parametrize("command", ["detect", "bench"])
def test_without_onnxruntime_the_commands_say_so_in_one_line(command: str, onnx_file: OnnxFile, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    words = [tmp_path / "a.png", "--model", onnx_file()] if command == "detect" else [onnx_file()]
    done = python("-c", WITHOUT_ONNXRUNTIME, command, *words)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"runtime {command}: error: {ABSENT}")  # below a progress bar's line


def test_what_needs_no_onnxruntime_does_not_load_it() -> None:
    """Engines and what NVIDIA's driver is asked; `isodet[trt]` brings no build."""
    code = (
        "import sys\nsys.modules['onnxruntime'] = None\n"
        "import runtime.backends.trt.backend, runtime.backends.cuda.devices"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (("onnxruntime",), "onnxruntime is installed and does not load: pip uninstall -y onnxruntime && "),
        (("onnxruntime", "onnxruntime-gpu"), BOTH),
    ],
)
def test_a_broken_build_is_to_be_removed_first(monkeypatch: MonkeyPatch, names: tuple[str, ...], advice: str) -> None:
    installed(monkeypatch, *names)
    left_behind = ModuleType("onnxruntime")  # an empty folder, after one of two builds took the other's files with it
    for module in (None, left_behind):
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        with pytest.raises(BackendError) as raised:
            ort_library.load_onnxruntime()
        assert f"ONNX Runtime; {advice}{CHOICE} (" in str(raised.value)


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        ((), "this onnxruntime is built for the CPU: pip uninstall -y onnxruntime && "),
        (("onnxruntime",), "this onnxruntime is built for the CPU: pip uninstall -y onnxruntime && "),
        (("onnxruntime", "onnxruntime-gpu"), BOTH),
    ],
)
def test_a_gpu_that_the_build_does_not_know_is_an_error_that_names_the_other_build(
    onnx_file: OnnxFile, monkeypatch: MonkeyPatch, names: tuple[str, ...], advice: str
) -> None:
    installed(monkeypatch, *names)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for device in ("cuda", "cuda:1"):
        with pytest.raises(BackendError) as raised:
            Detector(onnx_file(), device=device)
        assert str(raised.value) == f"device {device}: {advice}pip install 'isodet[gpu]'"
    assert Detector(onnx_file()).runs_on.endswith("on cpu (this onnxruntime is built for the CPU)")


def test_the_records_of_pip_are_asked() -> None:
    """The environment that runs this has one build; with both, its answers would be those of neither."""
    assert len(ort_library.installed_builds()) == 1


# Nothing is sent to the makers of the libraries that isodet loads, unless the user says so


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
def test_an_onnxruntime_imported_before_is_told(asked: str, calls: int, monkeypatch: MonkeyPatch) -> None:
    told = []
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", asked)
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: told.append(True))
    load_onnxruntime()
    assert len(told) == calls
