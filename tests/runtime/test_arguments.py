"""Commands that are dataclasses: what their command line takes, says and refuses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pytest import CaptureFixture

from runtime.commands.arguments import command_parser, count, flag

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
