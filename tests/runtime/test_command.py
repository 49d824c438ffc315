from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from pytest import CaptureFixture, LogCaptureFixture, MonkeyPatch

import runtime
from runtime.__main__ import main
from runtime.commands.arguments import command_parser, count, flag
from runtime.commands.shared import exit_status, require_arguments
from runtime.images.image import write_image
from runtime.runs import RunsError
from tests.processes import python
from tests.runtime.as_found import coco_json

OnnxFile = Callable[..., Path]
Files = Callable[..., tuple[Path, Path]]


def test_importing_runtime_is_light() -> None:
    done = python(
        "-c",
        "import sys, runtime, runtime.detector, runtime.evaluation.evaluate, runtime.commands.detect_run\n"
        "import runtime.bench.bench, runtime.__main__\n"
        "heavy = {'torch', 'torchvision', 'onnxruntime', 'onnx', 'pycocotools', 'tensorrt', 'matplotlib', 'models'}\n"
        "print(sorted(heavy & set(sys.modules)))",
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("problem", "advice"),
    [
        ("libGL.so.1: cannot open shared object file", "swap it for the build without them: .*opencv-python-headless"),
        ("No module named 'cv2'", "pip install opencv-python-headless"),
    ],
)
def test_a_failing_cv2_is_turned_into_advice(tmp_path: Path, problem: str, advice: str) -> None:
    (tmp_path / "cv2.py").write_text(f"raise ImportError({problem!r})")
    done = python("-c", "import runtime", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1 and problem in done.stderr
    assert re.search(f"ImportError: cannot import cv2 .*{advice}", done.stderr)


def test_wrong_usage_exits_with_2(capsys: CaptureFixture[str]) -> None:
    for argv in (
        [], ["fly"], ["detect"], ["detect", "a.jpg", "--threshold", "2"], ["bench", "a.onnx", "--batch", "0"],
        ["bench", "a.onnx", "--frame", "7"], ["bench", "a", "--seconds", "-1"], ["eval", "a.onnx", "b.onnx"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as exit_:
            main(argv)
        assert exit_.value.code == 2, argv
    for argv in (["--help"], ["detect", "--help"], ["bench", "--help"], ["eval", "--help"]):
        with pytest.raises(SystemExit) as exit_:
            main(argv)
        assert exit_.value.code == 0 and "example" in capsys.readouterr().out


def test_failed_work_exits_with_1_and_one_line(
    onnx_file: OnnxFile, tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = str(onnx_file())
    write_image(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07")
    (tmp_path / "bad.json").write_text("{")
    for argv, message in (
        (["detect", "gone.jpg", "--model", model], "gone.jpg: no such file or folder"),
        (["detect", "a.png", "--model", "gone.onnx"], "gone.onnx: no such model file"),
        (["detect", "a.png", "--model", "bad.onnx"], "bad.onnx: not an ONNX model"),
        (["detect", "a.png"], "no file was named"),
        (["detect", "a.png", "--model", model, "--device", "gpu"], "device: expected"),
        (["detect", "a.png", "--model", model, "--out", "."], "overwrite"),
        (["eval", model], "its card names no validation data"),
        (["bench", model, "--picture", "gone.jpg"], "gone.jpg: no such picture"),
        (["eval", model, "--annotations", "gone.json", "--images", "."], "gone.json: no such annotation file"),
        (["eval", model, "--annotations", "bad.json", "--images", "."], "bad.json: not valid JSON"),
    ):
        assert main([*argv, "--quiet"]) == 1, argv
        error = capsys.readouterr().err.strip()
        assert error.startswith(f"runtime {argv[0]}: error: ") and message in error and "\n" not in error


def test_detect(onnx_file: OnnxFile, tmp_path: Path, monkeypatch: MonkeyPatch, capsys: CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "one").mkdir(parents=True)
    onnx_file().rename(tmp_path / "runs" / "one" / "best.onnx")
    (tmp_path / "photos").mkdir()
    for i in range(2):
        write_image(tmp_path / "photos" / f"{i}.png", np.full((40, 40, 3), (1, 250, 20), np.uint8))
    (tmp_path / "photos" / "2.png").write_bytes(b"")
    assert main(["detect", "photos", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "runs/one/best.onnx (the newest run's)" in printed.out
    assert "4 detections in 2 frames, 1 unreadable pictures skipped" in printed.out
    assert "wrote detections\n" in printed.out and "wrote detections/photos.jsonl" in printed.out
    assert "2.png: the file is empty (skipped)" in printed.err
    assert sorted(p.name for p in Path("detections").iterdir()) == ["0.png", "1.png", "photos.jsonl"]
    assert main(["detect", "photos/0.png", "--no-save", "--json", "x/a.jsonl", "--threshold", "0.9"]) == 0
    assert len(json.loads(Path("x/a.jsonl").read_text())["detections"]) == 1


def test_what_auto_chose_is_told(onnx_file: OnnxFile, caplog: LogCaptureFixture) -> None:
    """By the command, which says it on stderr; an application hears it from its own logging, or not at all."""
    path = onnx_file()
    argv = ["bench", str(path), "--iterations", "1", "--warmup", "0", "--frame", "8,8", "--quiet"]
    assert main(argv) == 0 and main([*argv, "--device", "cpu"]) == 0
    assert caplog.messages == [f"{path}: {runtime.Detector(path).runs_on}"]
    done = python("-m", "runtime", *argv)
    assert done.stderr.startswith(f"INFO: {path}: ONNX Runtime ") and "(" in done.stderr


def test_bench_and_eval(onnx_file: OnnxFile, coco_files: Files, tmp_path: Path, capsys: CaptureFixture[str]) -> None:
    model = str(onnx_file())
    argv = ["bench", model, "--batch", "1,2", "--frame", "20,30", "--iterations", "3", "--json", f"{tmp_path}/b.json"]
    assert main([*argv, "--device", "cpu", "--threads", "1", "--quiet"]) == 0
    assert "end to end" in capsys.readouterr().out and len(json.loads((tmp_path / "b.json").read_text())["rows"]) == 12

    rows = [(1, 8, [0.0, 0, 20, 20]), (1, 8, [5.0, 5, 5, 5]), (1, 8, [5.0, 5, 0, 5])]
    annotations, images = coco_files(coco_json({1: (32, 48)}, {3: "cat", 8: "bee", 9: "ant"}, rows))
    write_image(images / "1.png", np.full((32, 48, 3), (1, 204, 20), np.uint8))
    argv = ["eval", model, "--annotations", str(annotations), "--images", str(images)]
    assert main([*argv, "--json", str(tmp_path / "e.json"), "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "mAP" in printed.out and "1 box with zero or negative" in printed.err
    metrics = json.loads((tmp_path / "e.json").read_text())
    assert metrics["map"] == pytest.approx(100) and metrics["per_class"] == {"ant": None, "bee": 100, "cat": None}


def test_python_m_runtime_gives_the_exit_status() -> None:
    for argv, status in ((["--help"], 0), ([], 2), (["detect", "gone.jpg", "--model", "gone.onnx"], 1)):
        done = python("-m", "runtime", *argv)
        assert done.returncode == status and "Traceback" not in done.stderr


# From here on: what the three commands share
def status_of(error: BaseException | None) -> int:
    def work(arguments: argparse.Namespace) -> int:
        if error is not None:
            raise error
        return 0

    return exit_status(argparse.Namespace(command="fit", run=work), "trainer", "train", "stopped; resume it")


class Foreign(RuntimeError):
    """As a library raises it."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RunsError("no\n  file"), "trainer fit: error: no file"),
        (OSError(28, "No space left"), "trainer fit: error: [Errno 28] No space left"),
        (KeyboardInterrupt(), "stopped; resume it"),
        (
            ModuleNotFoundError("x", name="yaml"),
            "trainer fit: error: needs the package 'yaml': pip install 'isodet[train]'",
        ),
    ],
)
def test_expected_errors_are_one_line(error: BaseException, line: str, capsys: CaptureFixture[str]) -> None:
    assert status_of(error) == 1
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    "error", [Foreign("CUDA error"), KeyError("x"), ModuleNotFoundError("trainer.gone", name="trainer.gone")]
)
def test_what_a_bug_report_needs_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        status_of(error)


def test_done_is_zero(capsys: CaptureFixture[str]) -> None:
    assert status_of(None) == 0
    assert capsys.readouterr() == ("", "")


def test_no_command_shows_them_all(capsys: CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(epilog="an example")
    assert require_arguments(parser, ["fit"]) == ["fit"]
    with pytest.raises(SystemExit, match="2"):
        require_arguments(parser, [])
    assert "an example" in capsys.readouterr().err


# From here on: commands that are dataclasses
SEEN: list[object] = []


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """Do nothing."""

    def run(self) -> int:
        SEEN.append(self)
        return 0


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How it is read.

    every: each n-th only
    speed: slow at first
    secret: not for the command line
    """

    every: int = 1
    speed: float | None = None
    secret: int = 3

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"Reading.every: expected 1 or more, got {self.every}")


@dataclass(frozen=True, kw_only=True)
class Quick:
    """fast: hurry

    of the base: 100 % sure
    """

    fast: bool = False


@dataclass(frozen=True, kw_only=True)
class Work(Quick):
    """Do some work.

    More of it.

    files: what to read
    kind: of the work
    sizes: some sizes
    size_hw: the size
    names: one each (default: none)
    check: look at them, to be sure

    examples:
      program work a b
    """

    files: Annotated[tuple[Path, ...], flag("files")]
    kind: Literal["plain", "fancy"] = "plain"
    sizes: tuple[int, ...] = (1, 8)
    size_hw: Annotated[tuple[int, int] | None, flag("--size", metavar="H,W")] = None
    names: Annotated[tuple[str, ...], flag("--name", action="append")] = ()
    reading: Annotated[Reading, {"every": flag(type=int), "speed": flag("--pace")}, "reading"] = Reading(secret=5)
    check: bool = True
    workers: Annotated[int | None, flag(type=count)] = None
    how: Annotated[Literal["by hand", "by foot"] | None, flag(either={
        "--hand": ("by hand", "manually"), "--foot": ("by foot", "slowly"),
    })] = None  # fmt: skip

    def run(self) -> int:
        SEEN.append(self)
        return 7


def run(*argv: str) -> int:
    commands: dict[str, type] = {"work": Work, "nothing": Nothing}
    arguments = command_parser("program", "What it is for.\n\nexamples:\n  program work", commands).parse_args(argv)
    return int(arguments.run(arguments))


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        ([], {}),
        (["--kind", "fancy", "--sizes", "2,4,6"], {"kind": "fancy", "sizes": (2, 4, 6)}),
        (["--size", "3,4", "--no-check", "--fast"], {"size_hw": (3, 4), "check": False, "fast": True}),
        (["--name", "a", "--name", "b,c"], {"names": ("a", "b,c")}),
        (["--every", "2", "--pace", "0.5"], {"reading": Reading(every=2, speed=0.5, secret=5)}),
        (["--foot", "--workers", "3"], {"how": "by foot", "workers": 3}),
    ],
)  # fmt: skip
def test_words_become_the_fields_and_the_rest_keeps_its_default(argv: list[str], values: dict[str, object]) -> None:
    assert run("work", "a", "b", *argv) == 7
    assert SEEN.pop() == replace(Work(files=(Path("a"), Path("b"))), **values)  # type: ignore[arg-type]


def test_a_command_without_fields() -> None:
    assert run("nothing") == 0 and SEEN.pop() == Nothing()


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ([], "the following arguments are required: files"),
        (["a", "--kind", "fanci"], "argument --kind: expected plain, fancy; got 'fanci'; did you mean 'fancy'?"),
        (["a", "--kind", "?"], "argument --kind: expected plain, fancy; got '?'\n"),
        (["a", "--sizes", "1,,2"], "argument --sizes: expected whole numbers with commas between, got '1,,2'"),
        (["a", "--size", "1,2,3"], "argument --size: expected 2 whole numbers with commas between, got '1,2,3'"),
        (["a", "--pace", "x"], "argument --pace: expected a number, got 'x'"),
        (["a", "--every", "0"], "argument --every: expected 1 or more, got 0"),  # the dataclass's own error
        (["a", "--workers", "0"], "argument --workers: expected a whole number of at least 1, got '0'"),
        (["a", "--hand", "--foot"], "argument --foot: not allowed with argument --hand"),
        (["a", "--secret", "1"], "unrecognized arguments: --secret"),
    ],
)
def test_wrong_words_end_with_2_and_name_the_flag(argv: list[str], error: str, capsys: CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("work", *argv)
    assert stop.value.code == 2 and error in capsys.readouterr().err and not SEEN


def test_the_docstring_is_the_help(capsys: CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("work", "--help")
    text = capsys.readouterr().out
    for line in (
        "[--hand | --foot]", "\nDo some work.\n\nMore of it.\n", "--kind {plain,fancy}  of the work (default: plain)",
        "some sizes (default: 1,8)", "one each (default: none)\n", "look at them, to be sure\n",
        "\nreading:\n  --every EVERY", "each n-th only (default: 1)", "slow at first\n", "--fast ",
        "\nexamples:\n  program work a b\n\nof the base: 100 % sure\n",
    ):  # fmt: skip
        assert line in text, line
    assert "secret" not in text and text.index("--kind") < text.index("--fast")
    with pytest.raises(SystemExit):
        run("--help")
    text = capsys.readouterr().out
    assert "What it is for." in text and "do some work\n" in text and text.endswith("examples:\n  program work\n")
