"""What the commands `runtime`, `trainer` and `exporter` share: exit status, progress, options that several have."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tqdm import tqdm

from isodet.errors import IsodetError
from isodet.rooms import ROOMS
from runtime.commands.arguments import count, flag
from runtime.commands.signals import Terminated, terminating
from runtime.files.write import write_text


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
        if error.name is None or error.name.partition(".")[0] in (*ROOMS, "isodet"):
            raise  # one of our own modules: a broken installation, not a missing extra
        advice = f"needs the package {error.name!r}: pip install 'isodet[{extra}]'"
        print(f"{program} {arguments.command}: error: {advice}", file=sys.stderr)
        return 1
    except (IsodetError, ValueError, OSError, RuntimeError) as error:
        if not isinstance(error, IsodetError) and type(error).__module__ != "builtins":
            raise  # a library's: its traceback says more
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


def require_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> list[str]:
    """The command line `argv` (default: the process's). Where it is empty: the whole help, and exit status 2."""
    given = list(sys.argv[1:] if argv is None else argv)
    if not given:
        parser.print_help(sys.stderr)
        sys.exit(2)
    return given


def updates(bar: tqdm[Any]) -> Callable[[int, int | None], None]:
    """A progress callback (done, total) that moves `bar`."""

    def progress(done: int, total: int | None) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return progress


@dataclass(frozen=True, kw_only=True)
class Quiet:
    """quiet: no progress bar"""

    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """device: auto, cpu, cuda or cuda:N
    threads: CPU threads of the engine (default: its own choice)
    skip_hashes: load a model that was edited after it was written
    """

    device: str = "auto"
    threads: Annotated[int | None, flag(type=count)] = None
    skip_hashes: bool = False


@dataclass(frozen=True, kw_only=True)
class Data:
    """annotations: COCO, VOC, YOLO or a JSON list (default: the model's own validation data)
    images: folder of its pictures (default: the format's own)
    """

    annotations: Annotated[Path | None, flag(metavar="DATA")] = None
    images: Annotated[Path | None, flag(metavar="FOLDER")] = None


@dataclass(frozen=True, kw_only=True)
class Runs:
    """runs: folder of the runs"""

    runs: Path = Path("runs")


@dataclass(frozen=True, kw_only=True)
class OfRun(Runs):
    """checkpoint: a trained or imported .pt (default: the newest run's best.pt)"""

    checkpoint: Annotated[Path | None, flag("checkpoint")] = None

    def chosen(self) -> Path:
        """The checkpoint that was named, or the newest run's."""
        return chosen(self.checkpoint, "best.pt", runs=self.runs, kind="checkpoint")


MODELS = ("best.onnx", "best.pt")
"""What a run folder may hold to detect with, the preferred first."""


def chosen(named: Path | None, *names: str, runs: str | Path = "runs", kind: str = "model") -> Path:
    """The file that was named; otherwise says which it is: the newest run's, by the first of `names` that there is."""
    if named is None:
        from runtime.runs import newest

        named = newest(*names, runs=runs)
        print(f"{kind}: {named} (the newest run's)")
    return named


def write_json(path: Path | None, content: object, indent: int = 2) -> None:
    """Write `content` to `path`, where there is one, and say so."""
    if path is not None:
        write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")
        print(f"wrote {path}")
