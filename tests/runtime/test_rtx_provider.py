"""ONNX Runtime's plugin for RTX cards: a stand-in of its package, the real session, and a CUDA that is host memory.

The last test asks the real package, where it is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

from runtime import BackendOptions, Detector
from runtime.backends.ort import backend as ort
from runtime.backends.ort import rtx as ort_rtx
from runtime.backends.ort.providers import rtx_settings
from runtime.backends.protocol import BackendError
from tests.at_fault import raises
from tests.fake_cuda import forget_cuda, put_in_fake_cuda
from tests.processes import python
from tests.runtime.conftest import make_card
from tests.runtime.test_ort_library import REAL, Session, pictures, same

OnnxFile = Callable[..., Path]
NAME = "NvTensorRTRTXExecutionProvider"
RTX = BackendOptions(provider="rtx")
pytestmark = pytest.mark.skipif(
    not hasattr(REAL, "get_provider_graph_assignment_info"), reason="onnxruntime is older than its plugins"
)


class Options(onnxruntime.SessionOptions):  # type: ignore[misc,valid-type]
    """Keeps what was asked of a provider; the real one wants a device that this machine has not."""

    asked: list[tuple[list[Any], dict[str, str]]] = []

    def add_provider_for_devices(self, devices: list[Any], settings: dict[str, str]) -> None:
        assert len(devices) == 1, "the plugin takes one device"
        assert all(isinstance(text, str) for pair in settings.items() for text in pair)
        self.asked.append((devices, settings))


class RtxSession(Session):
    """The CPU's session that says it is the plugin's."""

    graph_id = "cuda_graph_annotation_id"
    left: tuple[str, ...] = ()
    broken = False

    def __init__(self, path: str, options: Any, providers: Any = None, enable_fallback: int = 1) -> None:
        if self.broken and providers is None:
            raise RuntimeError("[NvTensorRTRTX EP] Failed to create\n serialized engine")
        super().__init__(path, options, [(NAME, {})] if providers is None else providers, enable_fallback)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        nodes = [node for part in super().get_provider_graph_assignment_info() for node in part.get_nodes()]
        ours = [node for node in nodes if node.op_type not in self.left]
        rest = [node for node in nodes if node.op_type in self.left]
        parts = {NAME: ours, "CPUExecutionProvider": rest}
        return [SimpleNamespace(ep_name=name, get_nodes=lambda n=n: n) for name, n in parts.items() if n]


def device(index: int, name: str = NAME) -> Any:
    return SimpleNamespace(ep_name=name, memory_info=lambda kind: SimpleNamespace(device_id=index))


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The package, and what onnxruntime makes of it: `loaded`, what was loaded in turn, and `devices`."""
    package: Any = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    package.__version__, package.loaded, package.devices = "0.5.0", [], [device(7, "CPUExecutionProvider"), device(0)]
    package.get_ep_name = lambda: NAME
    package.get_library_path = lambda: str(tmp_path / "libplugin.so")
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setattr(ort_rtx, "_registered", set())
    monkeypatch.setattr(
        onnxruntime, "register_execution_provider_library", lambda name, path: package.loaded.append((name, path))
    )
    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: package.devices)
    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    monkeypatch.setattr(onnxruntime, "InferenceSession", RtxSession)
    for kept, empty in ((Options, "asked"), (Session, "opened")):
        monkeypatch.setattr(kept, empty, [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    put_in_fake_cuda(monkeypatch)
    yield package
    forget_cuda()


def test_the_plugin_is_loaded_once_and_only_when_asked_for(
    onnx_file: OnnxFile, plugin: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libcudart.so.13.4.36").touch()
    monkeypatch.setattr(ort_rtx, "ctypes", SimpleNamespace(CDLL=plugin.loaded.append))
    Detector(onnx_file())
    assert plugin.loaded == []
    for _ in range(2):
        assert Detector(onnx_file(), options=RTX).runs_on.endswith(f"on cuda:0 (the first of 1 devices of {NAME})")
    # Its CUDA runtime first: the plugin needs it, and the loader would not find it.
    assert plugin.loaded == [str(tmp_path / "libcudart.so.13.4.36"), (NAME, str(tmp_path / "libplugin.so"))]


@pytest.mark.parametrize("graphs", [False, True])
def test_bound_buffers_give_what_the_cpu_gives(onnx_file: OnnxFile, plugin: Any, graphs: bool) -> None:
    options = BackendOptions(provider="rtx", cuda_graphs=graphs)
    backend, cpu = ort.OrtBackend(onnx_file(), "cuda", 1, options), ort.OrtBackend(onnx_file(), "cpu", 1)
    for count in (1, 5, 2, 7, 5, 1, 32, 6, 0):
        assert same(backend(pictures(count, count)), cpu(pictures(count, count)))
    assert set(backend._session.graphs) == ({"1", "2", "6", "8", "32"} if graphs else set())
    if graphs:
        with pytest.raises(BackendError, match="expected workers=1"):
            backend.context()


def test_the_providers_settings(onnx_file: OnnxFile, plugin: Any, tmp_path: Path) -> None:
    cache = tmp_path / "engines"
    graphs = BackendOptions(provider="rtx", engine_cache=cache, cuda_graphs=True)
    ort.OrtBackend(onnx_file(), "cuda:0", options=graphs)
    ort.OrtBackend(onnx_file("fixed.onnx", batch=2), "cuda:0", options=RTX)
    (devices, dynamic), (_, fixed) = Options.asked
    (folder,) = cache.iterdir()
    assert devices == [plugin.devices[1]] and folder.name.endswith(f"-{onnxruntime.__version__}-rtx-0.5.0")
    assert dynamic == {
        "nv_runtime_cache_path": str(folder),
        "nv_profile_min_shapes": "images:1x32x48x3",
        "nv_profile_opt_shapes": "images:16x32x48x3",
        "nv_profile_max_shapes": "images:32x32x48x3",
        "enable_cuda_graph": "1",
    }
    (home,) = (tmp_path / "cache" / "isodet" / "rtx-provider").iterdir()
    assert fixed == {"nv_runtime_cache_path": str(home)}
    plugin.__version__ = "0.6.0"
    ort.OrtBackend(onnx_file(), "cuda:0", options=graphs)
    ort.OrtBackend(onnx_file(size=(64, 64)), "cuda:0", options=graphs)
    assert len(list(cache.iterdir())) == 3  # nothing is taken that another version built, or of another model
    ort.OrtBackend(onnx_file(), "cuda:0", options=BackendOptions(provider="rtx", engine_cache=cache))
    assert len(list(cache.iterdir())) == 4  # or without the recordings
    with raises(BackendError, key="engine_cache"):
        BackendOptions(engine_cache=cache)


def test_the_device_is_the_one_that_was_asked_for(onnx_file: OnnxFile, plugin: Any) -> None:
    plugin.devices[1:] = [device(2), device(1)]  # without GPU 0, as where that is not an RTX card
    assert ort_rtx.find_device("auto") == ("cuda:1", f"the first of 2 devices of {NAME}")
    assert ort_rtx.find_device("cuda:2") == ("cuda:2", "as asked")
    plugin.devices.append(device(0))
    ort.OrtBackend(onnx_file(), "cuda", options=RTX)
    assert Options.asked[-1][0] == [plugin.devices.pop()]
    for name in ("cuda", "cuda:3"):
        with raises(BackendError, key="device"):
            Detector(onnx_file(), device=name, options=RTX)
    with pytest.raises(BackendError, match=r"provider='rtx'.* needs a GPU; device cpu is the CPU here"):
        Detector(onnx_file(), device="cpu", options=RTX)


@pytest.mark.parametrize("where", ["auto", "cuda"])
def test_it_never_falls_back(
    onnx_file: OnnxFile, plugin: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """Not where the session fails, and not where the plugin opens one and leaves it all to the CPU."""
    monkeypatch.setattr(RtxSession, "broken", True)
    with pytest.raises(BackendError, match=r"cannot run on cuda:0: \[NvTensorRTRTX EP\] Failed to create serialized"):
        Detector(onnx_file(), device=where, options=RTX)
    monkeypatch.setattr(RtxSession, "broken", False)
    kinds = {
        node.op_type for part in opened(onnx_file()).get_provider_graph_assignment_info() for node in part.get_nodes()
    }
    monkeypatch.setattr(RtxSession, "left", tuple(kinds))
    with pytest.raises(BackendError, match=f"cannot run on cuda:0: {NAME} takes no part of the graph: all of it would"):
        Detector(onnx_file(), device=where, options=RTX)
    assert not caplog.records
    monkeypatch.setattr(RtxSession, "left", ("Slice",))
    Detector(onnx_file(), device=where, options=RTX)
    (message,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert message.startswith(f"{onnx_file()}: {NAME} takes ") and message.endswith("leaves to the CPU: 1 Slice")


def opened(path: Path) -> Any:
    options = Options()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return REAL(str(path), options, providers=["CPUExecutionProvider"])


def test_what_is_to_be_installed(onnx_file: OnnxFile, plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(words: str) -> None:
        for where in ("auto", "cuda"):
            with pytest.raises(BackendError, match=words):
                Detector(onnx_file(), device=where, options=RTX)

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, plugin.__name__, None)
        refused(r"provider=\"rtx\" needs its plugin: pip install 'isodet\[rtx-ep\]' \(")
    old = r"onnxruntime 1\.\d+\.\d+ is too old for it: expected 1.25 or later \(pip install -U onnxruntime, with Pyth"
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "__version__", "1.24.4")
        refused(old)
    with monkeypatch.context() as patch:
        patch.delattr(onnxruntime, "register_execution_provider_library")
        refused(old)
    assert plugin.loaded == []


def test_a_library_that_does_not_load(onnx_file: OnnxFile, plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the loader's words, and tried again by the next who asks; registered by the program is as good as by us."""

    def register(words: str) -> Callable[[str, str], None]:
        def fails(name: str, path: str) -> None:
            raise RuntimeError(words)

        return fails

    missing = register("Failed to load library with error:\n libcuda.so.1: cannot open shared object file")
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", missing)
    for _ in range(2):
        with pytest.raises(BackendError, match="does not load: .* error: libcuda.so.1: cannot open .*NVIDIA's driver"):
            Detector(onnx_file(), options=RTX)
    there = register(f"EP library is already registered under {NAME}")
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", there)
    assert Detector(onnx_file(), options=RTX).backend.device == "cuda:0"
    monkeypatch.setattr(ort_rtx, "_registered", set())

    def incomplete() -> str:
        raise FileNotFoundError("No EP library found next to this package")

    monkeypatch.setattr(plugin, "get_library_path", incomplete)
    with pytest.raises(BackendError, match="its library does not load: No EP library found next to this package"):
        Detector(onnx_file(), options=RTX)


def test_no_device(onnx_file: OnnxFile, plugin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(words: str) -> None:
        for where in ("auto", "cuda"):
            with pytest.raises(BackendError, match=f'provider="rtx": no device: {words}; provider="cuda" runs on '):
                Detector(onnx_file(), device=where, options=RTX)

    hardware = [SimpleNamespace(type=SimpleNamespace(name=name)) for name in ("CPU", "GPU", "GPU")]
    del plugin.devices[1]
    notes = {"notes": "NvTensorRTRTX EP does not support GPU with Compute Capability 9.0. Supported are 8.6 and 8.9."}
    monkeypatch.setattr(state, "get_hardware_devices", lambda: hardware, raising=False)
    monkeypatch.setattr(state, "get_hardware_device_ep_incompatibility_details", lambda *_: notes, raising=False)
    refused("NvTensorRTRTX EP does not support GPU with Compute Capability 9.0. Supported are 8.6 and 8.9")
    notes.clear()
    refused("the provider gives no reason")
    del hardware[1:]
    refused(r"onnxruntime finds no GPU in this machine \(check nvidia-smi\)")
    monkeypatch.delattr(state, "get_hardware_devices")
    refused(r"onnxruntime \S+ lists none, and cannot say why \(check nvidia-smi\)")


REALLY = """
import sys
from runtime.backends.protocol import BackendError
from runtime.backends.ort.rtx import find_device
try:
    print("device", *find_device("auto"))
except BackendError as error:
    print("error", error)
package = sys.modules["onnxruntime_ep_nv_tensorrt_rtx"]
print(package.get_ep_name())
print(package.get_library_path())
"""


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx") is None, reason="the extra rtx-ep is not installed"
)
def test_the_real_package() -> None:
    """Its names are those that we use, and loading it ends in a device or in one of our errors. In a process of its
    own, since what it loads stays."""
    done = python("-c", REALLY)
    assert done.returncode == 0, done.stderr
    result, name, library = done.stdout.splitlines()
    assert name == NAME and result.startswith(("device cuda:", 'error provider="rtx": '))
    text = Path(library).with_name("tensorrt_rtx_provider_options.h").read_text(encoding="utf-8")
    settings = rtx_settings(make_card(batch="dynamic"), "images", 32, Path("cache"), cuda_graphs=True)
    assert all(f'"{option}"' in text for option in (*settings, RtxSession.graph_id))
