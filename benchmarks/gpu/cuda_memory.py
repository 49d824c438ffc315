"""The tests that are marked `gpu`: the CUDA code of the runtime on the real driver."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.stage import NotHere, Row, Setting, one_line

ROOT = Path(__file__).parents[2]
NEEDED = ("pytest", "pytest_timeout", "hypothesis")


def rows(setting: Setting) -> Iterator[Row]:
    setting.require_cuda()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise NotHere(f"the tests need {', '.join(missing)}, not installed here")
    results = setting.work / "gpu-tests.xml"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/gpu", "-q", "-p", "no:cacheprovider",
               "--timeout", "60", "--junitxml", str(results)]  # fmt: skip
    said = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    print(said.stdout + said.stderr)
    if not results.exists():
        raise RuntimeError(f"pytest ended with status {said.returncode}: {' '.join(said.stdout.split())[-200:]}")
    yield from outcomes(results)


def outcomes(results: Path) -> Iterator[Row]:
    """Counts, and a row for each test that did not pass, of a JUnit file."""
    cases = list(ElementTree.parse(results).iter("testcase"))
    bad = [
        (case, trouble) for case in cases for kind in ("failure", "error") if (trouble := case.find(kind)) is not None
    ]
    skipped = [case for case in cases if case.find("skipped") is not None]
    yield Row("tests marked gpu: passed", len(cases) - len({id(case) for case, _ in bad}) - len(skipped), least=1)
    yield Row("tests marked gpu: failed", len(bad), most=0)
    for case, trouble in bad:
        yield Row(case.get("name", "?"), "failed", note=one_line(trouble.get("message") or ""))
    for case in skipped:
        reason = case.find("skipped")
        yield Row(case.get("name", "?"), "skipped", note=(reason.get("message") or "") if reason is not None else "")
