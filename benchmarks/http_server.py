"""What the HTTP server adds: requests/s and latency of `runtime serve`, beside its batcher without HTTP.

    python -m benchmarks.http_server best.onnx street.jpg --clients 1,8,32 --seconds 5

The server is a process, each client another one with one connection, which asks again as soon as it has its answer. The
same picture, decoded and submitted to a batcher by as many threads of this process, is what HTTP is compared with.
docs/serve.md has results.
"""

from __future__ import annotations

import argparse
import http.client
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from runtime.detector import Detector
from runtime.images.image import decode_image


def ask(port: int, body: bytes, seconds: float) -> list[float]:
    """Latencies, in seconds, of requests over one connection. Raises AssertionError for an answer other than 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    latencies, end = [], time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end:
        connection.request("POST", "/v1/detect", body)
        response = connection.getresponse()
        content = response.read()
        assert response.status == 200, content
        latencies.append(time.perf_counter() - begun)
    connection.close()
    return latencies


def with_http(port: int, body: bytes, clients: int, seconds: float) -> list[float]:
    """Latencies of all clients."""
    with multiprocessing.get_context("spawn").Pool(clients) as pool:
        pool.starmap(ask, [(port, body, 0.2)] * clients, chunksize=1)  # imports, and the first batches
        return [one for part in pool.starmap(ask, [(port, body, seconds)] * clients, chunksize=1) for one in part]


def without_http(submit: Callable[[], object], threads: int, seconds: float) -> list[float]:
    """Latencies of as many threads that decode, submit and wait."""
    latencies: list[float] = []

    def run() -> None:
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end:
            submit()
            latencies.append(time.perf_counter() - begun)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return latencies


def line(what: str, count: int, latencies: Sequence[float], seconds: float) -> str:
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return f"| {what} | {count} | {len(latencies) / seconds:.0f} | {p50:.1f} | {p99:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=1, help="of the engine")
    parser.add_argument("--max-wait-ms", type=float, default=4.0)
    options = parser.parse_args()
    body = options.picture.read_bytes()
    print("| | clients | pictures/s | p50 ms | p99 ms |\n|---|---|---|---|---|")
    words = ["--port", "0", "--device", "cpu", "--threads", options.threads, "--max-wait-ms", options.max_wait_ms]
    command = [sys.executable, "-m", "runtime", "serve", str(options.model), *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = next((text for text in server.stdout if text.startswith("serving at ")), None)
        assert address is not None, "the server did not start"
        for clients in options.clients:
            latencies = with_http(int(address.rpartition(":")[2]), body, clients, options.seconds)
            print(line("HTTP", clients, latencies, options.seconds), flush=True)
        server.terminate()
        server.communicate()
    detector = Detector(options.model, "cpu", threads=options.threads)
    with detector.batcher(max_wait_ms=options.max_wait_ms, policy="refuse") as batcher:
        for threads in options.clients:
            latencies = without_http(
                lambda: batcher.submit(decode_image(body, "picture")).result(), threads, options.seconds
            )
            print(line("batcher", threads, latencies, options.seconds), flush=True)


if __name__ == "__main__":
    main()
