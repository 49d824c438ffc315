"""Exporting where no ONNX Runtime is installed: refused before the long work, in one line that says what to install."""

from __future__ import annotations

import sys

import pytest

import export
from export.__main__ import main
from export.verification.bisect import bisect
from runtime.backends.ort import library as ort_library
from runtime.backends.protocol import BackendError
from tests.processes import python

ADVICE = (
    r"an ONNX file needs ONNX Runtime; it is not installed: pip install 'isodet\[cpu\]' or, for an NVIDIA GPU, pip "
)


@pytest.fixture(autouse=True)
def _neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `isodet[export]` alone is: it brings no build."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "runtime.backends.ort.backend", raising=False)
    monkeypatch.setattr(ort_library, "installed_builds", lambda: ())


def test_nothing_is_exported_that_cannot_be_run(shapes_run, tmp_path):
    lines: list[str] = []
    for gate in (export.Gate(), export.Gate(verify=False)):
        with pytest.raises(export.ExportError, match=f"^nothing is exported that did not run: {ADVICE}"):
            export.to_onnx(shapes_run / "best.pt", tmp_path / "a.onnx", gate=gate, say=lines.append)
    assert not lines and not list(tmp_path.iterdir())


def test_nothing_is_verified_or_bisected(shapes_run, monkeypatch):
    for work in ("verify._score", "bisect.float_graphs"):
        monkeypatch.setattr(f"export.verification.{work}", lambda *_: pytest.fail("the long work was begun"))
    with pytest.raises(BackendError, match=f"^{ADVICE}"):
        export.verify([shapes_run / "best.onnx"], against=shapes_run / "best.pt")
    with pytest.raises(BackendError, match=f"^{ADVICE}"):
        bisect(shapes_run / "best.onnx", shapes_run / "best.pt")


@pytest.mark.parametrize("command", ["onnx", "verify", "bisect"])
def test_the_command_says_so(command, shapes_run, capsys):
    file = {"onnx": "best.pt"}.get(command, "best.onnx")
    assert main([command, str(shapes_run / file)]) == 1
    said = capsys.readouterr().err
    assert f"exporter {command}: error: " in said and said.splitlines()[-1].count("pip install 'isodet[cpu]'") == 1


def test_an_engine_can_be_built_of_a_graph_that_was_verified_elsewhere():
    """Nothing on the way from an ONNX file to an engine loads ONNX Runtime; `isodet[export,trt]` is enough."""
    code = (
        "import sys\nsys.modules['onnxruntime'] = None\n"
        "import export.engine_export, export.engine.verify, export.audit.audit, export.verification.targets\n"
        "import export.verification.verify, export.verification.bisect"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
