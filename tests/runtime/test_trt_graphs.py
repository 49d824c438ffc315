"""CUDA graphs, several workers and short memory with engines; the stand-ins hold to what the libraries' manuals ask."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import BackendOptions, Detector
from runtime.backends.cuda.batch_sizes import bucket_of
from runtime.backends.protocol import BackendError, OutOfMemory
from tests.at_fault import raises
from tests.runtime.engines import frames

GRAPHS = BackendOptions(cuda_graphs=True)
EngineFile, Machine = Callable[..., Path], Callable[..., Any]
BUILT = {"tensorrt-10.13": "10.13.3.9", "tensorrt-11.4": "11.4.0.5", "tensorrt-rtx-1.7": "1.7.1.116"}


def cuda() -> Any:
    return sys.modules["cuda.bindings.runtime"]


def numbers(detector: Detector, *counts: int) -> bool:
    return [len(d) for d in detector(frames(*counts))] == list(counts)


@pytest.mark.parametrize("version", ["tensorrt-10.13", "tensorrt-11.4"])
def test_each_size_of_batch_is_recorded_once_and_replayed(
    engine_file: EngineFile, machine: Machine, version: str
) -> None:
    module = machine(version, profile=(2, 4, 8))
    detector = Detector(engine_file(version=BUILT[version], profile=[2, 4, 8]), threshold=0.5, options=GRAPHS)
    for counts in ((1,), (2, 1), (0, 1, 2), (1, 0, 2, 1, 2), (2, 2, 1, 0, 1, 2), (2,), (1, 1, 1), (0, 2, 0, 1, 1)):
        assert numbers(detector, *counts)
    raw, seconds = detector.backend.timed(np.stack(frames(1, 2)))  # type: ignore[attr-defined]
    assert raw.num_dets[:, 0].tolist() == [1, 2] and tuple(seconds) == ("host to device", "engine", "device to host")
    # 1 and 2 run as 2, 3 as 3, 5 and 6 as 6: a first run of each, then replays only
    assert cuda().replays == [1] * 6 and module.seen["contexts"] == 3


def test_rtx_records_by_itself(engine_file: EngineFile, machine: Machine) -> None:
    module = machine("tensorrt-rtx-1.7")
    path = engine_file(version=BUILT["tensorrt-rtx-1.7"], flavour="rtx")
    detector = Detector(path, threshold=0.5, options=GRAPHS)
    assert numbers(detector, 1, 2, 1) and numbers(detector, 2, 0, 1) and cuda().replays == []
    assert module.seen["strategy"] is module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert Detector(path).backend is not None and module.seen["strategy"] is None


def test_what_cannot_be_recorded_runs_without(
    engine_file: EngineFile, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine(not_capturable=True)
    detector = Detector(engine_file(), threshold=0.5, options=GRAPHS)
    for _ in range(3):
        assert numbers(detector, 1, 2) and numbers(detector, 2, 0, 1)
    assert [m.partition(":")[0] for m in caplog.messages] == [
        f"TensorRT 10.13.3.9: batches of {n} run without a CUDA graph".partition(":")[0] for n in (2, 3)
    ]
    assert "batches of 2 run without a CUDA graph" in caplog.text and cuda().replays == []


@pytest.mark.parametrize("options", [BackendOptions(), GRAPHS])
def test_several_workers_on_one_engine(engine_file: EngineFile, machine: Machine, options: BackendOptions) -> None:
    module = machine()
    detector = Detector(engine_file(), threshold=0.5, options=options)
    with detector.batcher(4, 0, workers=3) as batcher:
        counts = [0, 1, 2] * 40
        futures = [batcher.submit(picture) for picture in frames(*counts)]
        assert [len(f.result(60)) for f in futures] == counts
    assert module.seen["contexts"] >= (3 if options is not GRAPHS else 1)


def test_memory_that_is_short(engine_file: EngineFile, machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    machine(no_room=2)
    detector = Detector(engine_file(), threshold=0.5)
    assert numbers(detector, 1, 2, 0, 1) and numbers(detector, 1, 2, 0, 1)
    assert [m.partition(";")[0] for m in caplog.messages] == [
        "cuda:0 has no memory for a batch of 4: batches of 2 from now on"
    ]
    machine(no_room=1)
    with pytest.raises(OutOfMemory, match="failed on a batch of 2: Error Code 2: OutOfMemory"):
        Detector(engine_file())(frames(1, 1))
    machine(most_contexts=0)
    with pytest.raises(OutOfMemory, match=r"best\.engine: on NVIDIA A10: TensorRT 10.* has no room for an execution"):
        Detector(engine_file())
    machine()
    cuda().cudaHostAlloc = lambda size, flags: (2, None)
    with pytest.raises(OutOfMemory, match=r"best\.engine: on NVIDIA A10: CUDA: broken .2."):
        Detector(engine_file())


def test_other_failures_are_no_lack_of_memory(engine_file: EngineFile, machine: Machine) -> None:
    machine()
    detector = Detector(engine_file())
    cuda().cudaMemcpyAsync = lambda *_: (700,)
    with pytest.raises(BackendError, match=r"CUDA: broken .700.") as raised:
        detector(frames(1))
    assert raised.type is BackendError


def test_buckets() -> None:
    sizes = [bucket_of(n) for n in range(1, 65)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(n <= size and size - n <= size / 3 for n, size in enumerate(sizes, start=1))
    assert [bucket_of(n, 2, 5) for n in range(6)] == [2, 2, 2, 3, 4, 5] and bucket_of(0) == 1
    with pytest.raises(ValueError, match="at most 4 images, got 5"):
        bucket_of(5, 1, 4)


@pytest.mark.parametrize(
    ("kind", "wrong", "key"),
    [
        ("engine", {"compile": True}, "compile"),
        ("engine", {"provider": "tensorrt"}, "provider"),
        ("onnx", {"autocast": "bf16"}, "autocast"),
    ],
)
def test_choices_that_are_for_other_files(kind: Any, wrong: dict[str, Any], key: str) -> None:
    with raises(BackendError, key=key, path="best"):
        BackendOptions(**wrong).check(kind, "best")


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"cuda_graphs": True, "compile": True}, "cuda_graphs"),
        ({"provider": "tensorrt", "cuda_graphs": True}, "cuda_graphs"),
        ({"engine_cache": "x"}, "engine_cache"),
        ({"provider": "cpu"}, "provider"),
        ({"autocast": "fp8"}, "autocast"),
    ],
)
def test_choices_that_do_not_fit(wrong: dict[str, Any], key: str) -> None:
    with raises(BackendError, key=key):
        BackendOptions(**wrong)


def test_options_reach_the_engine_of_the_file(engine_file: EngineFile, machine: Machine) -> None:
    machine()
    path = engine_file()
    with raises(BackendError, key="compile", path=path):
        Detector(path, options=BackendOptions(compile=True))
    assert Detector(engine_file()).runs_on == "TensorRT 10.13.3.9 on cuda:0 (engines run on NVIDIA GPUs only)"
    assert isinstance(Detector(engine_file()).backend(np.zeros((0, 8, 8, 3), np.uint8)).boxes, np.ndarray)
