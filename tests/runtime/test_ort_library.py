"""Which of ONNX Runtime's two builds to install, said where it is missing, does not load or is the wrong one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest

from runtime import Detector
from runtime.__main__ import main
from runtime.backends.ort import library as ort_library
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


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """pip's records hold these builds of ONNX Runtime and no other."""

    def version(name: str) -> str:
        if name not in names:
            raise PackageNotFoundError(name)
        return "1.31.1"

    monkeypatch.setattr(ort_library, "version", version)


def told(stderr: str, line: str) -> bool:
    """Whether the last line, below a progress bar's, begins like this, and is no traceback's."""
    return stderr.splitlines()[-1].startswith(line) and "Traceback" not in stderr


@pytest.fixture
def neither(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.usefixtures("neither")
@pytest.mark.parametrize("command", ["detect", "bench"])
def test_the_command_says_so_in_one_line(
    command: str, onnx_file: OnnxFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, picture = str(onnx_file()), tmp_path / "a.png"
    write_image(picture, np.zeros((9, 9, 3), np.uint8))
    argv = ["detect", str(picture), "--model", model] if command == "detect" else ["bench", model]
    assert main(argv) == 1
    assert told(capsys.readouterr().err, f"runtime {command}: error: {ABSENT}")


def test_python_m_runtime_without_onnxruntime(onnx_file: OnnxFile, tmp_path: Path) -> None:
    """In a process of its own, which finds no such package at all."""
    write_image(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    code = (
        "import importlib.metadata, runpy, sys\n"
        "sys.modules['onnxruntime'] = None\n"
        "found = importlib.metadata.version\n"
        "def version(name):\n"
        "    if name.startswith('onnxruntime'):\n"
        "        raise importlib.metadata.PackageNotFoundError(name)\n"
        "    return found(name)\n"
        "importlib.metadata.version = version\n"
        "sys.argv[0] = 'runtime'\n"
        "runpy.run_module('runtime', run_name='__main__')\n"
    )
    done = python("-c", code, "detect", tmp_path / "a.png", "--model", onnx_file())
    assert done.returncode == 1 and told(done.stderr, f"runtime detect: error: {ABSENT}"), done.stderr


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
def test_a_build_that_does_not_load_is_to_be_removed_first(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], advice: str
) -> None:
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
    onnx_file: OnnxFile, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], advice: str
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
