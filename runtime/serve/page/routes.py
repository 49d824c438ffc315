"""The page at `/`: which files it has, and how they are answered."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import NamedTuple

from fastapi import FastAPI, Request
from fastapi.responses import Response

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-cache",  # a browser asks each time, by the ETag: a new version of the server shows at once
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of each file of the page."""


class PageFile(NamedTuple):
    """A file of the page: its content, its media type, and the tag that changes with its content."""

    content: bytes
    media_type: str
    etag: str


def page_files() -> dict[str, PageFile]:
    """The files of the page by their address: `/` is the page, the others are below `/page/`."""
    found: dict[str, PageFile] = {}
    for entry in files(__package__).iterdir():  # in a wheel that is imported as a zip file, too
        suffix = entry.name.rpartition(".")[2]
        if suffix in _TYPES:
            content = entry.read_bytes()
            address = "/" if suffix == "html" else f"/page/{entry.name}"
            found[address] = PageFile(content, _TYPES[suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return found


def add_page(app: FastAPI, page: dict[str, PageFile]) -> None:
    """Have `app` answer GET and HEAD at the addresses of `page`. They are not part of the API's description."""

    async def answer(request: Request) -> Response:
        file = page[request.scope["path"]]
        headers = {**HEADERS, "ETag": file.etag}
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)

    for address in page:
        app.add_route(address, answer, methods=["GET"], include_in_schema=False)
