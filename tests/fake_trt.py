"""TensorRT as its bindings describe it: classes with exactly the members of golden/trt-api.

Our code runs against these where no GPU and no TensorRT is. A member that a version does not have is an AttributeError,
as it is there; one that it has and that this stand-in does not act out is an AssertionError, never a silent success.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.fake_cuda import CAPTURE

GOLDEN = Path(__file__).parent / "golden" / "trt-api"
VERSIONS = ("tensorrt-10.13", "tensorrt-11.4", "tensorrt-rtx-1.7")


def members(version: str) -> dict[str, list[str]]:
    """Class or function -> its members, of one of `VERSIONS`."""
    content: dict[str, list[str]] = json.loads((GOLDEN / f"{version}.json").read_text())
    return content


def fake_trt(version: str, network: dict[str, Any] | None = None, run: Callable[..., Any] | None = None) -> Any:
    """The module of that version.

    network: what the parser finds: `shape` of the input, `errors` (node, operator, text), `layers` (type names).
    run(images uint8 [B, H, W, 3]) -> outputs by name, for engines.
    """
    api = members(version)
    module = types.ModuleType("tensorrt_rtx" if "rtx" in version else "tensorrt")
    module.__dict__["__version__"] = {"10": "10.13.3.9", "11": "11.4.0.5", "rt": "1.7.1.116"}[version.split("-")[1][:2]]
    found: dict[str, Any] = {"shape": (-1, 8, 8, 3), "errors": [], "layers": ["CONVOLUTION"], **(network or {})}
    seen: dict[str, Any] = {"flags": None, "set": [], "plugins": False, "cache": None, "refuses": found.get("refuses")}
    module.__dict__["seen"] = seen
    for name, names in api.items():
        if "name" in names and "value" in names:
            members_ = [n for n in names if n.isupper() or n[:2] == "SM"]
            module.__dict__[name] = enum.IntEnum(name, {n: i for i, n in enumerate(members_)})
        elif names:
            module.__dict__[name] = _strict(name, names, {})
    severity = {n: i for i, n in enumerate(("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"))}

    def act(kind: str, /, **behavior: Any) -> None:
        unknown = [n for n in behavior if not n.startswith("_") and n not in api[kind]]
        assert not unknown, f"{version} has no {kind}.{unknown[0]}"
        module.__dict__[kind] = _strict(kind, api[kind], behavior)

    act("ILogger", **severity)
    act("IProgressMonitor")
    act("ITensor", name="images", shape=found["shape"])
    act("IOptimizationProfile", set_shape=lambda self, *a: seen["set"].append(("profile", *a)))
    act("ParserError", **{n: (lambda self, n=n: self._told[n]) for n in ("node_name", "node_operator", "desc")})

    def get_layer(self: Any, index: int) -> Any:
        kind = types.SimpleNamespace(name=found["layers"][index])
        return types.SimpleNamespace(type=kind)

    act("INetworkDefinition", num_inputs=1, num_layers=len(found["layers"]), get_layer=get_layer,
        get_input=lambda self, index: module.ITensor())  # fmt: skip

    def get_error(self: Any, index: int) -> Any:
        error = module.ParserError()
        error._told = dict(zip(("node_name", "node_operator", "desc"), found["errors"][index], strict=True))
        return error

    act("OnnxParser", parse_from_file=lambda self, path: not found["errors"], num_errors=len(found["errors"]),
        get_error=get_error)  # fmt: skip
    act("ITimingCache", serialize=lambda self: b"measured " + self._content)

    def create_timing_cache(self: Any, content: bytes) -> Any:
        cache = module.ITimingCache()
        cache._content = content
        return cache

    def set_timing_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
        if cache._content.startswith(b"of another GPU"):
            return False
        seen["cache"] = cache
        return True

    config: dict[str, Any] = {
        "create_timing_cache": create_timing_cache, "set_timing_cache": set_timing_cache,
        "get_timing_cache": lambda self: seen["cache"], "get_flag": lambda self, flag: flag.name == "TF32",
        "set_flag": lambda self, flag: seen["set"].append(flag.name),
        "set_memory_pool_limit": lambda self, pool, size: seen["set"].append((pool.name, size)),
        "add_optimization_profile": lambda self, profile: 0,
    }  # fmt: skip
    if "set_compute_capability" in api["IBuilderConfig"]:
        config["set_compute_capability"] = lambda self, sm, index: seen["set"].append((sm.name, index))
    act("IBuilderConfig", **config)

    def build(self: Any, network: Any, config: Any) -> bytes | None:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 3)
        for step in range(3):
            if not monitor.step_complete("Building", step):
                return None
        monitor.phase_finish("Building")
        if seen["refuses"]:
            self._logger.log(module.ILogger.ERROR, seen["refuses"])
            return None
        return (b"vtrt" if "rtx" in version else b"ftrt") + json.dumps(list(found["shape"])).encode()

    def create_network(self: Any, flags: int) -> Any:
        seen["flags"] = flags
        return module.INetworkDefinition()

    act("Builder", __init__=_keeps("_logger"), create_network=create_network, build_serialized_network=build,
        create_builder_config=lambda self: module.IBuilderConfig(),
        create_optimization_profile=lambda self: module.IOptimizationProfile())  # fmt: skip
    act("IPluginRegistry", get_creator=lambda self, name, number, space: "creator" if seen["plugins"] else None)
    if "rtx" not in version:  # the bindings of RTX have the function, and it may not be called
        module.__dict__["init_libnvinfer_plugins"] = lambda logger, space: seen.update(plugins=True) or True
    module.__dict__["get_plugin_registry"] = lambda: module.IPluginRegistry()
    module.__dict__["nptype"] = lambda kind: {
        "UINT8": np.uint8, "FLOAT": np.float32, "INT32": np.int32, "HALF": np.float16,
    }[kind.name]  # fmt: skip
    if "cuda_graph_strategy" in api["IRuntimeConfig"]:
        act("IRuntimeConfig", cuda_graph_strategy=None)
    _act_out_running(module, act, run, found)
    return module


def _act_out_running(module: Any, act: Callable[..., None], run: Callable[..., Any] | None, found: dict) -> None:
    """Engines: [batch, H, W, 3] uint8 in, `found["outputs"]` (name -> type and shape without the batch) out."""
    outputs: dict[str, tuple[str, tuple[int, ...]]] = found.get("outputs") or {
        "num_dets": ("INT32", (1,)), "boxes": ("FLOAT", (2, 4)), "scores": ("FLOAT", (2,)), "labels": ("INT32", (2,)),
    }  # fmt: skip
    tensors = {"images": ("UINT8", tuple(found["shape"][1:])), **outputs}
    seen = module.seen
    seen["contexts"] = 0

    def execute(self: Any, stream: int) -> bool:
        assert stream == 7, "the stream of the fake CUDA"
        assert self.__dict__.get("_memory", True), "no device memory was given"
        rows, changes = self._rows, self._changes
        if found.get("no_room") and rows > found["no_room"]:
            seen["logger"].log(module.ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 4096 bytes.)")
            return False

        def work() -> None:
            assert changes == self._changes, "the context is not what it was when it was recorded: undefined"
            images = _at(self._address["images"], (rows, *tensors["images"][1]), np.uint8)
            assert run is not None
            for name, values in run(images).items():
                kind = module.nptype(module.DataType[tensors[name][0]])
                _at(self._address[name], (rows, *tensors[name][1]), kind)[:] = values

        if CAPTURE.work is None:
            work()
            self._ran = changes
        elif self.__dict__.get("_ran") != changes or found.get("not_capturable"):
            CAPTURE.broken = True  # what is done once for a new size, such as an allocation
        else:
            CAPTURE.work.append(work)
        return True

    def changed(self: Any) -> None:
        self._changes = self.__dict__.get("_changes", 0) + 1

    def set_input_shape(self: Any, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = found.get("profile", (1, 2, 4))
        if self.__dict__.get("_rows") != shape[0]:
            changed(self)
        self._rows = shape[0]
        return name == "images" and shape[1:] == tensors["images"][1] and least <= shape[0] <= most

    def set_tensor_address(self: Any, name: str, address: int) -> bool:
        self._address = {**self.__dict__.get("_address", {}), name: address}
        changed(self)
        return True

    def set_device_memory(self: Any, address: int, size: int) -> None:
        assert size >= 512 and not self._memory
        self._memory = address
        changed(self)

    def create_context(self: Any, how: Any = None) -> Any:
        if seen["contexts"] == found.get("most_contexts"):
            seen["logger"].log(module.ILogger.ERROR, "OutOfMemory")
            return None
        seen["contexts"] += 1
        context = module.IExecutionContext()
        if how is module.ExecutionContextAllocationStrategy.USER_MANAGED:
            context._memory = 0
        seen["strategy"] = getattr(how, "cuda_graph_strategy", None) if "rtx" in module.__name__ else None
        return context

    act("IExecutionContext", execute_async_v3=execute, set_input_shape=set_input_shape,
        set_tensor_address=set_tensor_address, set_device_memory=set_device_memory)  # fmt: skip
    act("EngineInspector", get_engine_information=lambda self, form: found["account"])
    act("ICudaEngine", num_io_tensors=len(tensors), get_tensor_name=lambda self, i: list(tensors)[i],
        get_tensor_dtype=lambda self, name: module.DataType[tensors[name][0]],
        get_tensor_shape=lambda self, name: (-1, *tensors[name][1]),
        create_execution_context=create_context, device_memory_size_v2=512,
        create_runtime_config=lambda self: module.IRuntimeConfig(),
        create_engine_inspector=lambda self: module.EngineInspector())  # fmt: skip

    def deserialize(self: Any, content: bytes) -> Any:
        seen["logger"] = self._logger
        if found.get("refuses"):
            self._logger.log(module.ILogger.ERROR, found["refuses"])
            return None
        return module.ICudaEngine()

    act("Runtime", __init__=_keeps("_logger"), deserialize_cuda_engine=deserialize)


def _strict(name: str, names: list[str], behavior: dict[str, Any]) -> type:
    def missing(self: Any, attribute: str) -> Any:
        assert attribute not in names, f"the stand-in does not act out {name}.{attribute}"
        raise AttributeError(f"{name} has no {attribute}")

    def assign(self: Any, attribute: str, value: Any) -> None:
        own = name in ("ILogger", "IProgressMonitor")  # what we derive from may have members of our own
        if not (own or attribute.startswith("_") or attribute in names):
            raise AttributeError(f"{name} has no {attribute}")
        object.__setattr__(self, attribute, value)

    return type(
        name, (), {"__init__": lambda self, *_: None, "__getattr__": missing, "__setattr__": assign, **behavior}
    )


def _keeps(attribute: str) -> Callable[..., None]:
    return lambda self, value: object.__setattr__(self, attribute, value)


def _at(address: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(kind).reshape(shape)
