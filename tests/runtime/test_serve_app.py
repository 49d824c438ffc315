"""The server without a socket: a full queue, deadlines, engines that fail, keys, CORS, the description."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from isodet.errors import ArgumentError
from runtime.__main__ import main
from runtime.backends.protocol import BackendError
from runtime.detector import Detector
from runtime.serve.app import make_app
from runtime.serve.body import pictures_of
from runtime.serve.detect import Choice, exact_json
from runtime.serve.errors import RequestError
from runtime.serve.gate import Gate, ServerState
from runtime.serve.keys import KeyFileError, is_known, key_of, read_keys
from runtime.serve.metrics import Metrics
from runtime.serve.models import Models, named_paths
from runtime.serve.options import Access, ServeOptions
from tests.runtime.cameras import until
from tests.runtime.conftest import make_card
from tests.runtime.echo import FOREVER, Echo
from tests.runtime.serving import picture

WARM_UP = 114 * 65793
"""The number that `Echo` sees in the gray picture of the warm-up."""


class Engine:
    """What an `Echo` does before it answers: it may be held, or told to fail."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.held = False

    def __call__(self, numbers: list[int]) -> None:
        if numbers == [WARM_UP]:
            return
        if self.error is not None:
            raise self.error
        if self.held:
            self.reached.set()
            assert self.open.wait(60)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.open.set()


@asynccontextmanager
async def client_of(
    path: Path, load: Callable[[Path], Detector], options: ServeOptions, access: Access | None = None
) -> AsyncIterator[tuple[Any, Models, ServerState]]:
    """A client of an application that serves the file at `path` as "tiny", its models and its state."""
    state = ServerState()
    with (
        Models({"tiny": path}, load, options) as models,
        ThreadPoolExecutor(2) as decoders,
        ThreadPoolExecutor(1) as worker,
    ):
        app = make_app(models, options, access or Access(), state, decoders, worker)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            yield client, models, state


def on_cpu(path: Path) -> Detector:
    return Detector(path, device="cpu", threads=1)


def echo(engine: Engine) -> Callable[[Path], Detector]:
    return lambda path: Detector(Echo(make_card(), before=engine))


async def eventually(true: Callable[[], bool]) -> None:
    await asyncio.to_thread(until, true)


def test_a_full_queue_refuses_and_the_rest_is_answered(engine: Engine, onnx_file: Callable[..., Path]) -> None:
    async def run() -> None:
        engine.held = True
        options = ServeOptions(max_batch=1, queue=2, deadline_ms=FOREVER)
        async with client_of(onnx_file(), echo(engine), options) as (client, models, _):
            batcher = models["tiny"].current.batcher
            taken = [asyncio.create_task(client.post("/v1/detect", content=picture()))]
            await eventually(engine.reached.is_set)
            for waiting in (1, 2):
                taken.append(asyncio.create_task(client.post("/v1/detect", content=picture())))
                await eventually(lambda waiting=waiting: batcher.metrics().waiting == waiting)
            refused = await client.post("/v1/detect", content=picture())
            assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
            assert "2 frames wait already" in refused.json()["error"]
            several = await client.post("/v1/detect", files=[("p", ("a", picture())), ("p", ("b", picture()))])
            assert several.status_code == 429
            engine.open.set()
            assert [(await answer).status_code for answer in taken] == [200] * 3
            text = (await client.get("/metrics")).text
            assert 'isodet_requests_total{model="tiny",status="429"} 2.0' in text
            assert 'isodet_requests_total{model="tiny",status="200"} 3.0' in text
            assert 'isodet_batch_size_bucket{le="1.0",model="tiny"} 3.0' in text

    asyncio.run(run())


def test_what_is_late_is_not_waited_for(engine: Engine, onnx_file: Callable[..., Path]) -> None:
    async def run() -> None:
        engine.held = True
        async with client_of(onnx_file(), echo(engine), ServeOptions(max_batch=1, deadline_ms=50)) as (client, *_):
            for _ in range(2):  # one that runs, and one that waits
                answer = await client.post("/v1/detect", content=picture())
                assert answer.status_code == 504 and "within 50 ms" in answer.json()["error"]
            engine.open.set()

    asyncio.run(run())


def test_an_engine_that_fails_is_the_servers_fault(
    engine: Engine, onnx_file: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with client_of(onnx_file(), echo(engine), ServeOptions()) as (client, *_):
            for error in (BackendError("/secret/place is gone"), KeyError("x")):
                engine.error = error
                answer = await client.post("/v1/detect", content=picture())
                assert answer.status_code == 500 and answer.json() == {"error": "the server failed; its log says why"}
            engine.error = None
            assert (await client.post("/v1/detect", content=picture())).status_code == 200

    asyncio.run(run())
    assert "/secret/place is gone" in caplog.text


def test_too_many_requests_are_refused_before_their_bodies_are_read(
    engine: Engine, onnx_file: Callable[..., Path]
) -> None:
    async def run() -> None:
        async with client_of(onnx_file(), echo(engine), ServeOptions(max_batch=1, queue=1)) as (client, _, state):
            state.in_flight = 4
            answer = await client.post("/v1/detect", content=picture())
            assert answer.status_code == 429 and "4 requests are in progress" in answer.json()["error"]
            assert (await client.get("/metrics")).status_code == 200  # what tells of the load

    asyncio.run(run())


def test_a_request_that_the_end_cuts_off_is_told_so() -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def run() -> None:
        state, sent = ServerState(), []

        async def send(message: Any) -> None:
            sent.append(message)

        with Models({}, on_cpu, ServeOptions()) as models:
            gate = Gate(never, state, (), Metrics(models), most=1)
            scope = {"type": "http", "method": "POST", "path": "/v2/models/tiny/infer", "headers": []}
            task = asyncio.create_task(gate(scope, never, send))
            await asyncio.sleep(0)
            assert state.in_flight == 1
            state.draining = True
            task.cancel()
            await task
        assert sent[0]["status"] == 503 and b"ended before" in sent[1]["body"] and state.in_flight == 0

    asyncio.run(run())


def test_a_request_that_meets_a_reload_goes_to_the_new_model(engine: Engine, onnx_file: Callable[..., Path]) -> None:
    """It took the old model, which closed before the picture was decoded."""

    async def run() -> None:
        async with client_of(onnx_file(), echo(engine), ServeOptions(poll_seconds=0)) as (client, models, _):
            model = models["tiny"]
            old = model.current
            models.reload()
            await eventually(lambda: model.current is not old and bool(old.batcher.closed))
            new, model.current = model.current, old
            submit = old.batcher.submit

            def late(*arguments: Any, **keywords: Any) -> Any:
                model.current = new
                return submit(*arguments, **keywords)

            old.batcher.submit = late  # type: ignore[method-assign]
            assert (await client.post("/v1/detect", content=picture())).status_code == 200
            assert model.current is new and new.batcher.metrics().submitted == 1

    asyncio.run(run())


def test_a_file_is_loaded_once_it_stays_as_it_is(
    onnx_file: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Each look is one that the watching thread takes once a second."""
    path, whole = onnx_file(), onnx_file("next.onnx", size=(64, 64)).read_bytes()
    models = Models({"tiny": path}, on_cpu, ServeOptions())
    model = models["tiny"]
    first = weakref.ref(model.current)
    for part in (whole[:300], whole[:600], whole):  # a copy that takes its time
        path.write_bytes(part)
        model.look()
        assert model.current is first() and not model.failed_reloads
    model.look()
    assert model.reloads == 1 and model.current.detector.input_size_hw == (64, 64)
    gc.collect()
    assert first() is None  # nothing keeps the old one in memory

    path.write_bytes(b"\x08 no model")
    for _ in range(4):
        model.look()
    assert model.failed_reloads == 1 and "tiny: the new file is not served" in caplog.text  # tried once
    assert model.to_json()["reload_error"] and model.current.detector.input_size_hw == (64, 64)
    path.unlink()
    model.look()
    assert model.failed_reloads == 1
    model.look(at_once=True)
    assert model.failed_reloads == 2 and "no such model file" in model.reload_error
    path.write_bytes(whole)
    model.look()
    model.look()
    assert model.reloads == 2 and not model.reload_error
    models.close()


def test_keys_and_origins(engine: Engine, onnx_file: Callable[..., Path]) -> None:
    access = Access(("k" * 16,), ("https://page.example",))
    origin = {"Origin": "https://page.example"}

    async def run() -> None:
        async with client_of(onnx_file(), echo(engine), ServeOptions(), access) as (client, *_):
            asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-API-Key"}
            assert (await client.options("/v1/detect", headers=asked)).status_code == 200
            refused = await client.post("/v1/detect", headers=origin)
            assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == origin["Origin"]
            answer = await client.get("/v1/models", headers={"X-API-Key": "k" * 16, "Origin": "https://other.example"})
            assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
        async with client_of(onnx_file(), echo(engine), ServeOptions()) as (client, *_):
            answer = await client.get("/v1/models", headers=origin)
            assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers

    asyncio.run(run())


def test_the_description_and_what_is_not_there(engine: Engine, onnx_file: Callable[..., Path]) -> None:
    async def run() -> None:
        async with client_of(onnx_file(), echo(engine), ServeOptions()) as (client, *_):
            paths = (await client.get("/openapi.json")).json()["paths"]
            assert {"/v1/detect", "/v1/models/{name}/detect", "/v1/models", "/healthz", "/metrics"} <= set(paths)
            assert {"image/*", "multipart/form-data"} == set(paths["/v1/detect"]["post"]["requestBody"]["content"])
            assert {"200", "413", "422", "429", "504"} <= set(paths["/v1/detect"]["post"]["responses"])
            for path in ("/docs", "/redoc", "/nothing"):
                assert list((await client.get(path)).json()) == ["error"]
            missing = await client.get("/v1/models/tinny")
            assert missing.status_code == 404 and "did you mean 'tiny'" in missing.json()["error"]
            assert (await client.get("/v1/detect")).status_code == 405

    asyncio.run(run())


def test_numbers_are_short_and_exact(detector: Detector) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        (found,) = detector(rng.integers(0, 256, (*rng.integers(9, 200, 2), 3), np.uint8), threshold=0.0)
        text = json.dumps(exact_json(found))
        assert [np.float32(one["score"]) for one in json.loads(text)] == found.scores.tolist()
        assert [list(map(np.float32, one["box_xyxy"])) for one in json.loads(text)] == found.boxes_xyxy.tolist()
        assert all(len(str(one["score"])) <= 13 for one in json.loads(text))


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    heads = (f"--b\r\nContent-Disposition: form-data; {names}\r\n\r\n".encode() + data for names, data in parts)
    return b"".join(head + b"\r\n" for head in heads) + end


def test_forms_are_taken_apart() -> None:
    body = form(('name="a"; filename="x.png"', b"1\r\n-b"), ('name="b"', b""), ("x=1", b"\0\xff"))
    parts = pictures_of(body, "multipart/form-data; boundary=b", 3)
    assert parts == [("x.png", b"1\r\n-b"), ("b", b""), ("part 3", b"\0\xff")]
    assert pictures_of(b"data", "application/x-www-form-urlencoded", 1) == [("body", b"data")]


@pytest.mark.parametrize(
    "body, kind, status",
    [
        (b"", "", 422),
        (b"x", "multipart/form-data", 400),
        (b"x", "multipart/mixed; boundary=b", 400),
        (b"x", "multipart/form-data; boundary=b", 400),
        (form(("x=1", b"1"), end=b""), "multipart/form-data; boundary=b", 400),
        (form(), "multipart/form-data; boundary=b", 400),
        (form(*[("x=1", b"1")] * 4), "multipart/form-data; boundary=b", 413),
    ],
)
def test_forms_that_cannot_be_read(body: bytes, kind: str, status: int) -> None:
    with pytest.raises(RequestError) as caught:
        pictures_of(body, kind, 3)
    assert caught.value.status == status


def test_damaged_forms_are_the_clients_fault() -> None:
    rng, whole = np.random.default_rng(2), form(('name="a"; filename="x.png"', b"12345"), ('name="b"', b"67"))
    for _ in range(500):
        body = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(body), 2):
            body[place] = rng.integers(0, 256)
        try:
            assert len(pictures_of(bytes(body), "multipart/form-data; boundary=b", 3)) <= 2
        except RequestError as error:
            assert error.status in (400, 422)


def test_keys_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(" # a comment\n\n  0123456789abcdef  \nsecond-key-of-ours\n")
    keys = read_keys(path)
    assert keys == ("0123456789abcdef", "second-key-of-ours")
    assert is_known("second-key-of-ours", keys) and not is_known("second-key-of-our", keys) and not is_known("", keys)
    assert key_of("Bearer abc", None) == "abc" and key_of(None, "abc") == "abc" and key_of("Basic abc", None) is None
    for content in ("", "# only\n", "short\n", "a key with spaces in it\n", "ééééééééééééééééé\n"):
        path.write_text(content)
        with pytest.raises(KeyFileError, match=str(path)) as caught:
            read_keys(path)
        assert not content.strip() or content.strip() not in str(caught.value)


@pytest.mark.parametrize(
    "artifacts, names",
    [(["a/best.onnx"], ["best"]), (["day=a.onnx", "b.engine"], ["day", "b"]), (["x=a=b.onnx"], ["x"])],
)
def test_names_of_models(artifacts: Sequence[str], names: list[str]) -> None:
    assert list(named_paths(artifacts)) == names


def test_choices_of_a_query() -> None:
    assert Choice.of(None, None, ("a", "b")) == (None, None)
    assert Choice.of("card", "b, a", ("a", "b")) == ("card", ("b", "a"))
    for threshold, classes in (("1.1", None), ("", None), ("inf", None), (None, "c"), (None, "")):
        with pytest.raises(ArgumentError):
            Choice.of(threshold, classes, ("a", "b"))


@pytest.mark.parametrize(
    "name, value", [("queue", 0), ("deadline_ms", 0), ("max_wait_ms", -1), ("body_seconds", float("inf"))]
)
def test_options_that_make_no_sense(name: str, value: float) -> None:
    with pytest.raises(ArgumentError, match=name):
        ServeOptions(**{name: value})


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("runtime.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", "a.onnx"]) == 1
    assert "needs the package 'fastapi': pip install 'isodet[serve]'" in capsys.readouterr().err
