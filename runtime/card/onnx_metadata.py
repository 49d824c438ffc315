"""An ONNX file read as protobuf, without onnx: its metadata, and the hash of its graph."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.card.card import LOAD_ANYWAY, METADATA_KEY, Card, CardError, sha256_file

_LOCATION = b"\x0a\x08location\x12"  # a StringStringEntryProto up to the length of its value


def read_onnx_card(path: str | Path, check_hashes: bool = True) -> Card:
    """The card in the metadata of the ONNX file at `path`. Raises `CardError` where there is no card of isodet."""
    metadata = read_onnx_metadata(path)
    if METADATA_KEY not in metadata:
        raise CardError.at(
            path,
            f"an ONNX file without an isodet card (metadata key '{METADATA_KEY}'); "
            "export it with `exporter onnx CHECKPOINT`",
        )
    return Card.from_json(metadata[METADATA_KEY], Path(path), check_hashes)


def read_onnx_metadata(path: str | Path) -> dict[str, str]:
    """`metadata_props` of an ONNX file, read by walking the top level of its protobuf.

    Raises `CardError` when the file is truncated or is not an ONNX model.
    """
    metadata: dict[str, str] = {}
    has_graph = False
    with _content_of(path) as content:
        for number, start, end in _protobuf_fields(content, 0, len(content)):
            has_graph = has_graph or number == 7  # ModelProto.graph
            if number == 14:  # ModelProto.metadata_props
                entry = dict(_entry(content, start, end))
                metadata[entry.get(1, "")] = entry.get(2, "")
    if not has_graph:
        raise CardError.at(path, "not an ONNX model: it has no graph")
    return metadata


def graph_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of an ONNX file without its card, so of the graph itself.

    Files beside it that hold its weights (ONNX's external data) are part of it. Raises `CardError` for a file that is
    not whole.
    """
    digest = hashlib.sha256()
    with _content_of(path) as content, memoryview(content) as view:
        for number, start, end in _protobuf_fields(content, 0, len(content)):
            if number == 14 and dict(_entry(content, start, end)).get(1) == METADATA_KEY:
                continue
            digest.update(number.to_bytes(4, "little") + (end - start).to_bytes(8, "little"))
            with view[start:end] as field:
                digest.update(field)
        for name in _external_files(content):
            beside = Path(path).parent / name
            digest.update(f"{name} {sha256_file(beside) if beside.is_file() else 'missing'}".encode())
    return digest.hexdigest()


@contextmanager
def _content_of(path: str | Path) -> Iterator[mmap.mmap]:
    """The bytes of the ONNX file at `path`, with the `CardError` of what goes wrong while it is open."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield content
    except OSError as error:
        raise CardError.at(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # ours below, text that is not UTF-8, and mmap's for an empty file
        raise CardError.at(path, f"not a whole ONNX file ({error}); it may be truncated") from None


def was_edited(path: str | Path, card: Card) -> bool:
    """Whether the graph differs from the one that its card was made for. Reads the whole file.

    False for older files, whose card has no hash of the graph. Raises `CardError` for a file that is not whole.
    """
    return "graph" in card.hashes and graph_sha256(path) != card.hashes["graph"]


def require_unedited(path: str | Path, card: Card, instead: str = LOAD_ANYWAY) -> None:
    """Raise `CardError` where `was_edited`. instead: another way out, for the end of the error."""
    if was_edited(path, card):
        raise CardError.at(
            path,
            "its graph was edited or damaged after the export: it is not the one that its card was made of; "
            f"copy it again or export it anew, or {instead}",
        )


def _external_files(content: mmap.mmap) -> Iterator[str]:
    """The files that TensorProto.external_data names, each once: entries with the key `location`, written in order."""
    position, seen = content.find(_LOCATION), set()
    while position >= 0:
        length, start = _varint(content, position + len(_LOCATION), len(content))
        name = content[start : start + length].decode("utf-8", errors="replace")
        if name not in seen:
            seen.add(name)
            yield name
        position = content.find(_LOCATION, position + 1)


def _entry(content: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, str]]:
    """The fields of a StringStringEntryProto: 1 key, 2 value."""
    for number, a, b in _protobuf_fields(content, start, end):
        yield number, content[a:b].decode("utf-8")


def _protobuf_fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of each field of the protobuf message in data[position:end]."""
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            start = position
            _, position = _varint(data, position, end)
        elif wire in (1, 5):
            start, position = position, position + (8 if wire == 1 else 4)
        elif wire == 2:
            length, start = _varint(data, position, end)
            position = start + length
        else:
            raise ValueError(f"unknown protobuf wire type {wire} at byte {position}")
        if position > end or number == 0:
            raise ValueError(f"a protobuf field is cut short at byte {end}")
        yield number, start, position


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= end:
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a protobuf number is cut short at byte {position}")
