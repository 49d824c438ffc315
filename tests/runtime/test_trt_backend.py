"""Engines: the sidecar that belongs to them, and running one, against TensorRT's interface with CUDA in host memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import BackendOptions, Detector
from runtime.artifact import read_card
from runtime.backends.cuda.batch_sizes import bucket_of
from runtime.backends.protocol import BackendError, OutOfMemory
from runtime.backends.trt import library as trt_library
from runtime.card.card import Card, CardError, file_kind
from runtime.card.sidecar import sidecar_path
from tests.at_fault import raises
from tests.fake_trt import fake_trt
from tests.runtime.engines import frames

GRAPHS = BackendOptions(cuda_graphs=True)
EngineFile, Machine = Callable[..., Path], Callable[..., Any]
BUILT = {"tensorrt-10.13": "10.13.3.9", "tensorrt-11.4": "11.4.0.5", "tensorrt-rtx-1.7": "1.7.1.116"}


@pytest.mark.parametrize("version", BUILT)
def test_every_batch_gives_every_frame_its_own_boxes(engine_file: EngineFile, machine: Machine, version: str) -> None:
    """Least, most, more than most, and fewer than the least, which are padded."""
    machine(version)
    flavour = "rtx" if "rtx" in version else "tensorrt"
    detector = Detector(engine_file(version=BUILT[version], flavour=flavour), threshold=0.5)
    assert detector.backend.device == "cuda:0" and BUILT[version] in detector.backend.name
    for counts in ((1,), (2, 1), (1, 0, 2, 1), (0, 1, 2, 0, 1, 2, 1)):
        found = detector(frames(*counts))
        assert [len(d) for d in found] == list(counts)
        for d, count in zip(found, counts, strict=True):
            if count:
                assert d.boxes_xyxy[0].tolist() == [0, 0, 4 + count, 4 + count] and d.labels[0] == 1
    assert detector([]) == []


def test_more_images_than_the_engine_takes_are_refused(engine_file: EngineFile, machine: Machine) -> None:
    machine()
    backend = Detector(engine_file()).backend
    with pytest.raises(BackendError, match="at most 4 images, got 5"):
        backend(np.zeros((5, 8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("facts", "sm", "why"),
    [
        ({}, 80, r"here is an NVIDIA A10 \(SM80\)"),
        ({"version": "10.12.0.36"}, 86, r"here is TensorRT 10\.13\.3\.9, and an engine runs on the version"),
        ({"version": "10.14.0.1", "version_compatible": True}, 86, "here is TensorRT 10"),
        ({"system": "win32-amd64"}, 86, "here is linux-x86_64"),
        ({"hardware_compatible": True}, 75, "SM75"),
    ],
)
def test_a_wrong_platform_is_told_what_it_was_built_for_and_how_to_build_it_again(
    engine_file: EngineFile, machine: Machine, facts: dict[str, Any], sm: int, why: str
) -> None:
    machine(sm=sm)
    with pytest.raises(BackendError, match=why) as raised:
        Detector(engine_file(**facts))
    assert "built for TensorRT 10.1" in str(raised.value)
    assert "Build it again here: exporter trt best.pt --fp16 --engine tensorrt" in str(raised.value)


@pytest.mark.parametrize(
    ("facts", "sm"), [({"hardware_compatible": True}, 89), ({"version": "10.12.0.36", "version_compatible": True}, 86)]
)
def test_engines_for_other_platforms_run(engine_file: EngineFile, machine: Machine, facts: Any, sm: int) -> None:
    machine(sm=sm)
    assert len(Detector(engine_file(**facts), threshold=0.5)(frames(2))[0]) == 2


def test_what_the_library_says_reaches_the_user(engine_file: EngineFile, machine: Machine) -> None:
    machine(refuses="Magic tag does not match")
    with pytest.raises(BackendError, match=r"refuses it: Magic tag does not match\. Build it again here: exporter"):
        Detector(engine_file())


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"outputs": {"output0": ("FLOAT", (5,))}}, "the tensors images, num_dets, boxes, scores, labels; got"),
        ({"shape": (-1, 8, 9, 3)}, r"images: expected uint8 as its card says, got uint8 \[8, 9, 3\]"),
    ],
)
def test_an_engine_unlike_its_card(engine_file: EngineFile, machine: Machine, network: Any, message: str) -> None:
    machine(**network)
    with pytest.raises(CardError, match=message):
        Detector(engine_file())


def test_without_a_gpu(engine_file: EngineFile, machine: Machine) -> None:
    machine(gpus=0)
    path = engine_file()
    with pytest.raises(BackendError, match="built for TensorRT 10.13.3.9 on an NVIDIA A10 .SM86.*no CUDA device here"):
        Detector(path)
    with pytest.raises(BackendError, match="runs on an NVIDIA GPU only; give the ONNX file for device cpu"):
        Detector(path, device="cpu")
    with raises(BackendError, key="device"):
        machine()
        Detector(path, device="cuda:3")


def test_the_extra_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=r"TensorRT-RTX is not installed here: pip install 'isodet\[rtx\]'"):
        trt_library.load_library("rtx")
    for gpus in (0, 1):
        with pytest.raises(BackendError, match=r"isodet\[trt\].*Jetson.*isodet\[rtx\].*GeForce"):
            trt_library.choose_library("auto", gpus)
    with pytest.raises(BackendError, match="TensorRT builds on the GPU that the engine is for, and there is none"):
        trt_library.choose_library("tensorrt", 0)


def test_which_library_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("tensorrt-11.4", "tensorrt-rtx-1.7"):
        module = fake_trt(version)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    assert trt_library.choose_library("auto", 0).flavour == "rtx"
    assert trt_library.choose_library("auto", 1).name == "TensorRT 11.4.0.5"


# From here on: the sidecar
def test_an_engine_and_its_card(engine_file: EngineFile) -> None:
    path = engine_file()
    assert file_kind(path) == "engine" and file_kind(engine_file("b", b"vtrt\0\0")) == "engine"
    card = read_card(path)
    assert card.kind == "engine" and card.engine["sm"] == [86]
    assert Card.from_json(card.to_json(), "again") == card


def test_a_file_that_was_not_copied_whole(engine_file: EngineFile) -> None:
    path = engine_file()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CardError, match="truncated: 11 of 14 bytes"):
        read_card(path)


def test_an_engine_with_the_sidecar_of_another(engine_file: EngineFile) -> None:
    path, other = engine_file(), engine_file("other.engine", b"ftrt and SO on")
    sidecar_path(other).replace(sidecar_path(path))
    with pytest.raises(CardError, match=r"best\.engine and best\.engine\.json do not belong together"):
        read_card(path)
    with raises(CardError, path=other):
        read_card(other)


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (lambda c: c["engine"].pop("sm"), "engine.sm"),
        (lambda c: c["engine"].update(profile=[1, 2]), "engine.profile"),
        (lambda c: c["engine"].update(profile=[4, 4, 2]), "engine.profile"),
        (lambda c: c.update(kind="onnx", engine={}), "kind"),
        (lambda c: c.update(engine={}), "engine"),
        (lambda c: c.update(kind="onnx"), "engine"),
    ],
)
def test_a_broken_sidecar_names_the_key(engine_file: EngineFile, damage: Callable[[Any], Any], key: str) -> None:
    path = engine_file()
    content = json.loads(sidecar_path(path).read_text())
    damage(content)
    sidecar_path(path).write_text(json.dumps(content))
    with raises(CardError, key=key, path=sidecar_path(path)):
        read_card(path)


def test_a_sidecar_that_is_no_text(engine_file: EngineFile) -> None:
    path = engine_file()
    sidecar_path(path).write_bytes(b"\xff\xfe\x00")
    with raises(CardError, path=sidecar_path(path)):
        read_card(path)


def test_cards_of_other_files_do_not_carry_the_key(card: Card) -> None:
    assert "engine" not in card.to_json()  # so that an older runtime reads them


# From here on: CUDA graphs, several workers and short memory
def cuda() -> Any:
    return sys.modules["cuda.bindings.runtime"]


def numbers(detector: Detector, *counts: int) -> bool:
    return [len(d) for d in detector(frames(*counts))] == list(counts)


@pytest.mark.parametrize("version", ["tensorrt-10.13", "tensorrt-11.4"])
def test_each_batch_size_is_recorded_once_and_replayed(engine_file: EngineFile, machine: Machine, version: str) -> None:
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


def test_what_cannot_be_recorded_runs_without(engine_file: EngineFile, machine: Machine, caplog: Any) -> None:
    machine(not_capturable=True)
    detector = Detector(engine_file(), threshold=0.5, options=GRAPHS)
    for _ in range(3):
        assert numbers(detector, 1, 2) and numbers(detector, 2, 0, 1)
    told = [f"TensorRT 10.13.3.9: batches of {n} run without a CUDA graph" for n in (2, 3)]
    assert [message[: len(told[0])] for message in caplog.messages] == told and cuda().replays == []


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
    with pytest.raises(
        OutOfMemory, match=r"best\.engine: TensorRT 10.* failed on a batch of 2: Error Code 2: OutOfMemory"
    ):
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
    [("engine", {"compile": True}, "compile"), ("engine", {"provider": "tensorrt"}, "provider"),
     ("onnx", {"autocast": "bf16"}, "autocast")],
)  # fmt: skip
def test_choices_that_are_for_other_files(kind: Any, wrong: dict[str, Any], key: str) -> None:
    with raises(BackendError, key=key, path="best"):
        BackendOptions(**wrong).check(kind, "best")


@pytest.mark.parametrize(
    ("wrong", "key"),
    [({"cuda_graphs": True, "compile": True}, "cuda_graphs"), ({"engine_cache": "x"}, "engine_cache"),
     ({"provider": "tensorrt", "cuda_graphs": True}, "cuda_graphs"), ({"provider": "cpu"}, "provider"),
     ({"autocast": "fp8"}, "autocast")],
)  # fmt: skip
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
