"""ONNX Runtime: which build to install, where it is missing, does not load or is the wrong one; and no telemetry."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from pytest import LogCaptureFixture, MonkeyPatch

from isodet.telemetry import SILENT
from runtime import BackendOptions, Detector
from runtime.backends.ort import backend as ort
from runtime.backends.ort import library as ort_library
from runtime.backends.ort.library import load_onnxruntime
from runtime.backends.protocol import BackendError, OutOfMemory
from runtime.images.image import write_image
from tests.at_fault import raises
from tests.fake_cuda import forget_cuda, put_in_fake_cuda
from tests.processes import python
from tests.threads import in_threads

OnnxFile = Callable[..., Path]
CHOICE = "pip install 'isodet[cpu]' or, for an NVIDIA GPU, pip install 'isodet[gpu]'"
BOTH = (
    "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: "
    "pip uninstall -y onnxruntime onnxruntime-gpu && "
)
ABSENT = f"an ONNX file needs ONNX Runtime; it is not installed: {CHOICE} ("


def installed(monkeypatch: MonkeyPatch, *names: str) -> None:
    """pip's records hold these builds of ONNX Runtime and no other."""

    def version(name: str) -> str:
        if name not in names:
            raise PackageNotFoundError(name)
        return "1.31.1"

    monkeypatch.setattr(ort_library, "version", version)


@pytest.fixture
def neither(monkeypatch: MonkeyPatch) -> None:
    """An environment without ONNX Runtime, as a base install is."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)  # which would take its place
    monkeypatch.delitem(sys.modules, "runtime.backends.ort.backend", raising=False)
    installed(monkeypatch)


@pytest.mark.usefixtures("neither")
def test_without_onnxruntime_the_error_names_both_extras(onnx_file: OnnxFile) -> None:
    for _ in range(2):  # a failed import leaves nothing behind that a second call would find
        with pytest.raises(BackendError) as raised:
            Detector(onnx_file())
        assert str(raised.value).startswith(ABSENT) and "\n" not in str(raised.value)


WITHOUT_ONNXRUNTIME = """
import importlib.metadata, runpy, sys
sys.modules["onnxruntime"] = sys.modules["openvino"] = None
found = importlib.metadata.version
def version(name):
    if name.startswith("onnxruntime"):
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version
sys.argv[0] = "runtime"
runpy.run_module("runtime", run_name="__main__")
"""


@pytest.mark.parametrize("command", ["detect", "bench"])
def test_without_onnxruntime_the_commands_say_so_in_one_line(command: str, onnx_file: OnnxFile, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    words = [tmp_path / "a.png", "--model", onnx_file()] if command == "detect" else [onnx_file()]
    done = python("-c", WITHOUT_ONNXRUNTIME, command, *words)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"runtime {command}: error: {ABSENT}")  # below a progress bar's line


def test_what_needs_no_onnxruntime_does_not_load_it() -> None:
    """Engines and what NVIDIA's driver is asked; `isodet[trt]` brings no build."""
    code = (
        "import sys\nsys.modules['onnxruntime'] = None\n"
        "import runtime.backends.trt.backend, runtime.backends.cuda.devices"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (("onnxruntime",), "onnxruntime is installed and does not load: pip uninstall -y onnxruntime && "),
        (("onnxruntime", "onnxruntime-gpu"), BOTH),
    ],
)
def test_a_broken_build_is_to_be_removed_first(monkeypatch: MonkeyPatch, names: tuple[str, ...], advice: str) -> None:
    installed(monkeypatch, *names)
    left_behind = ModuleType("onnxruntime")  # an empty folder, after one of two builds took the other's files with it
    for module in (None, left_behind):
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        with pytest.raises(BackendError) as raised:
            ort_library.load_onnxruntime()
        assert f"ONNX Runtime; {advice}{CHOICE} (" in str(raised.value)


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        ((), "this onnxruntime is built for the CPU: pip uninstall -y onnxruntime && "),
        (("onnxruntime",), "this onnxruntime is built for the CPU: pip uninstall -y onnxruntime && "),
        (("onnxruntime", "onnxruntime-gpu"), BOTH),
    ],
)
def test_a_gpu_that_the_build_does_not_know_is_an_error_that_names_the_other_build(
    onnx_file: OnnxFile, monkeypatch: MonkeyPatch, names: tuple[str, ...], advice: str
) -> None:
    installed(monkeypatch, *names)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for device in ("cuda", "cuda:1"):
        with pytest.raises(BackendError) as raised:
            Detector(onnx_file(), device=device)
        assert str(raised.value) == f"device {device}: {advice}pip install 'isodet[gpu]'"
    assert Detector(onnx_file()).runs_on.endswith("on cpu (this onnxruntime is built for the CPU)")


def test_the_records_of_pip_are_asked() -> None:
    """The environment that runs this has one build; with both, its answers would be those of neither."""
    assert len(ort_library.installed_builds()) == 1


# From here on: telemetry, which nobody gets unless the user says so
OnnxFile = Callable[..., Path]


def started(code: str, home: Path, **variables: str) -> str:
    """What `code` prints, in a process with `home` as its home folder and none of the variables of `SILENT`."""
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if name not in (*SILENT, "XDG_CACHE_HOME")}
    done = python("-c", code, env={**kept, "HOME": str(home), **variables})
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_detector_leaves_no_device_id_and_no_queue_of_events(onnx_file: OnnxFile, tmp_path: Path) -> None:
    code = (
        "import numpy as np\nfrom runtime import Detector\n"
        f"print(len(Detector({str(onnx_file())!r})(np.zeros((64, 64, 3), np.uint8))))"
    )
    assert started(code, tmp_path / "home").strip() == "1"
    assert files(tmp_path / "home") == []


@pytest.mark.parametrize("room", ["runtime", "trainer.config.train", "export.onnx_export"])
def test_every_room_silences_them_before_they_are_imported(room: str, tmp_path: Path) -> None:
    code = f"import os, sys, {room}\nprint('onnxruntime' in sys.modules, *(os.environ[n] for n in {tuple(SILENT)!r}))"
    assert started(code, tmp_path / "home").split() == ["False", *SILENT.values()]


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    code = "import os, runtime\nprint(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert started(code, tmp_path / "home", ORT_DISABLE_TELEMETRY="0").strip() == "0"


@pytest.mark.parametrize(("asked", "calls"), [("1", 1), ("0", 0)])
def test_an_onnxruntime_imported_before_is_told(asked: str, calls: int, monkeypatch: MonkeyPatch) -> None:
    told = []
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", asked)
    monkeypatch.setattr(onnxruntime, "disable_telemetry_events", lambda: told.append(True))
    load_onnxruntime()
    assert len(told) == calls


# From here on: the real session and its IOBinding on a GPU, whose CUDA is host memory
OnnxFile = Callable[..., Path]
GRAPHS = BackendOptions(cuda_graphs=True)
REAL = onnxruntime.InferenceSession


class Session(REAL):  # type: ignore[misc,valid-type]
    """The CPU's session that says it is the GPU's, and holds its callers to what CUDA graphs ask for."""

    opened: list[list[Any]] = []
    missing: tuple[str, ...] = ()
    limit = 1 << 30
    graph_id = "gpu_graph_id"

    def __init__(self, path: str, options: Any, providers: list[Any], enable_fallback: int = 1) -> None:
        assert enable_fallback == 0 or providers == ["CPUExecutionProvider"], "a GPU that fails would become the CPU"
        names = [p if isinstance(p, str) else p[0] for p in providers]
        self.told = [name for name in names if name not in self.missing]
        self.opened.append(providers)
        self.graphs: dict[str, dict[str, int]] = {}
        self.stays = enable_fallback == 1
        super().__init__(path, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return self.told

    def disable_fallback(self) -> None:
        self.stays = False

    def run(self, *arguments: Any) -> Any:
        assert self.told == ["CPUExecutionProvider"], "on a GPU nothing goes through ordinary memory"
        return super().run(*arguments)

    def io_binding(self) -> Any:
        binding = super().io_binding()
        binding.addresses, bind_input, bind_output = {}, binding.bind_input, binding.bind_output

        def to_host(bind: Callable[..., None]) -> Callable[..., None]:
            def bound(name: str, kind: str, index: int, dtype: Any, shape: list[int], address: int) -> None:
                assert (kind, index) == ("cuda", 0)
                binding.addresses[name] = address
                bind(name, "cpu", 0, dtype, shape, address)

            return bound

        binding.bind_input, binding.bind_output = to_host(bind_input), to_host(bind_output)
        return binding

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        assert not self.stays
        try:
            number = options.get_run_config_entry(self.graph_id)
        except RuntimeError:
            number = ""
        if number:
            recorded = self.graphs.setdefault(number, binding.addresses)
            assert recorded == binding.addresses, "a recording knows one set of addresses"
        if number and int(number) > self.limit:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
        super().run_with_iobinding(binding, options)


@pytest.fixture
def gpu(monkeypatch: MonkeyPatch) -> Iterator[Any]:
    """One CUDA device in this machine, as onnxruntime and cuda-python see it; the latter's `runtime`."""
    monkeypatch.setattr(Session, "opened", [])
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(ort, "cuda_device_count", lambda: 1)
    yield put_in_fake_cuda(monkeypatch)
    forget_cuda()


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (count, 32, 48, 3), np.uint8)


def same(raw: Any, expected: Any) -> bool:
    return all(a is b is None or np.array_equal(a, b) for a, b in zip(raw, expected, strict=True))


@pytest.mark.parametrize("options", [BackendOptions(), GRAPHS])
def test_bound_buffers_give_what_the_cpu_gives(onnx_file: OnnxFile, gpu: Any, options: BackendOptions) -> None:
    """Growing and shrinking batches; with CUDA graphs also the ones that are padded, and replayed."""
    backend, cpu = ort.OrtBackend(onnx_file(), "cuda", 1, options), ort.OrtBackend(onnx_file(), "cpu", 1)
    assert backend.device == "cuda:0"
    kept = []
    for count in (1, 5, 2, 7, 5, 1, 40, 6, 3, 0):
        images = pictures(count, count)
        assert backend.timed is not None and cpu.timed is None
        raw, seconds = backend.timed(images)
        assert tuple(seconds) == ("host to device", "engine", "device to host") and min(seconds.values()) >= 0
        assert same(raw, backend(images))
        kept.append((raw, cpu(images)))
        images[:] = 0  # they are the caller's again
    assert all(same(raw, expected) for raw, expected in kept)  # and the outputs are nobody's buffers
    session = backend._session
    assert set(session.graphs) == ({"1", "2", "3", "6", "8", "48"} if options is GRAPHS else set())


def test_a_fixed_batch_is_bound_as_it_is(onnx_file: OnnxFile, gpu: Any) -> None:
    detector = Detector(onnx_file(batch=5), device="cuda", options=GRAPHS, threshold=0.0)
    expected = Detector(onnx_file(batch=5), device="cpu", threshold=0.0)
    for given, wanted in zip(detector(list(pictures(7))), expected(list(pictures(7))), strict=True):
        np.testing.assert_array_equal(given.boxes_xyxy, wanted.boxes_xyxy)
    assert set(detector.backend._session.graphs) == {"5"}  # type: ignore[attr-defined]


def test_the_providers_settings(onnx_file: OnnxFile, gpu: Any, tmp_path: Path) -> None:
    for file, options in ((onnx_file(), BackendOptions()), (onnx_file("f.onnx", batch=2), GRAPHS)):
        ort.OrtBackend(file, "cuda:0", options=options)
    settings = [opened[0][1] for opened in Session.opened]
    assert settings == [
        {"device_id": 0, "cudnn_conv_algo_search": "HEURISTIC"},
        {"device_id": 0, "cudnn_conv_algo_search": "EXHAUSTIVE", "enable_cuda_graph": True},
    ]
    tensorrt = BackendOptions(provider="tensorrt", engine_cache=tmp_path / "cache")
    backend = ort.OrtBackend(onnx_file(), "cuda", options=tensorrt)
    name, chosen = Session.opened[-1][0]
    assert name == "TensorrtExecutionProvider" and [p[0] for p in Session.opened[-1][:2]][1] == "CUDAExecutionProvider"
    assert chosen["trt_profile_max_shapes"] == "images:32x32x48x3"
    assert chosen["trt_profile_min_shapes"] == "images:1x32x48x3" and "trt_fp16_enable" not in chosen
    (folder,) = (tmp_path / "cache").iterdir()
    assert chosen["trt_engine_cache_path"] == str(folder) and backend.max_batch == 32
    ort.OrtBackend(onnx_file(size=(64, 64)), "cuda", options=tensorrt)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # another model's engines are never taken for this one's


def test_engines_are_of_the_weights_beside_a_graph_too(onnx_file: OnnxFile, gpu: Any, tmp_path: Path) -> None:
    """Its file is the same, byte for byte: an engine of the old weights would detect with them in silence."""
    options = BackendOptions(provider="tensorrt", engine_cache=tmp_path / "cache")
    model = onnx.load(onnx_file())
    weight = onnx.numpy_helper.from_array(np.arange(1000, dtype=np.float32), "unused")
    model.graph.initializer.append(weight)
    path = tmp_path / "beside.onnx"
    onnx.save(model, path, save_as_external_data=True, location="beside.weights", size_threshold=1024)
    for _ in range(2):
        ort.OrtBackend(path, "cuda", options=options)
    (folder,) = (tmp_path / "cache").iterdir()
    (tmp_path / "beside.weights").write_bytes(bytes(4000))
    ort.OrtBackend(path, "cuda", options=options)
    assert len({folder, *(tmp_path / "cache").iterdir()}) == 2


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_does_not_load_is_an_error(
    onnx_file: OnnxFile, gpu: Any, monkeypatch: MonkeyPatch, tmp_path: Path, provider: Any
) -> None:
    name = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[provider]
    monkeypatch.setattr(Session, "missing", (name,))
    options = BackendOptions(provider=provider, engine_cache=tmp_path if provider == "tensorrt" else None)
    with pytest.raises(BackendError, match=f"cannot run on cuda:0: onnxruntime's {name} did not load"):
        Detector(onnx_file(), device="cuda", options=options)
    if provider == "tensorrt":  # asked for by name, and so not given up by auto
        with pytest.raises(BackendError, match="cannot run on cuda:0"):
            Detector(onnx_file(), options=options)


def test_auto_says_why(onnx_file: OnnxFile, gpu: Any, monkeypatch: MonkeyPatch, caplog: LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "runtime.backends")
    detector = Detector(onnx_file())
    assert detector.runs_on == f"ONNX Runtime {onnxruntime.__version__} on cuda:0 (the first of 1 CUDA devices)"
    assert caplog.messages == [f"{onnx_file()}: {detector.runs_on}"]
    monkeypatch.setattr(Session, "missing", ("CUDAExecutionProvider",))
    assert "on cpu (it cannot run on cuda:0: onnxruntime's CUDAExec" in Detector(onnx_file()).runs_on
    assert caplog.records[1].levelname == "WARNING"
    monkeypatch.setattr(ort, "cuda_device_count", lambda: 0)
    assert Detector(onnx_file()).runs_on.endswith("on cpu (CUDA finds no device here)")
    assert Detector(onnx_file(), device="cpu").runs_on.endswith("on cpu (as asked)") and len(caplog.records) == 4
    with pytest.raises(BackendError, match=r"cuda_graphs=True.* needs a GPU; device auto is the CPU here"):
        Detector(onnx_file(), options=GRAPHS)
    with raises(BackendError, key="device"):
        Detector(onnx_file(), device="cuda")


def test_without_cuda_python(
    onnx_file: OnnxFile, gpu: Any, monkeypatch: MonkeyPatch, caplog: LogCaptureFixture
) -> None:
    """It runs as it can, and says so; what cannot be had without it is an error."""
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    forget_cuda()
    caplog.set_level(logging.INFO, "runtime.backends")
    backend = ort.OrtBackend(onnx_file(), "cuda")
    assert not backend.takes_device_frames and backend.context() is backend
    assert "frames are copied through ordinary memory: this needs cuda-python: pip install" in caplog.text
    with pytest.raises(BackendError, match="cuda_graphs: this needs cuda-python: pip install cuda-python"):
        ort.OrtBackend(onnx_file(), "cuda", options=GRAPHS)


def test_workers_have_buffers_of_their_own(onnx_file: OnnxFile, gpu: Any) -> None:
    backend, cpu = ort.OrtBackend(onnx_file(), "cuda"), ort.OrtBackend(onnx_file(), "cpu", 1)
    contexts = [backend, backend.context(), backend.context()]

    def work(seed: int) -> None:
        for i in range(50):
            images = pictures(1 + i % 4, 100 * seed + i)
            assert same(contexts[seed](images), cpu(images))

    in_threads(*(partial(work, seed) for seed in range(3)))
    with pytest.raises(BackendError, match="replays CUDA graphs in one thread at a time: expected workers=1"):
        Detector(onnx_file(), device="cuda", options=GRAPHS).batcher(workers=2)


def test_memory_that_is_short(
    onnx_file: OnnxFile, gpu: Any, monkeypatch: MonkeyPatch, caplog: LogCaptureFixture
) -> None:
    """In a run, and already for the buffers: smaller batches from then on, the right boxes, one warning each."""
    expected = Detector(onnx_file(), device="cpu", threshold=0.0)(list(pictures(20)))
    monkeypatch.setattr(Session, "limit", 6)
    detectors = [Detector(onnx_file(), device="cuda", options=GRAPHS, threshold=0.0)]
    whole = gpu.cudaMalloc
    monkeypatch.setattr(gpu, "cudaMalloc", lambda size: whole(size) if size <= 6 * 4608 else (2, None))
    detectors.append(Detector(onnx_file(), device="cuda", threshold=0.0))
    for detector in detectors:
        for found, wanted in zip(detector(list(pictures(20))), expected, strict=True):
            np.testing.assert_array_equal(found.boxes_xyxy, wanted.boxes_xyxy)
    assert [m.partition(";")[0] for m in caplog.messages] == [
        "cuda:0 has no memory for a batch of 20: batches of 5 from now on"
    ] * 2
    monkeypatch.setattr(gpu, "cudaMalloc", lambda size: (2, None))
    with pytest.raises(OutOfMemory, match="CUDA: broken .2."):
        Detector(onnx_file(), device="cuda")(pictures(1)[0])


def test_an_output_of_unknown_size(onnx_file: OnnxFile, gpu: Any, monkeypatch: MonkeyPatch) -> None:
    def outputs(session: Any) -> list[Any]:
        shapes = {"boxes": ["batch", "found", 4]}
        return [SimpleNamespace(name=o.name, type=o.type, shape=shapes.get(o.name, o.shape))
                for o in REAL.get_outputs(session)]  # fmt: skip

    monkeypatch.setattr(Session, "get_outputs", outputs)
    with raises(BackendError, key="cuda_graphs"):
        ort.OrtBackend(onnx_file(), "cuda", options=GRAPHS)
    assert not ort.OrtBackend(onnx_file(), "cuda").takes_device_frames


def test_a_batcher_stacks_where_the_gpu_reads(onnx_file: OnnxFile, gpu: Any) -> None:
    """Its batches are uploaded from the memory that they were stacked in; frames are answered with their own boxes."""
    detector = Detector(onnx_file(), device="cuda", threshold=0.0)
    expected = Detector(onnx_file(), device="cpu", threshold=0.0)(list(pictures(60)))
    with detector.batcher(8, 1, workers=2) as batcher:
        futures = [batcher.submit(picture) for picture in pictures(60)]
        for future, wanted in zip(futures, expected, strict=True):
            np.testing.assert_array_equal(future.result(60).boxes_xyxy, wanted.boxes_xyxy)
    bound = {binding[1].buffers["images"].address for binding in detector.backend._bound._bindings.values()}  # type: ignore[attr-defined]
    assert gpu.uploads and not bound & set(gpu.uploads)
    memory = detector.backend.host_memory(7)  # type: ignore[attr-defined]
    address, view = memory.ctypes.data, memory[2:]
    del memory
    assert address in gpu.alive and view.size == 5
    del view
    assert address not in gpu.alive  # given back with the last view of it
