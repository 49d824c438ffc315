"""The page of the server without a browser: its files, their headers, and what they refer to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

from runtime.serve.options import Access, ServeOptions
from runtime.serve.page.routes import HEADERS, page_files
from tests.runtime.test_serve_app import client_of, on_cpu

KEY = "0123456789abcdef"
MOST_BYTES = 60_000


def test_the_page_and_its_files_need_no_key_and_are_no_part_of_the_api(onnx_file: Callable[..., Path]) -> None:
    types = {"/": "text/html", "/page/page.css": "text/css", "/page/page.js": "text/javascript"}

    async def run() -> None:
        async with client_of(onnx_file(), on_cpu, ServeOptions(), Access((KEY,))) as (client, _, state):
            assert types.items() <= {path: file.media_type for path, file in page_files().items()}.items()
            for path, file in page_files().items():
                answer = await client.get(path)
                assert answer.status_code == 200 and answer.content == file.content
                assert answer.headers["content-type"] == f"{file.media_type}; charset=utf-8"
                assert HEADERS.items() <= {name.title(): value for name, value in answer.headers.items()}.items()
                known = await client.get(path, headers={"If-None-Match": answer.headers["etag"]})
                assert known.status_code == 304 and known.content == b"" and known.headers["etag"]
                older = await client.get(path, headers={"If-None-Match": '"0"'})
                assert older.content == file.content
                assert (await client.head(path)).status_code == 200
                assert (await client.post(path)).status_code == 405
            for path in ("/v1/models", "/page", "/page/", "/page/routes.py", "/page/../app.py", "/index.html"):
                assert (await client.get(path)).status_code == 401  # also what is not there
            described = (await client.get("/openapi.json", headers={"X-API-Key": KEY})).json()
            assert not {"/", "/page/page.js"} & set(described["paths"])
            state.draining = True  # the page is answered, and says what the API answers
            assert (await client.get("/")).status_code == 200

    asyncio.run(run())


def test_without_the_page_its_addresses_are_not_there(onnx_file: Callable[..., Path]) -> None:
    async def run() -> None:
        options = ServeOptions(page=False)
        async with client_of(onnx_file(), on_cpu, options) as (client, *_):
            for path in page_files():
                assert (await client.get(path)).status_code == 404
        async with client_of(onnx_file(), on_cpu, options, Access((KEY,))) as (client, *_):
            assert (await client.get("/")).status_code == 401

    asyncio.run(run())


def test_the_policy_lets_the_page_load_its_own_files_only() -> None:
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'" and "unsafe" not in HEADERS["Content-Security-Policy"]
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' blob: data:" and policy["media-src"] == "blob:"
    assert HEADERS["Permissions-Policy"].startswith("camera=(self)")


def test_the_files_refer_to_each_other_and_to_nothing_else() -> None:
    files = page_files()
    assert sum(len(file.content) for file in files.values()) < MOST_BYTES
    referred = set()
    for file in files.values():
        text = file.content.decode("utf-8")
        assert not re.search(r"https?://|//cdn|@import|url\(", text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\bon\w+=|style=", text)
        assert max(map(len, text.splitlines())) <= 120
        referred |= {f"/page/{name}" for name in re.findall(r'from "\./([\w.]+)"', text)}
        referred |= {f"/{name}" for name in re.findall(r'(?:src|href)="(page/[\w.]+)"', text)}
    assert referred == set(files) - {"/"}
