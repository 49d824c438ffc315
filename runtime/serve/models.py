"""The models of a server: each a detector with a batcher, loaded again when its file changes."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from isodet.errors import ArgumentError, IsodetError
from runtime.batcher.batcher import Batcher
from runtime.card.card import file_kind, sha256_file
from runtime.card.onnx_metadata import graph_sha256
from runtime.card.sidecar import sidecar_path
from runtime.detector import Detector
from runtime.images.image import FILL
from runtime.serve.options import ServeOptions

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Load = Callable[[Path], Detector]
"""From a model file to a detector, with the device and the engine that were asked for."""
Stamp = tuple[tuple[int, int, int], ...]
"""Inode, size and time of change of a model file, and of the sidecar of an engine."""


def named_paths(artifacts: Sequence[str]) -> dict[str, Path]:
    """Model files by name: `name=path`, or a path, whose stem is the name.

    Raises `ArgumentError` for a name that is there twice, or that an address cannot hold.
    """
    paths: dict[str, Path] = {}
    for text in artifacts:
        name, separator, rest = text.partition("=")
        path = Path(rest if separator else text)
        if not separator:
            name = path.stem
        if not _NAME.fullmatch(name):
            expected = "a name of letters, digits, '.', '_' and '-', as in street=models/best.onnx"
            raise ArgumentError.of("artifact", f"expected {expected}; got {name!r} from {text!r}")
        if name in paths:
            raise ArgumentError.of(
                "artifact", f"two models are named {name!r}; name them: day={paths[name]} night={path}"
            )
        paths[name] = path
    return paths


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory.

    graph: SHA-256 of the graph, without the card, or of an engine's or a checkpoint's file.
    stamp: of the file that it was read from.
    since: when it was loaded, ISO 8601.
    """

    detector: Detector
    batcher: Batcher
    graph: str
    stamp: Stamp
    since: str


class ServedModel:
    """A name, a file, and what is loaded of it.

    current: what answers requests. Take it once for a request: a reload replaces it.
    reload_error: why the file that is there now is not served; '' where it is.
    reloads: how often a changed file was loaded; failed_reloads: how often it could not be.
    """

    def __init__(self, name: str, path: Path, load: Load, options: ServeOptions) -> None:
        self.name, self.path = name, path
        self.reload_error = ""
        self.reloads = self.failed_reloads = 0
        self._load, self._options = load, options
        self.current = self._read()
        self._tried = self._seen = self.current.stamp

    def _read(self) -> Loaded:
        """Load the file, and run it once: the first call allocates memory, and would show what cannot run."""
        kind = file_kind(self.path)
        stamp = stamp_of(
            self.path
        )  # before the rest: of a file that changes meanwhile, the next look finds another stamp
        detector = self._load(self.path)
        graph = graph_sha256(self.path) if kind == "onnx" else sha256_file(self.path)
        detector(np.full((*detector.card.frame_hw, 3), FILL, np.uint8))
        o = self._options
        batcher = detector.batcher(o.max_batch, o.max_wait_ms, o.queue, "refuse")
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return Loaded(detector, batcher, graph, stamp, since)

    def look(self, at_once: bool = False) -> None:
        """Load the file again where it changed since the last try, and is the same as at the last look.

        at_once: load it whatever it was. What cannot be loaded leaves the old one where it is, and goes to the log and
        to `reload_error`. The old one answers what it has taken before it closes.
        """
        try:
            stamp = stamp_of(self.path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not at_once:
                return  # between a deletion and the new file
            stamp = ()  # loading it says what is wrong
        seen, self._seen = self._seen, stamp
        if not at_once and (stamp == self._tried or stamp != seen):
            return
        self._tried, old = stamp, self.current
        try:
            new = self._read()
        except Exception as error:  # of whatever a broken file does to an engine
            self.failed_reloads += 1
            self.reload_error = " ".join(str(error).split()) or type(error).__name__
            traceback = None if isinstance(error, (IsodetError, OSError)) else error
            goes_on = f"{old.graph[:12]}, loaded {old.since}, goes on"
            _log.error("%s: the new file is not served, and %s: %s", self.name, goes_on, error, exc_info=traceback)
            return
        self.current, self._tried = new, new.stamp
        self.reloads, self.reload_error = self.reloads + 1, ""
        _log.info("%s: serves %s instead of %s", self.name, new.graph[:12], old.graph[:12])
        old.batcher.close(timeout=self._options.drain_seconds)

    def to_json(self) -> dict[str, Any]:
        """What the server says of the model, without its card."""
        loaded = self.current
        detector, card = loaded.detector, loaded.detector.card
        return {
            "name": self.name,
            "file": self.path.name,
            "graph": loaded.graph,
            "kind": card.kind,
            "precision": card.precision,
            "input_size_hw": list(card.input_size_hw),
            "classes": list(card.classes),
            "threshold": card.threshold,
            "runs_on": detector.runs_on,
            "loaded": loaded.since,
            "reloads": self.reloads,
            "reload_error": self.reload_error or None,
        }


def stamp_of(path: Path) -> Stamp:
    """The stamp of a model file. Raises `OSError` where there is none."""
    beside = sidecar_path(path)
    files = [path, beside] if beside.is_file() else [path]
    return tuple((status.st_ino, status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files))


class Models(Mapping[str, ServedModel], AbstractContextManager["Models"]):
    """The models of a server by name. Within its context a thread looks whether their files changed.

    Raises what `Detector` raises where one cannot be loaded.
    """

    def __init__(self, paths: Mapping[str, Path], load: Load, options: ServeOptions) -> None:
        self._models: dict[str, ServedModel] = {}
        self._wake, self._ended, self._at_once = threading.Event(), False, False
        self._poll_seconds = options.poll_seconds
        try:
            for name, path in paths.items():
                self._models[name] = ServedModel(name, path, load, options)
        except BaseException:
            self.close()
            raise
        self._thread = threading.Thread(target=self._watch, name="serve-reload", daemon=True)

    def __getitem__(self, name: str) -> ServedModel:
        return self._models[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    def __enter__(self) -> Models:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._wake.set()
        self._thread.join(timeout=5.0)  # a reload that takes longer ends with the process
        self.close()

    def reload(self) -> None:
        """Have every model loaded again now, in the thread that watches."""
        self._at_once = True
        self._wake.set()

    def close(self) -> None:
        """Close the batchers; what has not run is answered with `BatcherClosed`, at once or after a second."""
        for model in self._models.values():
            model.current.batcher.close(drain=False, timeout=1.0)

    def _watch(self) -> None:
        while not self._ended:
            self._wake.wait(self._poll_seconds or None)
            self._wake.clear()
            at_once, self._at_once = self._at_once, False
            for model in self._models.values():
                if not self._ended:
                    model.look(at_once)
