"""The body of a request: read within its limits, and taken apart into pictures."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from runtime.serve.errors import CLOSE, RequestError
from runtime.serve.options import ServeOptions

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_IGNORED_SECONDS = 1.0
"""For so long, and for as many bytes as a body may have, the rest of a refused body is read and thrown away. A client
that sends it all before it reads would otherwise find its connection reset, and not the reason."""


class Part(NamedTuple):
    """An encoded picture of a request, and its name for errors and the answer."""

    name: str
    data: bytes


async def read_body(request: Request, options: ServeOptions) -> bytes:
    """The body of `request`. Raises `RequestError`: 413 for one that is too large, 408 for one that takes too long.

    A length that is too large is refused before anything is read, and a body without one as soon as it is too long.
    """
    most, end = options.max_body_bytes, time.monotonic() + options.body_seconds
    too_large = RequestError(413, f"expected a body of at most {most} bytes (--max-body-mb)", CLOSE)
    length = request.headers.get("content-length", "0")
    if not length.isdecimal():
        raise RequestError(400, f"Content-Length: expected a number of bytes, got {length!r}", CLOSE)
    if int(length) > most:
        if request.headers.get("expect", "").lower() != "100-continue":  # such a client waits before it sends
            await _ignore_body(request, most)
        raise too_large
    data, more = bytearray(), True
    while more:
        chunk, more = await _receive(request, end, options.body_seconds)
        data += chunk
        if len(data) > most:
            await _ignore_body(request, most)
            raise too_large
    return bytes(data)


async def _receive(request: Request, end: float, seconds: float) -> tuple[bytes, bool]:
    """The next bytes of the body, and whether more follow."""
    try:
        message = await asyncio.wait_for(request.receive(), max(0.0, end - time.monotonic()))
    except asyncio.TimeoutError:
        raise RequestError(408, f"the body did not come within {seconds:g} s", CLOSE) from None
    if message["type"] == "http.disconnect":
        raise RequestError(400, "the connection ended before the body did", CLOSE)
    return message.get("body", b""), message.get("more_body", False)


async def _ignore_body(request: Request, most: int) -> None:
    end, ignored, more = time.monotonic() + _IGNORED_SECONDS, 0, True
    while more and ignored < most:
        try:
            chunk, more = await _receive(request, end, _IGNORED_SECONDS)
        except RequestError:  # too slow or gone: the refusal that follows is the answer
            return
        ignored += len(chunk)


def pictures_of(body: bytes, content_type: str, most: int) -> list[Part]:
    """The pictures of a request: the body itself, or the parts of a multipart/form-data body in their order.

    A part is named by its file name, or by its field. Raises `RequestError`: 400 for a body that is not what
    `content_type` says, 413 for more than `most` pictures, 422 for an empty one.
    """
    kind, parameters = parse_options_header(content_type)
    if not kind.startswith(b"multipart/"):
        if not body:
            raise RequestError(422, "the body is empty; expected a picture (curl --data-binary @street.jpg)")
        return [Part("body", body)]
    boundary = parameters.get(b"boundary")
    if not boundary or kind != b"multipart/form-data":
        raise RequestError(
            400,
            f"Content-Type: expected multipart/form-data with a boundary, as curl -F sends it; got {content_type}",
        )
    parts = _Parts(most)
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise RequestError(400, f"the multipart body cannot be read: {error}") from None
    if not parts.ended:
        raise RequestError(400, "the multipart body is cut short: its last boundary is missing")
    if not parts.found:
        raise RequestError(400, "expected a picture in each part (curl -F picture=@street.jpg), got no part")
    return parts.found


class _Parts:
    """Collects the parts that a `MultipartParser` finds."""

    def __init__(self, most: int) -> None:
        self.found: list[Part] = []
        self.ended = False
        self._most = most
        self._field, self._value, self._data = bytearray(), bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin, "on_part_data": self._on_data, "on_part_end": self._end,
            "on_header_field": self._on_field, "on_header_value": self._on_value, "on_header_end": self._header,
            "on_end": self._close,
        }  # fmt: skip

    def _begin(self) -> None:
        if len(self.found) == self._most:
            raise RequestError(413, f"expected at most {self._most} pictures in a request (--max-pictures, --queue)")
        self._headers, self._data = {}, bytearray()

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        self._headers[bytes(self._field).lower()] = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _end(self) -> None:
        _, names = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = names.get(b"filename") or names.get(b"name") or b"part %d" % (len(self.found) + 1)
        self.found.append(Part(name.decode("utf-8", "replace"), bytes(self._data)))

    def _close(self) -> None:
        self.ended = True
