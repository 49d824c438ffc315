"""KServe's protocol: metadata, tensors as JSON and as bytes, requests that are wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.backends.protocol import BackendError
from runtime.detector import Detector
from runtime.serve.kserve import HEADER
from runtime.serve.options import ServeOptions
from tests.runtime.conftest import make_card
from tests.runtime.echo import FOREVER, Echo
from tests.runtime.serving import serving
from tests.runtime.test_serve_app import Engine, client_of, echo, engine, eventually, on_cpu

__all__ = ["engine"]  # a fixture

NAMES = ("num_dets", "boxes", "scores", "labels")
SHAPE = [2, 32, 48, 3]
ZEROS = {"name": "images", "datatype": "UINT8", "shape": SHAPE, "data": [0] * 9216}


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 48, 3), np.uint8)


def tensor(images: np.ndarray, **changes: Any) -> dict[str, Any]:
    return {"name": "images", "datatype": "UINT8", "shape": list(images.shape), **changes}


def assert_outputs(answer: dict[str, Any], binary: bytes, images: np.ndarray, detector: Detector) -> None:
    """The outputs are those of the graph, to the last bit."""
    raw, position = detector.infer(images), 0
    for output in answer["outputs"]:
        expected = getattr(raw, output["name"])
        kind = {"FP32": np.float32, "INT32": np.int32}[output["datatype"]]
        if "data" in output:
            values = np.array(output["data"], kind)
        else:
            size = output["parameters"]["binary_data_size"]
            values = np.frombuffer(binary[position : position + size], kind)
            position += size
        assert kind == expected.dtype and values.reshape(output["shape"]).tobytes() == expected.tobytes()
    assert position == len(binary)


@pytest.mark.parametrize("batch", ["dynamic", 2])
def test_what_a_model_takes_and_gives(batch: int | str, onnx_file: Callable[..., Path]) -> None:
    async def run() -> None:
        async with client_of(onnx_file(batch=batch), on_cpu, ServeOptions()) as (client, _, state):
            assert (await client.get("/v2")).json()["extensions"] == ["binary_tensor_data"]
            assert (await client.get("/v2/models/tiny/ready")).json() == {"name": "tiny", "ready": True}
            said, size = (await client.get("/v2/models/tiny")).json(), -1 if batch == "dynamic" else 2
            assert said["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [size, 32, 48, 3]}]
            assert [(o["name"], o["datatype"], o["shape"]) for o in said["outputs"]] == [
                ("num_dets", "INT32", [size, 1]), ("boxes", "FP32", [size, 2, 4]), ("scores", "FP32", [size, 2]),
                ("labels", "INT32", [size, 2]),
            ]  # fmt: skip
            assert (await client.get("/v2/models/other")).status_code == 404
            assert (await client.get("/v2/health/ready")).status_code == 200
            state.draining = True
            assert (await client.get("/v2/health/ready")).status_code == 503
            assert (await client.get("/v2/health/live")).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize("batch, count", [("dynamic", 3), ("dynamic", 20), (4, 3)])
def test_tensors_as_json_and_as_bytes(batch: int | str, count: int, onnx_file: Callable[..., Path]) -> None:
    """Also more images than a batch holds, and fewer than a fixed batch has."""
    path, images = onnx_file(batch=batch), pictures(count)
    detector = Detector(onnx_file("dynamic.onnx"), device="cpu", threads=1)

    async def run() -> None:
        async with client_of(path, on_cpu, ServeOptions()) as (client, *_):
            url = "/v2/models/tiny/infer"
            nested = {"id": "7", "inputs": [tensor(images, data=images.tolist())]}
            answer = await client.post(url, json=nested)
            assert answer.json()["id"] == "7" and HEADER not in answer.headers
            assert [output["name"] for output in answer.json()["outputs"]] == list(NAMES)
            assert_outputs(answer.json(), b"", images, detector)

            inputs = [tensor(images, parameters={"binary_data_size": images.nbytes})]
            outputs = [
                {"name": "scores", "parameters": {"binary_data": True}},
                {"name": "labels"},
                {"name": "boxes", "parameters": {"binary_data": True}},
            ]
            for content in (
                {"inputs": inputs, "outputs": outputs},
                {"inputs": inputs, "parameters": {"binary_data_output": True}},
            ):
                head = json.dumps(content).encode()
                answer = await client.post(url, content=head + images.tobytes(), headers={HEADER: str(len(head))})
                assert answer.status_code == 200, answer.text
                length = int(answer.headers[HEADER])
                assert_outputs(json.loads(answer.content[:length]), answer.content[length:], images, detector)

    asyncio.run(run())


def test_requests_that_are_wrong(onnx_file: Callable[..., Path]) -> None:
    wrong: list[tuple[Any, str]] = [
        ([], "expected a JSON object"),
        ({}, "inputs: expected a list of one tensor"),
        ({"inputs": [ZEROS, ZEROS]}, "inputs: expected a list of one tensor"),
        ({"inputs": [{**ZEROS, "name": "image"}]}, "got image UINT8"),
        ({"inputs": [{**ZEROS, "datatype": "FP32"}]}, "got images FP32"),
        ({"inputs": [{**ZEROS, "shape": [2, 48, 32, 3]}]}, "[2, 48, 32, 3]"),
        ({"inputs": [{**ZEROS, "shape": [0, 32, 48, 3]}]}, "[0, 32, 48, 3]"),
        ({"inputs": [{**ZEROS, "shape": [True, 32, 48, 3]}]}, "expected images"),
        ({"inputs": [{**ZEROS, "shape": "x"}]}, "expected images"),
        ({"inputs": [{**ZEROS, "data": [0, 1]}]}, "expected 9216 whole numbers"),
        ({"inputs": [{**ZEROS, "data": [256] * 9216}]}, "expected 9216 whole numbers"),
        ({"inputs": [{**ZEROS, "data": [0.5] * 9216}]}, "expected 9216 whole numbers"),
        ({"inputs": [{**ZEROS, "data": [[1], [1, 2]]}]}, "expected 9216 whole numbers"),
        ({"inputs": [{**ZEROS, "parameters": {"binary_data_size": 9216}}]}, "9216 and 0 in the body"),
        ({"inputs": [ZEROS], "outputs": [{"name": "masks"}]}, "got 'masks'"),
        ({"inputs": [ZEROS], "outputs": 3}, "outputs: expected"),
    ]

    async def run() -> None:
        async with client_of(onnx_file(), on_cpu, ServeOptions()) as (client, *_):
            url = "/v2/models/tiny/infer"
            for content, expected in wrong:
                answer = await client.post(url, json=content)
                assert answer.status_code == 400 and expected in answer.json()["error"], (content, answer.text)
            for body, headers in (
                (b"{", {}), (b"[" * 100_000, {}), (b"\xff", {}), (b"{}", {HEADER: "3"}), (b"{}", {HEADER: "-1"}),
            ):  # fmt: skip
                assert (await client.post(url, content=body, headers=headers)).status_code == 400
            assert (await client.post(url, json={"inputs": [ZEROS]})).status_code == 200

    asyncio.run(run())


def test_limits_hold_here_too(engine: Engine, onnx_file: Callable[..., Path]) -> None:
    async def run() -> None:
        engine.held = True
        options = ServeOptions(queue=1, deadline_ms=FOREVER)
        async with client_of(onnx_file(), echo(engine), options) as (client, *_):
            first = asyncio.create_task(client.post("/v2/models/tiny/infer", json={"inputs": [ZEROS]}))
            await eventually(engine.reached.is_set)
            assert (await client.post("/v2/models/tiny/infer", json={"inputs": [ZEROS]})).status_code == 429
            engine.open.set()
            assert (await first).status_code == 200
        engine.open.clear()
        async with client_of(onnx_file(), echo(engine), ServeOptions(deadline_ms=50)) as (client, *_):
            late = await client.post("/v2/models/tiny/infer", json={"inputs": [ZEROS]})
            assert late.status_code == 504 and "within 50 ms" in late.json()["error"]
            engine.open.set()

    asyncio.run(run())


def test_an_engine_that_runs_one_call_at_a_time(onnx_file: Callable[..., Path]) -> None:
    class Alone(Echo):
        def context(self) -> Echo:
            raise BackendError("alone runs one call at a time: expected workers=1")

    async def run() -> None:
        async with client_of(onnx_file(), lambda _: Detector(Alone(make_card())), ServeOptions()) as (client, *_):
            answer = await client.post("/v2/models/tiny/infer", json={"inputs": [ZEROS]})
            assert answer.status_code == 501 and "one call at a time" in answer.json()["error"]

    asyncio.run(run())


def test_tritons_own_client(onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    """It checks the binary extension from the other side, where it is installed."""
    http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    path, images = onnx_file(), pictures(3)
    raw = Detector(path, device="cpu", threads=1).infer(images)
    with serving(tmp_path, path) as served:
        client = http.InferenceServerClient(f"127.0.0.1:{served.port}")
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
        assert client.get_server_metadata()["name"] == "isodet"
        assert client.get_model_metadata("tiny")["inputs"][0]["datatype"] == "UINT8"
        for binary in (True, False):
            given = http.InferInput("images", list(images.shape), "UINT8")
            given.set_data_from_numpy(images, binary_data=binary)
            outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in NAMES]
            answer = client.infer("tiny", [given], outputs=outputs)
            for name in NAMES:
                np.testing.assert_array_equal(answer.as_numpy(name), getattr(raw, name))
        given = http.InferInput("images", [1, 3], "UINT8")
        given.set_data_from_numpy(np.zeros((1, 3), np.uint8))
        with pytest.raises(Exception, match="expected images UINT8"):
            client.infer("tiny", [given])
        client.close()
