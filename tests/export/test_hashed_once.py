"""Comparing a file with its hash reads the whole of it: once for each load, and not at all where that is refused."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from export.audit.audit import audit_file
from export.verification.verify import verify
from runtime import Card, Detector, read_card
from runtime.backends.options import BackendOptions
from runtime.card.sidecar import sidecar_path, sidecar_text
from runtime.runs import validation_data
from tests.runtime.engines import ENGINE

MIB = 1 << 20


@dataclass
class Read:
    """What was read for the sake of a hash."""

    hashed: int = 0
    """Bytes given to SHA-256."""
    entries: int = 0
    """Entries of checkpoints that were read for their checksums."""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Read]:
    total, real, real_open = Read(), hashlib.sha256, zipfile.ZipFile.open

    class Counted:
        def __init__(self, data: bytes = b"") -> None:
            self._digest = real()
            self.update(data)

        def update(self, data: Any) -> None:
            total.hashed += len(data)
            self._digest.update(data)

        def hexdigest(self) -> str:
            return self._digest.hexdigest()

    def opened(archive: zipfile.ZipFile, *arguments: Any, **named: Any) -> Any:
        total.entries += 1
        return real_open(archive, *arguments, **named)

    monkeypatch.setattr(hashlib, "sha256", Counted)
    monkeypatch.setattr(zipfile.ZipFile, "open", opened)
    yield total


@pytest.fixture(scope="module")
def folder(shapes_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one artifact of each kind."""
    to = tmp_path_factory.mktemp("hashed")
    for name in ("best.pt", "best.onnx"):
        shutil.copy(shapes_run / name, to)
    plan, of_graph = b"ftrt" + bytes(8 * MIB), read_card(to / "best.onnx")
    (to / "best.engine").write_bytes(plan)
    facts = {**ENGINE, "bytes": len(plan), "audit": audit_file(to / "best.onnx").to_json()}
    hashes = {**of_graph.hashes, "engine": hashlib.sha256(plan).hexdigest()}
    sidecar_path(to / "best.engine").write_text(sidecar_text(replace(of_graph, kind="engine", engine=facts,
                                                                     hashes=hashes)))  # fmt: skip
    return to


def _size(*files: Path) -> int:
    return sum(path.stat().st_size for path in files)


def _entries(checkpoint: Path) -> int:
    return len(zipfile.ZipFile(checkpoint).infolist())


def _is_once(hashed: int, size: int) -> bool:
    """Cards have hashes of their own, and a graph's is of all but its card: a few kilobytes more or less."""
    return abs(hashed - size) < size / 10 + 50_000


def _loaded(path: Path, check: bool) -> Card:
    if path.suffix == ".engine":  # running one needs a GPU; its card is read and compared by the same call
        return read_card(path, check)
    return Detector(path, device="cpu", options=BackendOptions(check_hashes=check)).card


@pytest.mark.parametrize("name", ["best.onnx", "best.engine", "best.pt"])
def test_a_load_reads_a_file_once_for_its_hash(folder, read, name):
    path = folder / name
    _loaded(path, True)
    if name == "best.pt":
        assert read.entries == _entries(path) and read.hashed < 50_000
    else:
        assert _is_once(read.hashed, _size(path))


@pytest.mark.parametrize("name", ["best.onnx", "best.engine", "best.pt"])
def test_a_load_without_hashes_reads_no_file_for_them_and_takes_damage(folder, tmp_path, read, name):
    for beside in ("best.engine.json", name):
        shutil.copy(folder / beside, tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    # In the middle lie weights: the file is whole, and another one.
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="damaged|do not belong together"):
        _loaded(tmp_path / name, True)
    read.hashed = read.entries = 0
    assert _loaded(tmp_path / name, False).classes == read_card(folder / "best.onnx").classes
    assert read.entries == 0 and read.hashed < 50_000


def test_verification_reads_each_file_once_for_its_hash(folder, shapes_run, read):
    data = shapes_run.parents[1] / "data"
    graph, engine, checkpoint = folder / "best.onnx", folder / "best.engine", folder / "best.pt"
    verification = verify([graph, engine], None, data / "val.json", data / "val", device="cpu")
    assert len(verification.artifacts) == len(verification.not_scored) == 1 and not verification.passed
    assert _is_once(read.hashed, _size(graph, engine, checkpoint))
    assert read.entries == 0, "the checkpoint was found by the SHA-256 of all its bytes"
    read.hashed = 0
    verify([graph], checkpoint, data / "val.json", data / "val", device="cpu")
    assert read.entries == _entries(checkpoint)
    assert _is_once(read.hashed, _size(graph, checkpoint)), "of the checkpoint, to tell whether it is the graph's"


def test_a_checkpoint_that_is_found_by_its_hash_is_not_read_again_for_checksums(folder, read):
    card = read_card(folder / "best.onnx")
    elsewhere = {"annotations": "not/here.json", "images": "not/here"}
    card = replace(card, training={**card.training, "data": {"val": elsewhere}})
    validation_data(card, folder / "best.onnx")  # its card's paths lead nowhere: the checkpoint beside it knows
    assert _is_once(read.hashed, _size(folder / "best.pt")) and read.entries == 0
