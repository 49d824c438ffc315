"""What the programs `runtime`, `trainer` and `exporter` share: exit status, progress, common options."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tqdm import tqdm

from isodet.errors import ArgumentError, IsodetError
from isodet.rooms import ROOMS
from runtime.backends.options import BackendOptions, Engine, OpenVinoPrecision
from runtime.commands.arguments import count, flag, number
from runtime.commands.signals import Terminated, terminating
from runtime.files.write import write_text
from runtime.tiles import MOST_OVERLAP, SMALLEST, Tiles


def exit_status(arguments: argparse.Namespace, program: str, extra: str, interrupted: str = "interrupted") -> int:
    """Run `arguments.run(arguments)` and return the exit status: 0 done; 1 failed, with one line on stderr that says
    why; 143 or 129 ended by SIGTERM or SIGHUP (half-written files are deleted, as at Ctrl-C).

    `extra`: the extra of the distribution with the packages that the command needs, for the error where one is missing.
    Only errors raised by our code or by Python become one line. One from inside a library keeps its traceback, which a
    bug report needs.
    """
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        with _log_device_choice(), terminating():
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
            raise  # an error of a library: its traceback says more
        print(f"{program} {arguments.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


@contextmanager
def _log_device_choice() -> Iterator[None]:
    """Within, show the choice of device "auto" and its reason, which the backends log as INFO."""
    log = logging.getLogger("runtime.backends")
    before = log.level
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(before)


def require_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> list[str]:
    """The command line `argv` (default: the process's). Where it is empty, prints the help and exits with 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        parser.print_help(sys.stderr)
        sys.exit(2)
    return arguments


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
    """device: auto, cpu, cuda or cuda:N; in OpenVINO auto, cpu, gpu, gpu:N, npu or auto:gpu,cpu
    threads: CPU threads of the engine (default: its own choice)
    engine: what runs an .onnx file: onnxruntime, openvino, or auto: the first of them that is installed
    engine_precision: what OpenVINO computes in; bf16 and fp16 where the device has them
    skip_hashes: load a model that was edited after it was written
    """

    device: str = "auto"
    threads: Annotated[int | None, flag(type=count)] = None
    engine: Engine = "auto"
    engine_precision: OpenVinoPrecision = "float32"
    skip_hashes: bool = False

    @property
    def backend_options(self) -> BackendOptions:
        """The engine, and whether hashes are checked. Raises `BackendError` for choices that do not go together."""
        if self.engine_precision != "float32" and self.engine != "openvino":
            raise ArgumentError.of("engine_precision", "a choice of OpenVINO: add --engine openvino")
        return BackendOptions(engine=self.engine, precision=self.engine_precision, check_hashes=not self.skip_hashes)


_tile_overlap = number(f"a share from 0 to {MOST_OVERLAP}", lambda share: 0 <= share <= MOST_OVERLAP)


def _tile_size(text: str) -> int | tuple[int, ...] | str:
    if text in ("auto", "off"):
        return text
    try:
        sides = tuple(map(int, text.split(",")))
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < SMALLEST:
        raise ValueError(f"expected auto, off, or pixels of at least {SMALLEST} as 640 or 480,640, got {text!r}")
    return sides if len(sides) == 2 else sides[0]


@dataclass(frozen=True, kw_only=True)
class InTiles:
    """tiles: detect in tiles of this side, or height,width, in pixels of the picture, where objects are too small in
        the whole picture; auto: the size that the model takes; off: never (default: as the training cut them)
    tile_overlap: share of a tile that the next one has, too, 0 to 0.9: an object of this size is whole in one of them
    tile_whole: the network also looks at the whole picture, for what is larger than a tile
    """

    tiles: Annotated[
        int | tuple[int, int] | Literal["auto", "off"] | None, flag(metavar="auto|N|H,W|off", type=_tile_size)
    ] = None
    tile_overlap: Annotated[float, flag(metavar="SHARE", type=_tile_overlap)] = 0.2
    tile_whole: Annotated[bool, flag(help="with --tiles: do not also look at the whole picture")] = True

    def __post_init__(self) -> None:
        if self.tiles in (None, "off") and (self.tile_overlap, self.tile_whole) != (0.2, True):
            name = "tile_whole" if self.tile_overlap == 0.2 else "tile_overlap"
            raise ArgumentError.of(name, "there are no tiles; ask for them with --tiles auto")
        _ = self.tiling  # raises for tiles that make no sense

    @property
    def tiling(self) -> Tiles | Literal["card"] | None:
        """The `tiles` of a `Detector`. Raises ValueError for sizes and overlaps that make no sense."""
        if self.tiles is None or self.tiles == "off":
            return "card" if self.tiles is None else None
        size = None if self.tiles == "auto" else self.tiles
        return Tiles(size=size, overlap=self.tile_overlap, whole=self.tile_whole)


def say_tiles(tiles: Tiles | None) -> None:
    """Print how pictures are cut, where they are."""
    if tiles is not None:
        print(f"in {tiles.describe()}")


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
        """The checkpoint that the user named, or the newest run's."""
        return chosen(self.checkpoint, "best.pt", runs=self.runs, kind="checkpoint")


MODELS = ("best.onnx", "best.pt")
"""The models in a run folder that can detect, the preferred one first."""


def chosen(named: Path | None, *names: str, runs: str | Path = "runs", kind: str = "model") -> Path:
    """The file that the user named, else that of the newest run, which it prints: the first of `names` that exists."""
    if named is None:
        from runtime.runs import newest

        named = newest(*names, runs=runs)
        print(f"{kind}: {named} (the newest run's)")
    return named


def write_json(path: Path | None, content: object, indent: int = 2) -> None:
    """Write `content` to `path` and print that; does nothing for None."""
    if path is not None:
        write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")
        print(f"wrote {path}")
