"""ONNX to engine bytes, one way for TensorRT 10, TensorRT 11 and TensorRT-RTX.

The network is strongly typed: the graph decides the precision, and no flag of the builder changes it (TensorRT 11 has
no such flags any more). Features that only some of the three libraries have are found by `hasattr`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.engine.cache import keep_cache, use_cache
from export.engine.options import EngineOptions
from export.options import ExportError, Progress, Say
from runtime.backends.trt.library import Library, Messages, collecting_logger, load_plugins

if TYPE_CHECKING:
    import tensorrt

PLUGIN = "EfficientNMS_TRT"
DEFAULT_BATCH = (1, 4, 16)
_REPORT_EVERY = 0.1
"""Seconds between reports of progress, because some phases have thousands of steps."""


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine, and facts about its build.

    profile: images in a batch: least, tuned for, most. plugin: it uses the library's own NMS plugin, and not the body
    in the graph.
    """

    content: bytes
    seconds: float
    profile: tuple[int, int, int]
    tf32: bool
    plugin: bool
    warnings: tuple[str, ...]


def build(
    library: Library,
    onnx: Path,
    options: EngineOptions,
    needs_plugin: bool = False,
    cache: Path | None = None,
    say: Say = lambda line: None,
    progress: Progress | None = None,
) -> BuiltEngine:
    """Build the graph in `onnx`. cache: a timing cache to use and to update; None for none.

    needs_plugin: the graph has no body that could replace the plugin EfficientNMS_TRT. Raises `ExportError` with the
    library's message, and KeyboardInterrupt after Ctrl-C.
    """
    trt, messages = library.trt, Messages()
    logger = collecting_logger(library, messages)
    load_plugins(library, logger)
    if needs_plugin and not has_plugin(library):
        raise ExportError.at(
            onnx,
            f"its NMS is the plugin {PLUGIN}, which {library.name} does not have; export it again with "
            "--nms auto or --nms portable",
        )
    try:
        builder: tensorrt.Builder = trt.Builder(logger)
    except TypeError as error:  # the bindings raise it for a null pointer
        raise ExportError(f"{library.name} cannot start a build: {messages.why()}") from error
    # In version 10 strong typing is optional; later versions have no other mode, and no flag for it.
    flags = 0
    if library.flavour == "tensorrt" and library.major == 10:
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network: tensorrt.INetworkDefinition = builder.create_network(flags)
    _parse(trt.OnnxParser(network, logger), onnx, library)
    config: tensorrt.IBuilderConfig = builder.create_builder_config()
    profile = _profile(builder, network, config, options, onnx)
    _configure(library, config, options)
    if cache is not None:
        use_cache(config, cache, say)
    monitor = _monitor(library, progress)
    config.progress_monitor = monitor
    tf32 = bool(config.get_flag(trt.BuilderFlag.TF32))
    plugin = any(network.get_layer(i).type.name.startswith("PLUGIN") for i in range(network.num_layers))
    started = time.perf_counter()
    with _interrupts(monitor):
        plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - started
    if monitor.stopped is not None:
        raise monitor.stopped
    if plan is None:
        raise ExportError.at(onnx, f"{library.name} cannot build it: {messages.why()}")
    if cache is not None:
        keep_cache(config, cache, say)
    return BuiltEngine(bytes(plan), seconds, profile, tf32, plugin, tuple(dict.fromkeys(messages.warnings)))


def has_plugin(library: Library) -> bool:
    """Whether the library has EfficientNMS_TRT; `load_plugins` must have been called."""
    if library.flavour == "rtx":
        return False
    registry: tensorrt.IPluginRegistry = library.trt.get_plugin_registry()
    return registry.get_creator(PLUGIN, "1", "") is not None


def _parse(parser: tensorrt.OnnxParser, onnx: Path, library: Library) -> None:
    """Raises `ExportError` naming every node that the library cannot read."""
    if parser.parse_from_file(str(onnx)):
        return
    reasons = []
    for i in range(parser.num_errors):
        error: tensorrt.ParserError = parser.get_error(i)
        node, operator = error.node_name(), error.node_operator()
        where = f"node {node!r} ({operator}): " if node or operator else ""
        reasons.append(where + " ".join(error.desc().split()))
    raise ExportError(f"{onnx}: {library.name} cannot read it: " + ("; ".join(reasons) or "it gave no reason"))


def _profile(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    options: EngineOptions,
    onnx: Path,
) -> tuple[int, int, int]:
    """Add the profile of the only input, unless its batch is fixed; gives least, tuned and most images of a batch."""
    if network.num_inputs != 1:
        raise ExportError.at(onnx, f"expected one input, the images, got {network.num_inputs}")
    images: tensorrt.ITensor = network.get_input(0)
    batch, *rest = tuple(images.shape)
    if any(size < 1 for size in rest):
        raise ExportError.at(onnx, f"{images.name}: expected fixed sizes but for the batch, got {[batch, *rest]}")
    if batch > 0:
        if options.batch is not None and set(options.batch) != {batch}:
            raise ExportError.of(
                "batch",
                f"the graph takes exactly {batch} images, not {options.batch}; export it with a free batch, or "
                "leave --batch out",
            )
        return batch, batch, batch
    least, tuned, most = options.batch or DEFAULT_BATCH
    profile: tensorrt.IOptimizationProfile = builder.create_optimization_profile()
    profile.set_shape(images.name, (least, *rest), (tuned, *rest), (most, *rest))
    config.add_optimization_profile(profile)
    return least, tuned, most


def _configure(library: Library, config: tensorrt.IBuilderConfig, options: EngineOptions) -> None:
    trt = library.trt
    config.profiling_verbosity = (
        trt.ProfilingVerbosity.DETAILED
    )  # for the audit; it makes the file larger, but nothing slower
    if options.workspace_gb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gb * 2**30))
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.sm and hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = len(options.sm)
        for i, sm in enumerate(options.sm):
            if not hasattr(trt.ComputeCapability, f"SM{sm}"):
                known = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
                raise ExportError.of("sm", f"{library.name} builds for {', '.join(known)}, not for SM{sm}")
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), i)


def _monitor(library: Library, progress: Progress | None) -> Any:
    """A progress monitor, which reports the current phase and stops the build when `stopped` is set."""
    trt = library.trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]  # known at run time only
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped: BaseException | None = None
            self.steps: dict[str, int] = {}
            self.reported = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return self.stopped is None

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def _report(self, phase: str, done: int) -> None:
            total = self.steps.get(phase, 0)
            now = time.monotonic()
            if progress is None or self.stopped is not None or total < 1 or now - self.reported < _REPORT_EVERY:
                return
            self.reported = now
            try:
                progress(f"build: {phase.lower()}", min(done, total), total)
            except BaseException as error:  # cannot pass through the library's C++, so `build` raises it later
                self.stopped = error

    return Monitor()


@contextmanager
def _interrupts(monitor: Any) -> Iterator[None]:
    """While the library works, Ctrl-C only sets `stopped`: an exception could not pass through the library's C++."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_: object) -> None:
        monitor.stopped = KeyboardInterrupt()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
