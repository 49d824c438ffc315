"""The server as a process, through the command and real sockets: answers, limits, the end, reloads, wrong files."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from runtime.__main__ import main
from runtime.card.card import Card
from runtime.detections import Detections
from runtime.detector import Detector
from tests.runtime.cameras import until
from tests.runtime.conftest import make_card, pixel_detector
from tests.runtime.serving import Served, picture, serving

LIMITS = ("--max-body-mb", "1", "--max-pixels", "1000000", "--body-seconds", "2", "--max-pictures", "4")


def write_model(path: Path, card: Card | None = None) -> Path:
    """Write a model to `path` at once, as a deployment should."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(pixel_detector(card or make_card()).SerializeToString())
    os.replace(partial, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.onnx")


@pytest.fixture(scope="module")
def served(model: Path) -> Iterator[Served]:
    """A server for the tests that leave it as it is."""
    with serving(model.parent, model, *LIMITS) as server:
        yield server
        assert server.end() == 0 and "Traceback" not in server.log


def assert_same(answer: list[dict[str, Any]], expected: Detections) -> None:
    """Every number of the answer is the float32 of `expected`, to the last bit."""
    boxes = np.array([d["box_xyxy"] for d in answer], np.float32).reshape(-1, 4)
    assert boxes.tobytes() == expected.boxes_xyxy.tobytes()
    assert np.array([d["score"] for d in answer], np.float32).tobytes() == expected.scores.tobytes()
    assert [d["label"] for d in answer] == expected.labels.tolist() and [d["name"] for d in answer] == expected.names


def test_detections_are_those_of_the_detector_to_the_last_bit(served: Served, model: Path, tmp_path: Path) -> None:
    detector, rng = Detector(model, device="cpu"), np.random.default_rng(0)
    for number, suffix in enumerate((".jpg", ".png", ".webp", ".bmp", ".tiff") * 3):
        image = rng.integers(0, 256, (*rng.integers(20, 300, 2), 3), np.uint8)
        path = tmp_path / f"{number}{suffix}"
        assert cv2.imwrite(str(path), image)
        answer = served.client.post("/v1/detect", params={"threshold": 0.1}, content=path.read_bytes()).json()
        (one,) = answer["pictures"]
        (expected,) = detector(path, threshold=0.1)
        assert (one["height"], one["width"]) == image.shape[:2]
        assert_same(one["detections"], expected)
    assert answer["model"] == "tiny" and answer["graph"] == served.model()["graph"]
    assert set(one["time_ms"]) == {"decode", "queue", "inference"} and min(one["time_ms"].values()) >= 0


def test_several_pictures_are_answered_in_their_order(served: Served) -> None:
    files = [("x", (f"{b}.png", picture(bgr=(b, 200, 40)), "image/png")) for b in (2, 0, 1)]
    answer = served.client.post("/v1/models/tiny/detect?classes=cat,ant", files=files).json()
    assert [one["name"] for one in answer["pictures"]] == ["2.png", "0.png", "1.png"]
    assert [{d["name"] for d in one["detections"]} for one in answer["pictures"]] == [{"cat"}, {"ant"}, set()]


def test_a_body_that_is_too_large_is_refused(served: Served) -> None:
    with_length = served.client.post("/v1/detect", content=bytes(1_000_001))
    chunks = served.client.post("/v1/detect", content=(bytes(50_000) for _ in range(30)))
    for answer in (with_length, chunks):
        assert answer.status_code == 413 and "at most 1000000 bytes" in answer.json()["error"]
        assert answer.headers["connection"] == "close"
    with connection(served) as client:  # a client that asks first sends nothing
        client.sendall(
            b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\nExpect: 100-continue\r\n\r\n"
        )
        assert everything(client).startswith(b"HTTP/1.1 413")


def connection(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=60)


def everything(client: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    data = b""
    while chunk := client.recv(65536):
        data += chunk
    return data


def test_clients_that_are_too_slow_are_let_go(served: Served) -> None:
    with connection(served) as head, connection(served) as body, connection(served) as second:
        head.sendall(b"POST /v1/detect HT")
        body.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        second.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert second.recv(65536).startswith(b"HTTP/1.1 200")
        second.sendall(b"GET /hea")
        assert everything(head) == b"" and everything(second)[:4] in (b"", b'{"al')
        answer = everything(body)
    assert answer.startswith(b"HTTP/1.1 408") and b"did not come within 2 s" in answer


def test_many_requests_some_of_them_malformed(served: Served) -> None:
    """Good ones are right, bad ones are the client's fault, and no descriptor stays open."""
    good, cut = picture(), picture(".jpg")
    large = cv2.imencode(".png", np.zeros((1001, 1000, 3), np.uint8))[1].tobytes()
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    bad: list[tuple[int, dict[str, Any]]] = [
        (422, {"content": b""}), (422, {"content": b"no picture"}), (422, {"content": cut[: len(cut) // 2]}),
        (413, {"content": large}), (413, {"content": bytes(1_200_000)}), (415, {"content": heic}),
        (422, {"content": good, "params": {"threshold": "2"}}), (422, {"content": good, "params": {"classes": "dog"}}),
        (422, {"content": good, "params": {"treshold": "0.5"}}),
        (400, {"content": b"--a\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=a"}}),
        (400, {"content": b"--a--", "headers": {"Content-Type": "multipart/form-data"}}),
        (413, {"files": [("p", ("p.png", good, "image/png"))] * 5}),
        (422, {"files": [("p", ("good.png", good, "image/png")), ("p", ("bad.png", b"x", "image/png"))]}),
    ]  # fmt: skip
    served.client.get("/healthz")
    before = served.open_files()

    def ask(number: int) -> None:
        status, request = bad[number // 3 % len(bad)] if number % 3 == 0 else (200, {"content": good})
        answer = client.post("/v1/detect", **request)
        assert answer.status_code == status, (request, answer.text)
        if status == 200:
            (one,) = answer.json()["pictures"]
            assert [d["name"] for d in one["detections"]] == ["cat", "cat"]
            assert one["detections"][0]["box_xyxy"] == [0, 0, 60, 60]
        else:
            assert list(answer.json()) == ["error"] and len(answer.json()["error"]) > 10

    with httpx.Client(base_url=served.address, timeout=60) as client, ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(300)))
    until(lambda: served.open_files() <= before)
    assert served.client.get("/healthz").json() == {"alive": True}
    assert served.metric('isodet_queue_pictures{model="tiny"}') == 0


def test_an_error_names_the_picture(served: Served) -> None:
    files = [("p", ("good.png", picture(), "image/png")), ("p", ("bad.png", b"x", "image/png"))]
    assert served.client.post("/v1/detect", files=files).json()["error"].startswith("bad.png: not a picture; expected")


def test_the_end_answers_what_was_taken_and_takes_no_more(model: Path, tmp_path: Path) -> None:
    with serving(tmp_path, model, "--max-wait-ms", "4000") as served, ThreadPoolExecutor(5) as threads:
        answers = [threads.submit(httpx.post, f"{served.address}/v1/detect", content=picture()) for _ in range(5)]
        until(lambda: served.metric('isodet_queue_pictures{model="tiny"}') == 5)
        served.process.send_signal(signal.SIGTERM)
        until(lambda: served.client.get("/readyz").status_code == 503)
        assert served.client.get("/healthz").status_code == 200
        refused = served.client.post("/v1/detect", content=picture())
        assert refused.status_code == 503 and refused.headers["retry-after"] and "ending" in refused.json()["error"]
        assert [len(answer.result().json()["pictures"]) for answer in answers] == [1] * 5
        assert served.process.wait(60) == 0


@pytest.mark.parametrize("drain_seconds, signals", [(0.2, 1), (600, 2)])
def test_an_end_that_cannot_wait_says_so(drain_seconds: float, signals: int, model: Path, tmp_path: Path) -> None:
    words = ("--max-wait-ms", "600000", "--deadline-ms", "2000000", "--drain-seconds", drain_seconds)
    with serving(tmp_path, model, *words) as served, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(httpx.post, f"{served.address}/v1/detect", content=picture(), timeout=60)
        until(lambda: served.metric('isodet_queue_pictures{model="tiny"}') == 1)
        for _ in range(signals):
            served.process.send_signal(signal.SIGINT)
            until(lambda: served.process.poll() is not None or "are in progress" in served.log)
        assert answer.result().status_code == 503 and "closed" in answer.result().json()["error"]
        assert served.process.wait(60) == 1 and "1 requests were not answered" in served.log


def test_a_new_file_is_served_and_a_bad_one_is_not(tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.onnx")
    with serving(tmp_path, path) as served:
        first, ended, statuses = served.model()["graph"], threading.Event(), []

        def ask_on() -> None:
            with httpx.Client(base_url=served.address, timeout=60) as client:
                while not ended.is_set():
                    statuses.append(client.post("/v1/detect", content=picture()).status_code)

        asking = threading.Thread(target=ask_on)
        asking.start()
        # Another batch size is another graph; other classes another card.
        write_model(path, make_card(classes=("dog", "eel", "fox"), input_size_hw=(64, 48)))
        until(lambda: served.model()["graph"] != first)
        second = served.client.post("/v1/detect", content=picture()).json()
        assert second["pictures"][0]["detections"][0]["name"] == "fox" and second["graph"] == served.model()["graph"]
        assert served.model()["reloads"] == 1 and served.model()["reload_error"] is None

        path.write_bytes(path.read_bytes()[:200])
        until(lambda: served.model()["reload_error"] is not None)
        assert served.client.post("/v1/detect", content=picture()).json()["graph"] == second["graph"]
        assert served.metric('isodet_model_reload_failed{model="tiny"}') == 1
        assert "the new file is not served" in served.log and str(path) in served.model()["reload_error"]
        assert served.client.get("/readyz").status_code == 200

        write_model(path)
        served.process.send_signal(signal.SIGHUP)
        until(lambda: served.model()["graph"] == first)
        assert served.metric('isodet_model_reload_failed{model="tiny"}') == 0
        ended.set()
        asking.join()
        assert set(statuses) == {200} and len(statuses) > 3
        assert served.end() == 0


@pytest.mark.parametrize(
    "words, expected",
    [
        (("none.onnx",), "none.onnx: no such model file"),
        (("text.onnx",), "text.onnx: neither an ONNX file"),
        (("none.onnx", "--api-keys", "text.onnx"), "text.onnx: line 1: expected a key of at least 16"),
        (("none.onnx", "--api-keys", "none.txt"), "none.txt: cannot be read as a file of API keys"),
        (("none.onnx", "--host", "192.0.2.1"), "cannot listen at 192.0.2.1 port 0"),
    ],
)
def test_what_cannot_be_served_is_an_error_at_the_start(
    words: tuple[str, ...],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.onnx").write_text("text")
    monkeypatch.chdir(tmp_path)
    assert main(["serve", *words, "--port", "0"]) == 1
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, expected",
    [
        (("a.onnx", "--port", "70000"), "argument --port: expected"),
        (("a.onnx", "--queue", "0"), "argument --queue: expected"),
        (("a.onnx", "--deadline-ms", "0"), "argument --deadline-ms: expected"),
        (("a=b.onnx", "a=c.onnx"), "argument artifact: two models are named 'a'"),
        (("ä.onnx",), "argument artifact: expected a name of letters"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *words])
    assert ended.value.code == 2 and expected in capsys.readouterr().err


def test_several_models_and_keys(model: Path, onnx_file: Callable[..., Path], tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("# ours\n0123456789abcdef\n\nfedcba9876543210\n")
    with serving(tmp_path, model, f"other={onnx_file(size=(64, 64))}", "--api-keys", keys) as served:
        assert served.client.get("/readyz").status_code == served.client.get("/healthz").status_code == 200
        for headers in ({}, {"Authorization": "Bearer 0123456789abcdeF"}, {"X-API-Key": "é".encode()}):
            for path in ("/v1/models", "/metrics", "/openapi.json"):
                answer = served.client.get(path, headers=headers)
                assert answer.status_code == 401 and "key" in answer.json()["error"]
        for headers in ({"Authorization": "bearer 0123456789abcdef"}, {"X-API-Key": "fedcba9876543210"}):
            names = [m["name"] for m in served.client.get("/v1/models", headers=headers).json()["models"]]
            assert names == ["tiny", "other"]
            answer = served.client.post("/v1/models/other/detect", content=picture(), headers=headers)
            assert answer.json()["model"] == "other"
        nameless = served.client.post("/v1/detect", content=picture(), headers=headers)
        assert nameless.status_code == 404 and "tiny, other" in nameless.json()["error"]
        card = served.client.get("/v1/models/other", headers=headers).json()["card"]
        assert Card.from_json(json.dumps(card), "answer").input_size_hw == (64, 64)
        assert served.end() == 0
