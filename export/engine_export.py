"""`exporter trt`: an engine for TensorRT 10, TensorRT 11 or TensorRT-RTX, from a checkpoint or an ONNX file.

The export is a transaction, like that of ONNX: audit the graph, build, audit the engine, score it, all in a temporary
folder. Only an engine that passed all steps gets the final name. An engine that this machine cannot run is `built, not
scored`, and its sidecar says so.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import onnx

from export.audit.audit import Audit, audit_network, load_graph
from export.card_paths import handed_on
from export.engine.build import PLUGIN, BuiltEngine, build
from export.engine.cache import cache_path
from export.engine.options import EngineOptions
from export.engine.verify import Scoring, verify_engine
from export.graph.tracing import require_finite
from export.int8.ranges import ranges_path
from export.onnx_export import to_onnx
from export.options import ExportError, Gate, Int8, NmsKind, OnnxOptions, Precision, Progress, Say
from export.verification.gate import GateError
from export.verification.verify import Verification
from runtime.artifact import read_card
from runtime.backends.cuda.devices import cuda_device_count
from runtime.backends.trt.backend import system
from runtime.backends.trt.library import Library, choose_library
from runtime.card.card import Card, file_kind, sha256_file
from runtime.card.onnx_metadata import require_unedited
from runtime.card.sidecar import sidecar_path, sidecar_text
from runtime.files.write import write_text


@dataclass(frozen=True)
class EngineExport:
    """The engine that was written, and its measurements.

    seconds: of the build alone. trtexec: the command line of NVIDIA's tool that runs the engine. verification: None
    where it was not scored; `card.verification` says why.
    """

    path: Path
    sidecar: Path
    card: Card
    audit: Audit
    seconds: float
    megabytes: float
    trtexec: str
    verification: Verification | None


def to_engine(
    source: str | Path,
    out: str | Path | None = None,
    options: EngineOptions = EngineOptions(),
    gate: Gate = Gate(),
    onnx_options: OnnxOptions = OnnxOptions(),
    allow: Sequence[str] = (),
    say: Say = lambda line: None,
    progress: Progress | None = None,
) -> EngineExport:
    """Build an engine from `source`, a checkpoint or an ONNX file of ours, into `out` and its sidecar.

    out: None: beside the source, `best.engine` or `best.fp16.engine`. onnx_options: for the graph that is made from a
    checkpoint; its precision is that of `options`, and with int8 the float layers are float16 by default.
    allow: names or patterns of layers that may have another precision than the one asked for.
    Raises `ExportError`, `AuditError`, `GateError`, `CardError`, `CheckpointError` or `BackendError`. After an error
    the final names are as they were before.
    """
    source = Path(source)
    kind = file_kind(source)
    if kind == "engine":
        raise ExportError.at(source, "is an engine already; give the checkpoint or the ONNX file that it came from")
    if kind != "checkpoint" and onnx_options.int8 not in (None, Int8(half=True)):
        raise ExportError.at(source, "its ranges are in it; give the checkpoint it came from to calibrate it otherwise")
    if kind != "checkpoint" and onnx_options.nms != "auto":
        raise ExportError.of(
            "nms",
            f"{source} has its NMS in it; give the checkpoint it came from, or `exporter onnx CHECKPOINT --nms "
            f"{onnx_options.nms}` first",
        )
    if kind != "checkpoint" and replace(onnx_options, precision=None, int8=None, nms="auto") != OnnxOptions():
        raise ExportError.at(source, "is a graph already; give the checkpoint it came from for another form of it")
    gpus = cuda_device_count()
    library = choose_library(options.engine, gpus)  # raises before minutes are spent on a graph
    options.check_flavour(library.flavour)
    if library.flavour == "rtx" and onnx_options.nms in ("plugin", "onnx"):
        raise ExportError.of(
            "nms",
            f"TensorRT-RTX has no operator for {onnx_options.nms}; take auto, portable, loop or none, or build "
            "with --engine tensorrt",
        )
    with tempfile.TemporaryDirectory(prefix="isodet-") as scratch:
        graph, checkpoint = source, None
        if kind == "checkpoint":
            checkpoint, graph = source, Path(scratch) / source.with_suffix(".onnx").name
            onnx_options = _graph_options(onnx_options, options, read_card(checkpoint))
            gate = gate.for_int8(onnx_options.int8)
            try:
                to_onnx(checkpoint, graph, onnx_options, gate, say, progress)
            except GateError as error:  # its report belongs beside the engine, because the scratch folder is deleted
                raise error.renamed(graph, (source if out is None else Path(out)).with_suffix(".onnx")) from None
        card = read_card(graph, options.check_hashes)
        if checkpoint is None and options.check_hashes:
            require_unedited(graph, card, "build it as it is with --skip-hashes")
        _check_precision(graph, card, options.precision or onnx_options.precision)
        model = load_graph(graph)
        for tensor in model.graph.initializer:
            require_finite(f"{tensor.name} ({source})", onnx.numpy_helper.to_array(tensor))
        typed = audit_network(model, card)
        typed.require(str(source), allow)
        say(f"audit of the graph: {typed.shares()}")
        out = _destination(source, out, card.precision)
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".isodet-", dir=out.parent) as staging:
            staged = Path(staging) / out.name
            built = _built(library, graph, model, options, say, progress)
            staged.write_bytes(built.content)
            made_by = _rebuild(source, options, library, onnx_options.nms, None if checkpoint is None else card)
            card = _card(card, graph, built, library, options, typed, made_by)
            card = handed_on(card, source.parent)  # once more, for graphs of older versions that kept paths
            sidecar_path(staged).write_text(sidecar_text(card), encoding="utf-8")
            card, audit, verification = verify_engine(
                staged, card, library, typed, allow, Scoring(checkpoint, graph, gate, out), progress
            )
            card = handed_on(card, source.parent)
            sidecar_path(staged).write_text(sidecar_text(card), encoding="utf-8")
            os.replace(staged, out)
            os.replace(sidecar_path(staged), sidecar_path(out))
        if checkpoint is not None and ranges_path(graph).is_file():
            write_text(ranges_path(out), ranges_path(graph).read_text(encoding="utf-8"))
    size = len(built.content) / 2**20
    command = trtexec(out, card, model)
    return EngineExport(out, sidecar_path(out), card, audit, built.seconds, size, command, verification)


def trtexec(engine: Path, card: Card, model: onnx.ModelProto) -> str:
    """The command line of NVIDIA's tool that runs `engine`, for the batch that it was tuned for."""
    tool = "tensorrt_rtx" if card.engine["flavour"] == "rtx" else "trtexec"
    command = f"{tool} --loadEngine={shlex.quote(str(engine))}"
    images = model.graph.input[0]
    if card.batch == "dynamic":
        sizes = [dim.dim_value for dim in images.type.tensor_type.shape.dim][1:]
        command += f" --shapes={images.name}:{'x'.join(map(str, (card.engine['profile'][1], *sizes)))}"
    return command


def _graph_options(onnx_options: OnnxOptions, options: EngineOptions, card: Card) -> OnnxOptions:
    """The options of the checkpoint's graph, in the precision of the engine, else of the checkpoint.

    Raises `ExportError` if two different precisions are asked for.
    """
    of_graph, of_engine = onnx_options.precision, options.precision
    if of_graph is not None and of_engine is not None and of_graph != of_engine:
        reason = f"{of_engine} of the engine and {of_graph} of its graph; precision is in the graph"
        raise ExportError.of("precision", reason)
    precision = of_engine or of_graph or ("int8" if card.quantization else None)
    int8 = onnx_options.int8 or (Int8(half=True) if precision == "int8" else None)
    return replace(onnx_options, precision=precision, int8=int8)


def _check_precision(graph: Path, card: Card, asked: Precision | None) -> None:
    if asked is None or asked == card.precision:
        return
    raise ExportError.at(
        graph,
        f"is {card.precision}, and {asked} was asked for; precision is in the graph, and no builder changes "
        f"it: give the checkpoint instead (`exporter trt CHECKPOINT --{asked}`), or a graph from `exporter onnx "
        f"CHECKPOINT --precision {asked}`",
    )


def _destination(source: Path, out: str | Path | None, precision: str) -> Path:
    if out is None:
        stem = source.stem.removesuffix(f".{precision}")
        return source.with_name(f"{stem}.engine" if precision == "fp32" else f"{stem}.{precision}.engine")
    out = Path(out)
    if out.is_dir() or out.resolve() == source.resolve():
        raise ExportError.at(out, f"expected the name of the engine to write, such as {source.stem}.engine")
    return out


def _built(
    library: Library, graph: Path, model: onnx.ModelProto, options: EngineOptions, say: Say, progress: Progress | None
) -> BuiltEngine:
    bodies = {(function.domain, function.name) for function in model.functions}
    nodes = [node for node in model.graph.node if node.op_type == PLUGIN]
    needs_plugin = any((node.domain, node.op_type) not in bodies for node in nodes)
    cache = None
    if library.flavour == "tensorrt":
        from runtime.backends.cuda.memory import gpu  # cuda-python comes with the extra that brings TensorRT

        here = gpu(0)
        try:
            cache = Path(options.timing_cache) if options.timing_cache else cache_path(library, here.name, here.sm)
        except OSError as error:  # the build works without a cache
            say(f"timing cache: none: {error}")
    say(f"building with {library.name}")
    built = build(library, graph, options, needs_plugin, cache, say, progress)
    for line in built.warnings[:5]:
        say(f"{library.name} warns: {' '.join(line.split())}")
    return built


def _card(
    card: Card, graph: Path, built: BuiltEngine, library: Library, options: EngineOptions, typed: Audit,
    rebuild: str,
) -> Card:  # fmt: skip
    """The card of the engine before it is verified. rebuild: the command that builds it again."""
    name, targets = "", list(options.sm)
    if library.flavour == "tensorrt":
        from runtime.backends.cuda.memory import gpu

        here = gpu(0)
        name, targets = here.name, [here.sm]
    least, _, most = built.profile
    engine = {
        "flavour": library.flavour, "version": library.version, "sm": targets, "gpu": name, "system": system(),
        "hardware_compatible": options.hardware_compatible, "version_compatible": options.version_compatible,
        "tf32": built.tf32, "profile": list(built.profile), "bytes": len(built.content), "plugin": built.plugin,
        "build_seconds": round(built.seconds, 2), "rebuild": rebuild, "audit": typed.to_json(),
    }  # fmt: skip
    return replace(
        card, kind="engine", batch=most if least == most else "dynamic", engine=engine, metrics={}, verification={},
        hashes={**card.hashes, "onnx": sha256_file(graph), "engine": hashlib.sha256(built.content).hexdigest()},
        versions={**card.versions, "isodet": version("isodet"), library.trt.__name__: library.version},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )  # fmt: skip


def _rebuild(
    source: Path, options: EngineOptions, library: Library, nms: NmsKind, graph_of_checkpoint: Card | None
) -> str:
    """The command that builds the engine again, with the source in the working folder.

    nms: the form that was asked for. graph_of_checkpoint: the card of the graph that was made of a checkpoint, which
    may have another number of candidates than the checkpoint; None for an ONNX file.
    """
    words = ["exporter", "trt", source.name]
    words += [f"--{options.precision}"] if options.precision in ("fp16", "int8") else []
    words += ["--nms", nms] if nms != "auto" else []
    if graph_of_checkpoint is not None:
        choice = graph_of_checkpoint.verification["candidates"]
        words += ["--candidates", str(choice["count"])] if choice["count"] != choice["configured"] else []
    words += ["--engine", library.flavour]
    words += ["--batch", ",".join(map(str, options.batch))] if options.batch else []
    words += ["--hardware-compatible"] if options.hardware_compatible else []
    words += ["--version-compatible"] if options.version_compatible else []
    words += ["--sm", ",".join(map(str, options.sm))] if options.sm else []
    return shlex.join(words)
