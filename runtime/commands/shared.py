"""What the commands `runtime`, `trainer` and `exporter` share: exit status, progress, the look of their help."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from isodet.errors import IsodetError
from isodet.rooms import ROOMS
from runtime.commands.signals import Terminated, terminating

OURS = (*ROOMS, "isodet")


def teaching(prog: str) -> argparse.RawDescriptionHelpFormatter:
    """argparse's layout for help texts that hold examples."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100)


def exit_status(arguments: argparse.Namespace, program: str, extra: str, interrupted: str = "interrupted") -> int:
    """Run `arguments.run(arguments)`: 0 done, 1 failed, with one line on stderr that says why, 143 or 129 ended by
    SIGTERM or SIGHUP (what is half written goes, as at Ctrl-C).

    `extra` is the extra of the distribution that brings what the command needs. Where a package is missing, the
    error names it.
    Only errors that our code or Python raised are told in one line. One from inside a library keeps its
    traceback, which is what a bug report needs.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        with _choices_told(), terminating():
            return int(arguments.run(arguments))
    except Terminated as stop:
        print(stop, file=sys.stderr)
        return stop.status
    except KeyboardInterrupt as stop:
        print(str(stop) or interrupted, file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in OURS:
            raise  # one of our own modules: a broken installation, not a missing extra
        advice = f"needs the package {error.name!r}: pip install 'isodet[{extra}]'"
        print(f"{program} {arguments.command}: error: {advice}", file=sys.stderr)
        return 1
    except (IsodetError, ValueError, OSError, RuntimeError) as error:
        if not isinstance(error, IsodetError) and type(error).__module__.partition(".")[0] not in (*OURS, "builtins"):
            raise
        print(f"{program} {arguments.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


@contextmanager
def _choices_told() -> Iterator[None]:
    """What device "auto" chose, and why, is logged as INFO, which libraries keep to themselves and commands say."""
    log = logging.getLogger("runtime.backends")
    before = log.level
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(before)


def words(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> list[str]:
    """The command line `argv` (default: the process's). Where it is empty: the whole help, and exit status 2."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given:
        parser.print_help(sys.stderr)
        sys.exit(2)
    return given


def moves(bar: tqdm[Any]) -> Callable[[int, int | None], None]:
    """A progress callback (done, total) that moves `bar`."""

    def progress(done: int, total: int | None) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return progress


def count(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def positive(text: str) -> float:
    """An argument that is a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value
