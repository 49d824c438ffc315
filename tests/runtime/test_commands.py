"""What the three commands share: which errors become one line, and which keep their traceback."""

from __future__ import annotations

import argparse

import pytest

from runtime.commands.shared import exit_status, require_arguments
from runtime.runs import RunsError


def run(error: BaseException | None) -> int:
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
            ModuleNotFoundError("No module named 'yaml'", name="yaml"),
            "trainer fit: error: needs the package 'yaml': pip install 'isodet[train]'",
        ),
    ],
)
def test_expected_errors_are_one_line(error: BaseException, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(error) == 1
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize(
    "error", [Foreign("CUDA error"), KeyError("x"), ModuleNotFoundError("trainer.gone", name="trainer.gone")]
)
def test_what_a_bug_report_needs_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run(error)


def test_done_is_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(None) == 0
    assert capsys.readouterr() == ("", "")


def test_no_command_shows_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(epilog="an example")
    assert require_arguments(parser, ["fit"]) == ["fit"]
    with pytest.raises(SystemExit, match="2"):
        require_arguments(parser, [])
    assert "an example" in capsys.readouterr().err
