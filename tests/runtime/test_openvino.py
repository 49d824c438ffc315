"""OpenVINO: every form of NMS, batches, workers, precisions and devices that are not there; and no word to anybody."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import export
from export.options import Gate, NmsKind, OnnxOptions
from runtime import BackendOptions, Detector
from runtime.backends.openvino import library
from runtime.backends.openvino.backend import OpenVinoBackend
from runtime.backends.openvino.devices import check_precision, find_device
from runtime.backends.options import OpenVinoPrecision
from runtime.backends.protocol import BackendError
from runtime.card.card import CardError
from tests.processes import python
from tests.runtime.conftest import make_card

OPENVINO = BackendOptions(engine="openvino")
OnnxFile = Callable[..., Path]


@pytest.fixture(scope="module")
def forms(shapes_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[NmsKind], Path]:
    """The detector with each form of NMS, exported when it is first asked for."""
    folder = tmp_path_factory.mktemp("forms")

    def form(kind: NmsKind) -> Path:
        path = folder / f"{kind}.onnx"
        if not path.is_file():
            export.to_onnx(shapes_run / "best.pt", path, OnnxOptions(nms=kind), Gate(verify=False))
        return path

    return form


@pytest.fixture(scope="module")
def pictures(shapes_run: Path) -> list[Path]:
    return sorted((shapes_run.parent.parent / "data" / "val").glob("*.*"))[:5]


def same(one: Any, other: Any, pixels: float = 1e-3, score: float = 1e-5) -> None:
    assert [len(found) for found in one] == [len(found) for found in other] and sum(map(len, one)) > 0
    for a, b in zip(one, other, strict=True):
        assert (a.labels == b.labels).all()
        np.testing.assert_allclose(a.boxes_xyxy, b.boxes_xyxy, atol=pixels)
        np.testing.assert_allclose(a.scores, b.scores, atol=score)


@pytest.mark.parametrize("kind", ["auto", "portable", "loop", "onnx", "plugin", "none"])
def test_every_form_of_nms_gives_onnx_runtimes_detections(
    kind: NmsKind, forms: Callable[[NmsKind], Path], pictures: list[Path]
) -> None:
    detector = Detector(forms(kind), options=OPENVINO)
    assert isinstance(detector.backend, OpenVinoBackend) and detector.runs_on.startswith("OpenVINO 20")
    reference = Detector(forms("auto"), options=BackendOptions(engine="onnxruntime"))
    same(detector(pictures, 0.05), reference(pictures, 0.05))
    same([detector(path, 0.05)[0] for path in pictures], reference(pictures, 0.05))


def test_no_frame_a_frame_of_one_color_and_a_fixed_batch(onnx_file: OnnxFile) -> None:
    for batch in ("dynamic", 3):
        detector = Detector(onnx_file(batch=batch), options=OPENVINO, threshold=0.1)
        assert detector.backend.fixed_batch == (None if batch == "dynamic" else 3)
        assert detector([]) == []
        (found,) = detector(np.full((32, 48, 3), (1, 200, 30), np.uint8))
        assert found.boxes_xyxy.tolist() == [[0, 0, 30, 30], [7.5, 7.5, 15, 15]] and found.labels.tolist() == [1, 1]
        assert not detector(np.zeros((32, 48, 3), np.uint8))[0]


@pytest.mark.parametrize("streams", [1, 2])
def test_workers_have_requests_of_their_own(onnx_file: OnnxFile, streams: int) -> None:
    options = BackendOptions(engine="openvino", streams=streams)
    detector = Detector(onnx_file(), options=options, threads=2, threshold=0.1)
    frames = [np.full((32, 48, 3), (i % 3, 100 + i, 1 + i % 40), np.uint8) for i in range(120)]
    expected = detector(frames)
    with detector.batcher(max_batch=4, workers=2) as batcher:
        answers = [batcher.submit(frame) for frame in frames]
        found = [answer.result(timeout=60) for answer in answers]
    same(found, expected, pixels=0, score=0)
    same([detections for frame in frames for detections in detector(frame)], expected, pixels=0, score=0)


def test_one_detector_answers_several_threads(onnx_file: OnnxFile) -> None:
    detector = Detector(onnx_file(), options=OPENVINO, threads=1, threshold=0.1)
    frames = [np.full((32, 48, 3), (i % 3, 100 + i, 1 + i % 40), np.uint8) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = [detections for (detections,) in pool.map(detector, frames)]
    same(found, detector(frames), pixels=0, score=0)


INTERRUPTED = """
import os, signal, sys, time
from runtime import BackendOptions, Detector
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's shell has it ignored
for _ in range(3):
    detector = Detector(sys.argv[1], options=BackendOptions(engine="openvino"))  # the old one goes last
del detector
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_several_detectors_is_a_keyboard_interrupt(onnx_file: OnnxFile) -> None:
    done = python("-c", INTERRUPTED, onnx_file())
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


FORKED = """
import os, signal, sys
import numpy as np
from runtime import BackendOptions, Detector
openvino = BackendOptions(engine="openvino")
detector = Detector(sys.argv[1], threads=2, threshold=0.1, options=openvino)
frame = np.full((32, 48, 3), 90, np.uint8)
assert len(detector(frame)[0]) == 2
child = os.fork()
if child == 0:
    signal.alarm(60)  # instead of waiting for ever
    for attempt in (lambda: detector(frame), lambda: Detector(sys.argv[1], options=openvino)):
        try:
            attempt()
        except RuntimeError as error:
            print(error, flush=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_is_told_what_to_do_instead_of_waiting_for_ever(onnx_file: OnnxFile) -> None:
    done = python("-c", FORKED, onnx_file())
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if "load the first model after forking" in line]
    assert len(told) == 2 and all("tiny.onnx: OpenVINO was started in process" in line for line in told)


def test_bf16_is_what_was_asked_for_and_says_whether_it_was_verified(
    forms: Callable[[NmsKind], Path], pictures: list[Path]
) -> None:
    core = pytest.importorskip("openvino").Core()
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(BackendError, match=r"precision: CPU \(.*\) does not compute in bf16; it has float32"):
            Detector(forms("auto"), options=BackendOptions(engine="openvino", precision="bf16"))
        return
    exact, rounded = (
        Detector(forms("auto"), options=BackendOptions(engine="openvino", precision=precision))
        for precision in ("float32", "bf16")
    )
    assert {kind for _, kind in exact.backend.convolutions()} == {"f32"}  # type: ignore[attr-defined]
    assert {kind for _, kind in rounded.backend.convolutions()} == {"bf16"}  # type: ignore[attr-defined]
    assert "nothing has verified bf16" in rounded.runs_on and "verified" not in exact.runs_on
    for a, b in zip(exact(pictures, 0.5), rounded(pictures, 0.5), strict=True):
        assert abs(len(a) - len(b)) <= 1
    with pytest.raises(BackendError, match=r"portable.onnx: precision bf16 would round its boxes.*--nms auto"):
        Detector(forms("portable"), options=BackendOptions(engine="openvino", precision="bf16"))


class FakeCore:
    """A machine with these devices, and what each computes in."""

    def __init__(self, **devices: str):
        self.devices = {name.replace("_", "."): capabilities.split() for name, capabilities in devices.items()}

    @property
    def available_devices(self) -> list[str]:
        return list(self.devices)

    def get_property(self, device: str, name: str) -> Any:
        return self.devices[device] if name == "OPTIMIZATION_CAPABILITIES" else f"Intel {device}"


def test_devices_by_openvinos_names() -> None:
    core = FakeCore(CPU="FP32 BF16", GPU_0="FP32 FP16", GPU_1="FP32 FP16", NPU="FP16 INT8")
    assert find_device(core, "auto") == ("CPU", "OpenVINO also finds GPU.0, GPU.1, NPU: device='gpu.0'")
    assert find_device(FakeCore(CPU="FP32"), "auto") == ("CPU", "")
    named = {
        "cpu": "CPU",
        "gpu": "GPU",
        "gpu:1": "GPU.1",
        "GPU.0": "GPU.0",
        "npu": "NPU",
        "auto:gpu,cpu": "AUTO:GPU,CPU",
    }
    assert {device: find_device(core, device)[0] for device in named} == named
    for device in ("gpu:2", "cuda", "tpu", "auto:", "auto:gpu.7,cpu", ""):
        with pytest.raises(BackendError, match=r"device: .*(OpenVINO finds no|expected devices).*auto:gpu,cpu"):
            find_device(core, device)


def test_a_precision_that_the_device_lacks_is_refused() -> None:
    core = FakeCore(CPU="FP32 BF16", GPU="FP32 FP16", NPU="FP16 INT8")
    fits: list[tuple[str, OpenVinoPrecision]] = [("CPU", "float32"), ("CPU", "bf16"), ("GPU", "fp16"), ("NPU", "fp16")]
    for device, precision in [*fits, ("AUTO:GPU,CPU", "float32")]:
        check_precision(core, device, precision)
    lacks: list[tuple[str, OpenVinoPrecision]] = [("CPU", "fp16"), ("GPU", "bf16"), ("NPU", "float32")]
    for device, precision in [*lacks, ("AUTO:GPU,CPU", "fp16")]:
        with pytest.raises(BackendError, match=rf"precision: .* does not compute in {precision}; it has "):
            check_precision(core, device, precision)


def test_a_device_that_is_not_here_is_named(onnx_file: OnnxFile) -> None:
    for device in ("gpu:5", "cuda:0"):
        with pytest.raises(BackendError, match="OpenVINO finds no .* here, only CPU"):
            Detector(onnx_file(), device, options=OPENVINO)


def test_where_it_is_missing_or_too_old_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "openvino_version", lambda: "2024.6.0")
    with pytest.raises(
        BackendError, match=r"expected version 2025.0 or later, got 2024.6.0: pip install 'isodet\[open"
    ):
        library.load_openvino()
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendError, match=r"engine openvino: it is not installed.*pip install 'isodet\[openvino\]'"):
        library.load_openvino()


def test_a_version_that_pip_does_not_know_is_asked_of_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(library, "version", version)
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(get_version=lambda: "2026.4.1-22982-abc-releases"))
    assert library.openvino_version() == "2026.4.1"


ALONE = """
import socket, sys
def refuse(*arguments, **keywords):
    raise SystemExit("it speaks to the network")
socket.socket.connect = socket.getaddrinfo = refuse
sys.modules["onnxruntime"] = None
import numpy as np
from runtime import Detector
detector = Detector(sys.argv[1], threshold=0.1)
print(detector.runs_on, len(detector(np.full((32, 48, 3), 90, np.uint8))[0]))
"""


def test_it_is_taken_where_onnx_runtime_is_missing_and_speaks_to_nobody(onnx_file: OnnxFile) -> None:
    done = python("-c", ALONE, onnx_file())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("OpenVINO 20") and done.stdout.split()[-1] == "2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "torch"}, "engine: expected auto, onnxruntime, openvino; got 'torch'"),
        ({"precision": "bf16"}, 'precision: expected with engine="openvino" only'),
        ({"engine": "openvino", "precision": "int8"}, "precision: expected float32, bf16, fp16; got 'int8'"),
        ({"streams": 2}, 'streams: expected with engine="openvino" only'),
        ({"engine": "openvino", "streams": 0}, "streams: expected at least 1, got 0"),
        ({"engine": "openvino", "provider": "tensorrt"}, "provider: a choice of ONNX Runtime on a GPU"),
        ({"engine": "openvino", "cuda_graphs": True}, "cuda_graphs: a choice of ONNX Runtime on a GPU"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        BackendOptions(**options)


def test_the_engine_is_a_choice_for_graphs_only(shapes_run: Path) -> None:
    with pytest.raises(BackendError, match=r"best.pt: engine is a choice for .onnx files"):
        Detector(shapes_run / "best.pt", options=OPENVINO)


def test_a_graph_that_is_not_what_its_card_says(onnx_file: OnnxFile, monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime.backends.openvino import backend

    wrong: dict[str, dict[str, Any]] = {
        r"expected one input, uint8 \[B, 64, 48, 3\]": {"input_size_hw": (64, 48)},
        r"expected one input, float32 \[B, 3, 32, 48\]": {"input": "float-nchw", "color": "rgb"},
        "'3', but the graph takes any batch|3, but the graph takes any batch": {"batch": 3},
        "expected the outputs num_dets int32, boxes .* nms_exact bool; got num_dets int32, boxes": {
            "nms": {"kind": "portable", "iou": 0.6, "candidates": 10, "detections": 2, "certificate": True}
        },
    }
    path = onnx_file()
    for message, changes in wrong.items():
        monkeypatch.setattr(backend, "read_onnx_card", lambda *_, changes=changes: make_card(**changes))
        with pytest.raises(CardError, match=message):
            Detector(path, options=BackendOptions(engine="openvino", check_hashes=False))


def test_a_file_that_openvino_cannot_read_is_named(onnx_file: OnnxFile) -> None:
    import onnx

    path = onnx_file()
    model = onnx.load(path)
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, path)
    with pytest.raises(BackendError, match=r"tiny.onnx: OpenVINO .* cannot load it on cpu: .*Unheard"):
        Detector(path, options=BackendOptions(engine="openvino", check_hashes=False))


def blobs(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_the_cache_of_compiled_models_may_be_damaged_and_must_be_a_folder(onnx_file: OnnxFile, tmp_path: Path) -> None:
    frame: NDArray[np.uint8] = np.full((32, 48, 3), (2, 90, 20), np.uint8)
    path, cache = onnx_file(), tmp_path / "cache" / "below"
    options = BackendOptions(engine="openvino", engine_cache=cache)
    expected = Detector(path, options=OPENVINO, threshold=0.1)(frame)
    same(Detector(path, options=options, threshold=0.1)(frame), expected)
    assert blobs(cache), "nothing was kept"
    whole = blobs(cache)[0].read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], bytes(len(whole))):
        for blob in blobs(cache):
            blob.write_bytes(content)
        same(Detector(path, options=options, threshold=0.1)(frame), expected)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BackendError, match="file: engine_cache: no folder can be made there"):
        Detector(path, options=BackendOptions(engine="openvino", engine_cache=tmp_path / "file"))
