"""The GPU's sequence without a GPU: rehearsed, and with stages that crash, hang or fill a disk; wheels for it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest import CaptureFixture, MonkeyPatch

from benchmarks.gpu import eager, machine, training
from benchmarks.gpu.attempts import attempt, until_one_fails
from benchmarks.gpu.carried import PART, install
from benchmarks.gpu.networks import TINY, network_config
from benchmarks.gpu.pack import PackError, complete, content, folders, pack, plan
from benchmarks.gpu.report import Report
from benchmarks.gpu.sequence import Conditions, run_stages
from benchmarks.gpu.stage import NotHere, Row, Setting, Stage
from benchmarks.gpu.stages import STAGES
from benchmarks.gpu.training_steps import Training
from runtime.backends.protocol import BackendError
from tests.processes import ROOT, python
from trainer.failures import TrainingError

HEAD = "import os, sys, time, subprocess\nfrom benchmarks.gpu.stage import NotHere, Row\n\ndef rows(setting):\n"
GOOD = '    yield Row("answer", 42.0, "points", least=40)\n'


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Report]:
    """Runs stages whose function bodies are given, each with its limit in seconds; the report."""

    def run(*stages: tuple[str, float], minutes: float = 2.0, out: Path | None = None) -> Report:
        made = []
        for i, (body, seconds) in enumerate(stages):
            (tmp_path / f"stage_{i}.py").write_text(HEAD + body)
            made.append(Stage(f"s{i}", f"stage_{i}", seconds, "made for a test"))
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        how = Conditions("cpu", True, tmp_path, time.monotonic() + 60 * minutes, environment)
        report = Report(out or tmp_path / "out", "command", True)
        run_stages(made, how, report)
        return report

    return run


def states(report: Report) -> list[tuple[str | None, int]]:
    return [(stage.state, len(stage.rows)) for stage in report.stages]


def test_rows_come_over_and_are_written(run: Callable[..., Report], tmp_path: Path) -> None:
    report = run((GOOD + '    yield Row("a|b", float("nan"), most=1)\n    yield Row("none", None, note="why")\n', 60))
    (stage,) = report.stages
    assert stage.state == "done" and stage.rows[0] == Row("answer", 42.0, "points", least=40)
    assert [row.reached for row in stage.rows] == [True, False, None]
    written = json.loads((tmp_path / "out" / "results.json").read_text(), parse_constant=pytest.fail)
    assert [row["value"] for row in written["stages"][0]["rows"]] == [42.0, "nan", None]
    lines = (tmp_path / "out" / "results.md").read_text().splitlines()
    assert "| | answer | 42 points | >= 40 | reached |  |" in lines
    assert all(line.count("|") == 7 for line in lines if line.startswith("|"))


def test_a_crash_costs_itself_and_is_named(run: Callable[..., Report]) -> None:
    report = run((GOOD + "    print('before')\n    import ctypes\n    ctypes.string_at(0)\n", 60), (GOOD, 60))
    assert states(report) == [("failed", 1), ("done", 1)]
    assert "SIGSEGV" in report.stages[0].why


def test_an_exit_and_an_error_are_told_in_one_line(run: Callable[..., Report], tmp_path: Path) -> None:
    report = run((GOOD + "    print('last words', flush=True)\n    os._exit(3)\n", 60),
                 (GOOD + "    raise ValueError('two\\nlines')\n", 60))  # fmt: skip
    assert states(report) == [("failed", 1), ("failed", 1)]
    assert report.stages[0].why == "its process ended with status 3; the last it said: last words"
    assert report.stages[1].why == "ValueError: two lines"
    assert "[s1] ValueError: two" in (tmp_path / "out" / "log.txt").read_text()


def test_what_hangs_is_ended_with_all_that_it_started(run: Callable[..., Report], tmp_path: Path) -> None:
    body = GOOD + (
        f"    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n    time.sleep(600)\n"
    )
    report = run((body, 6), (GOOD, 60))
    assert states(report) == [("over time", 1), ("done", 1)] and "killed after 6 s" in report.stages[0].why
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    assert not status.exists() or "\nState:\tZ" in status.read_text()  # nobody in this process waits for it


def test_a_missing_package_is_no_failure(run: Callable[..., Report]) -> None:
    report = run((GOOD + "    import no_such_package\n", 60), ("    raise NotHere('a reason')\n    yield\n", 60))
    assert states(report) == [("not here", 1), ("not here", 0)]
    assert report.stages[0].why == "No module named 'no_such_package'; it is not installed here"
    assert report.stages[1].why == "a reason"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_costs_no_result(run: Callable[..., Report], tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    out = tmp_path / "full"
    out.mkdir()
    for name in ("log.txt", ".results.partial.json", ".results.partial.md"):
        (out / name).symlink_to("/dev/full")
    full = "    open('/dev/full', 'w').write('x' * 100_000)\n"
    report = run((GOOD + "    print('something', flush=True)\n", 60), (GOOD + full, 60), out=out)
    assert states(report) == [("done", 1), ("failed", 1)]
    assert report.stages[1].why == "OSError: [Errno 28] No space left on device"
    assert "No space left on device" in report.trouble and "answer: 42 points" in capsys.readouterr().out


def test_without_time_nothing_is_begun(run: Callable[..., Report]) -> None:
    report = run((GOOD, 60), (GOOD, 60), minutes=0.02)
    assert states(report) == [("not run", 0), ("not run", 0)] and "s were left" in report.stages[1].why


def test_a_stage_knows_its_end(run: Callable[..., Report]) -> None:
    report = run(('    yield Row("left", setting.left())\n', 100))
    left = report.stages[0].rows[0].value
    assert isinstance(left, float) and 0 < left <= 97  # 3 s before it is killed


def command(*arguments: str, out: Path) -> subprocess.CompletedProcess[str]:
    words = ["-m", "benchmarks.gpu", *arguments, "--out", out, "--work", out / "work"]
    return python(*words, timeout=580, env={**os.environ, "OMP_NUM_THREADS": "1"})


def results(out: Path) -> dict[str, Any]:
    return {stage["stage"]: stage for stage in json.loads((out / "results.json").read_text())["stages"]}


@pytest.mark.timeout(590)
def test_the_rehearsal_runs_whole(tmp_path: Path) -> None:
    done = command("--device", "cpu", "--minutes", "9", "--carried", str(tmp_path / "none"), out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path)
    assert list(found) == [stage.name for stage in STAGES]
    for name in ("machine", "same-numbers", "training", "digits", "eager"):
        assert found[name]["state"] == "done" and found[name]["rows"], found[name]
    for name in ("cuda-memory", "engines", "onnxruntime", "video"):
        assert found[name]["state"] == "not here" and "no CUDA here" in found[name]["why"], found[name]
    missed = [row["what"] for stage in found.values() for row in stage["rows"] if row["reached"] is False]
    assert all("waits for the device" in what for what in missed)  # known, and in docs/benchmarks/gpu.md
    assert any("ATSS bf16 over torchvision FCOS as shipped" in row["what"] for row in found["training"]["rows"])


def test_where_there_is_no_gpu_every_stage_says_so_in_one_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    names = [stage.name for stage in STAGES if stage.name != "digits"]
    done = command("--device", "cuda", "--stages", *names, out=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in results(tmp_path).values():
        assert stage["state"] == "not here" and "\n" not in stage["why"], stage
        assert stage["why"].startswith(("no CUDA here: ", "this onnxruntime is built", "PyNvVideoCodec")), stage


def test_wrong_usage() -> None:
    for arguments in (["--stages", "nothing"], ["--minutes", "0"], ["--device", "tpu"]):
        done = python("-m", "benchmarks.gpu", *arguments)
        assert done.returncode == 2 and "error: " in done.stderr


# From here on: cards that are not as they should be
def test_a_driver_that_is_too_old_is_named_in_torchs_words(monkeypatch: MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\n  Please update")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(NotHere) as told:
        Setting("cuda", True, Path(), 0.0).require_cuda()
    assert str(told.value).startswith(
        "no CUDA here: The NVIDIA driver on your system is too old (found version 11040)."
    )
    assert "\n" not in str(told.value)


def test_a_busy_card_is_named(monkeypatch: MonkeyPatch) -> None:
    card = type("Card", (), {"name": "NVIDIA Test", "multi_processor_count": 132})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 10**9, 80 * 10**9))
    monkeypatch.setattr(machine, "nvidia_smi", lambda: ("580.1", 0.0))
    notes = [row.note for row in machine.card()]
    assert any(note.endswith("busy: what follows is not the card's own") for note in notes)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (79.9 * 10**9, 80 * 10**9))
    assert not any("busy" in row.note for row in machine.card())


def full(*args: Any, **kwargs: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def test_a_card_with_too_little_memory_ends_a_row_and_not_the_stage(monkeypatch: MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Training, "steps", full)
    monkeypatch.setattr(eager, "bare", full)
    setting = Setting("cpu", True, tmp_path, time.monotonic() + 600)
    config = network_config(TINY)
    assert [row.note for row in training.batches(setting, config, 1)] == ["does not fit into the memory"]
    others = (training.precisions, training.forms, training.against_torchvision)
    rows = [row for part in others for row in part(setting, config, 2)]
    rows += eager.over_bare(setting, config)  # of batches that grow, the first that does not fit is the last
    assert [row.note for row in rows] == ["does not fit into the memory"] * 6
    assert not any(row.value for row in rows)


def test_what_is_refused_or_has_no_time_is_a_row_and_a_fault_of_ours_is_not(tmp_path: Path) -> None:
    def refused(error: Exception, what: str) -> Iterator[Row]:
        yield Row(what, 1.0)
        raise error

    setting = Setting("cpu", True, tmp_path, time.monotonic() + 60)
    for error in (BackendError("no\ngraphs"), TrainingError("no\ngraphs"), torch._dynamo.exc.Unsupported("no\ngraphs")):
        rows = [*attempt(setting, "it", 1, partial(refused, error))]
        assert rows[0] == Row("it", 1.0) and rows[1].value is None and rows[1].note.startswith("no graphs")
    with pytest.raises(ValueError, match="ours"):
        list(attempt(setting, "it", 1, partial(refused, ValueError("ours"))))
    late = attempt(setting, "it", 600, partial(refused, ValueError("never asked")))
    given = [Row("a", 1.0), Row("b", 2.0)]
    assert [*until_one_fails([given, late, given])] == [*given, Row("it", None, note="no time left")]


def test_memory_over_many_frames_without_the_time_for_it(tmp_path: Path) -> None:
    (row,) = eager.flat(Setting("cpu", True, tmp_path, time.monotonic()), network_config(TINY))
    assert row.value is None and row.note == "no time left for 320"


# From here on: wheels that are packed here and joined there
LIMIT = 700
"""Bytes of a part."""


def wheel(folder: Path, name: str = "tiny", seed: int = 0) -> Path:
    """A wheel of one module, whose data do not compress."""
    if shutil.which("xz") is None:
        pytest.skip("packing needs xz")
    noise = base64.b85encode(np.random.default_rng(seed).bytes(1500)).decode()
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": f"NOISE = {noise!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return out


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder of a set that was cut."""
    pack("set", [wheel(tmp_path / "wheels")], tmp_path / "carry", LIMIT)
    return tmp_path / "carry"


def parts(carried: Path) -> list[Path]:
    return sorted(carried.glob("set-*/*.whl.xz.*"))


def imported(site: Path, code: str) -> str:
    """What a fresh Python prints."""
    done = python("-c", code, env={"PYTHONPATH": str(site)})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_parts_become_the_wheel_again_and_pip_installs_it(tmp_path: Path, packed: Path) -> None:
    found = parts(packed)
    assert len(found) >= 3 and all(PART.match(part.name) for part in found)
    assert [part.parent.name for part in found] == [f"set-{i}" for i in range(1, len(found) + 1)]
    assert all(part.stat().st_size <= LIMIT for part in found)
    site, notes = install(packed, tmp_path / "work" / "site")
    assert notes == ["carried tiny-1.0-py3-none-any.whl: installed"] and site is not None
    joined, original = tmp_path / "work" / "wheels" / "tiny-1.0-py3-none-any.whl", tmp_path / "wheels"
    assert content(joined) == content(original / joined.name) and joined.stat().st_size != original.stat().st_size
    assert imported(site, "import tiny; print(len(tiny.NOISE))") == "1875"


def test_a_set_of_small_wheels_is_one_folder(tmp_path: Path) -> None:
    wheels = [wheel(tmp_path / "wheels"), wheel(tmp_path / "wheels", "other", 1)]
    assert list(pack("set", wheels, tmp_path / "carry")) == ["set"]
    site, notes = install(tmp_path / "carry", tmp_path / "work" / "site")
    assert len(notes) == 2 and site is not None
    assert imported(site, "import tiny, other; print(tiny.NOISE != other.NOISE)") == "True"


def test_small_wheels_ride_with_the_last_part(tmp_path: Path) -> None:
    large, small = wheel(tmp_path / "wheels"), tmp_path / "wheels" / "notes-1.0-py3-none-any.whl"
    with zipfile.ZipFile(small, "w") as archive:
        archive.writestr("notes.txt", "a")
    pack("set", [large, small], tmp_path / "carry", LIMIT)
    assert (folders("set", tmp_path / "carry")[-1] / small.name).exists()


def test_it_knows_what_was_packed_already(tmp_path: Path, packed: Path) -> None:
    assert complete("set", packed) and not complete("other", packed)
    part = parts(packed)[1]
    part.write_bytes(b"x" + part.read_bytes()[1:])
    assert not complete("set", packed)
    pack("set", [wheel(tmp_path / "wheels")], packed, 10**6)
    assert complete("set", packed) and [folder.name for folder in folders("set", packed)] == ["set"]


def test_two_large_wheels_are_refused(tmp_path: Path) -> None:
    wheels = [wheel(tmp_path / "wheels"), wheel(tmp_path / "wheels", "other", 1)]
    with pytest.raises(PackError, match=r"expected one wheel over 0 MiB, got \['tiny.*', 'other.*'\]"):
        pack("set", wheels, tmp_path / "carry", LIMIT)


def only_line(carried: Path, tmp_path: Path) -> str:
    """The one note of an installation after which nothing is installed."""
    site, notes = install(carried, tmp_path / "work" / "site")
    assert site is None and len(notes) == 1
    assert not list((tmp_path / "work").glob("wheels/*"))
    return notes[0]


def test_a_part_that_is_not_there_yet(tmp_path: Path, packed: Path) -> None:
    count = len(parts(packed))
    parts(packed)[1].unlink()
    expected = f"carried tiny-1.0-py3-none-any.whl: 1 of its {count} parts are not here yet"
    assert only_line(packed, tmp_path) == expected
    pack("set", [wheel(tmp_path / "wheels")], packed, LIMIT)  # it comes with a later call
    assert install(packed, tmp_path / "work" / "site")[1] == ["carried tiny-1.0-py3-none-any.whl: installed"]


@pytest.mark.parametrize("damage", ["changed", "short", "empty"])
def test_a_damaged_part(tmp_path: Path, packed: Path, damage: str) -> None:
    part = parts(packed)[-1 if damage == "short" else 1]
    data = part.read_bytes()
    half = len(data) // 2
    part.write_bytes({"changed": data[:half] + bytes([data[half] ^ 255]) + data[half + 1 :], "short": data[:-20],
                      "empty": b""}[damage])  # fmt: skip
    assert "tiny-1.0-py3-none-any.whl: its parts do not make a whole: " in only_line(packed, tmp_path)


def test_a_part_of_another_wheel(tmp_path: Path, packed: Path) -> None:
    pack("set", [wheel(tmp_path / "others", seed=1)], tmp_path / "other", LIMIT)
    parts(packed)[1].write_bytes(parts(tmp_path / "other")[1].read_bytes())
    assert "its parts do not make a whole: " in only_line(packed, tmp_path)


def test_parts_of_two_packings(tmp_path: Path, packed: Path) -> None:
    count = len(parts(packed))
    first = parts(packed)[0]
    first.rename(first.with_name(first.name.replace(f"1of{count}", "1of9")))
    assert only_line(packed, tmp_path).endswith(f"parts of {count} and of 9: of two packings; carry them anew")


def test_a_wheel_that_pip_refuses_costs_only_itself(tmp_path: Path, packed: Path) -> None:
    (packed / "bad").mkdir()
    (packed / "bad" / "bad-1.0-cp27-none-any.whl").write_bytes(b"not a wheel")
    site, notes = install(packed, tmp_path / "work" / "site")
    assert site is not None and "carried tiny-1.0-py3-none-any.whl: installed" in notes
    assert [note for note in notes if note.startswith("carried bad-1.0-cp27-none-any.whl: pip refuses it: ERROR: ")]


def test_source_that_was_never_installed_has_a_version(tmp_path: Path) -> None:
    code = f"""
import sys
sys.path.append({str(ROOT)!r})
from pathlib import Path
from benchmarks.gpu.carried import name_source
from importlib.metadata import version
name_source(Path({str(ROOT)!r}), Path({str(tmp_path / "site")!r}))
print(version("isodet"))
"""
    # -S: without the packages that are installed here
    done = python("-S", "-c", code, env={"PYTHONPATH": str(tmp_path / "site")})
    assert f'version = "{done.stdout.strip()}"' in (ROOT / "pyproject.toml").read_text(), done.stderr


def test_the_plan_names_every_folder_once(tmp_path: Path) -> None:
    pack("rtx", [wheel(tmp_path / "wheels")], tmp_path, LIMIT)
    count = len(folders("rtx", tmp_path))
    text = plan(tmp_path)
    assert all(text.count(f"carry {tmp_path / f'rtx-{i}'}\n") == 1 for i in range(1, count + 1))
    assert f"{count + 1:>2}. carry {tmp_path / f'rtx-{count}'}\n    python3 -m benchmarks.gpu --stages engines" in text
