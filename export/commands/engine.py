"""`exporter trt` and `exporter audit`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from export.commands.gate import Bar, gate_arguments, gate_of, print_refusal
from export.commands.int8 import int8_arguments, int8_of
from export.options import NmsKind

if TYPE_CHECKING:
    from export.engine.options import EngineOptions

TRT = """Build an engine from a checkpoint, or from an ONNX file of `exporter onnx`.

Precision is what the graph says: a checkpoint becomes a graph of the precision asked for, an ONNX file has to have it
already. The graph is audited, the engine is built, audited and scored, and only what came through is written: a plain
engine that trtexec, Triton and DeepStream read, and its card beside it (best.engine.json).

TensorRT (pip install 'isodet[trt]') builds for the GPU that it runs on. TensorRT-RTX (pip install 'isodet[rtx]') builds
without a GPU, for GeForce and RTX cards. What this machine cannot run is built, not scored, and the card says so."""

AUDIT = """Say in what precision the convolutions of an ONNX file or an engine are computed, by FLOPs.

An engine is asked itself where a GPU can load it; elsewhere the types of the network that it was built from stand in
its card. Layers that are not what was asked for are listed and make the exit status 1, unless --allow names them."""


def trt_arguments(parser: argparse.ArgumentParser) -> None:
    """What `exporter trt` takes."""
    parser.add_argument("source", nargs="?", type=Path, help="a checkpoint or an ONNX file (default: newest best.pt)")
    parser.add_argument("--out", type=Path, metavar="FILE.engine", help="default: beside the source, with its name")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument("--fp16", action="store_true", help="half precision, with boxes and scores in float32")
    precision.add_argument("--int8", action="store_true", help="8 bits; calibrates a checkpoint that is float")
    int8_arguments(parser, engine=True)
    parser.add_argument(
        "--nms", choices=get_args(NmsKind), default="auto",
        help="of a checkpoint's graph: auto: TensorRT's plugin where there is one, else standard operators (default); "
        "portable: those everywhere; loop: the same in a loop, exact always; plugin: nothing else, TensorRT only; "
        "none: candidates, the runtime suppresses; onnx: NonMaxSuppression, which TensorRT-RTX cannot build",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("auto", "tensorrt", "rtx"), default="auto",
        help="auto: TensorRT where it is installed and there is a GPU, else TensorRT-RTX",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=_batch, metavar="MIN,OPT,MAX", help="images in a batch; one number fixes it (default: 1,4,16)"
    )
    parser.add_argument("--hardware-compatible", action="store_true", help="TensorRT: any GPU since Ampere, slower")
    parser.add_argument("--version-compatible", action="store_true", help="TensorRT: later versions of the same major")
    parser.add_argument("--timing-cache", type=Path, metavar="FILE", help="TensorRT: default: one in the user's cache")
    parser.add_argument("--workspace", type=float, metavar="GB", help="most GPU memory that one kernel may ask for")
    parser.add_argument("--sm", type=_numbers, metavar="86[,89]", default=(), help="TensorRT-RTX: only for these GPUs")
    parser.add_argument("--no-verify", action="store_true", help="do not score it; the card will say so")
    parser.add_argument("--skip-hashes", action="store_true", help="take an ONNX file that was edited after its export")
    _allow_argument(parser)
    gate_arguments(parser)


def audit_arguments(parser: argparse.ArgumentParser) -> None:
    """What `exporter audit` takes."""
    parser.add_argument("file", type=Path, metavar="ENGINE|ONNX")
    parser.add_argument("--device", default="auto", help="auto, cuda or cuda:N; cpu reads what is in the card")
    _allow_argument(parser)


def _allow_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow", nargs="+", default=(), metavar="LAYER",
        help="layers that may be of another precision, by name or pattern ('neck.*'; '*' allows all)",
    )  # fmt: skip


def trt(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from export.audit.audit import AuditError
    from export.engine_export import to_engine
    from export.onnx_export import GateError
    from export.options import OnnxOptions
    from export.verification.report import write_reports
    from runtime.runs import newest

    options = _options(arguments)
    int8 = int8_of(arguments, arguments.int8, engine=True)
    source = arguments.source
    if source is None:
        source = newest("best.pt", runs=arguments.runs)
        print(f"checkpoint: {source} (the newest run's)")
    with Bar(arguments.quiet) as bar:
        try:
            result = to_engine(
                source, arguments.out, options, gate_of(arguments),
                OnnxOptions(precision=options.precision, int8=int8, nms=arguments.nms), arguments.allow, bar.say,
                partial(_progress, bar),
            )  # fmt: skip
        except GateError as error:
            print_refusal(error)
            raise
        except AuditError as error:
            print(error.audit.table(arguments.allow))
            raise
    print(result.audit.table(arguments.allow))
    if result.verification is not None:
        print(result.verification.table())
        for path in write_reports(result.verification, result.path.parent, f"{result.path.stem}.verify"):
            print(f"wrote {path}")
    else:
        print(result.card.verification["why"])
        graph = result.card.verification["graph"]
        if graph.get("scored"):
            print(f"its graph was scored: {graph['map']:.2f} mAP, PyTorch {graph['reference_map']:.2f}")
    print(f"run it with NVIDIA's tool: {result.trtexec}")
    print(f"wrote {result.path} ({result.megabytes:.1f} MB, built in {result.seconds:.1f} s)")
    print(f"wrote {result.sidecar}")
    return 0


def audit(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from export.audit.audit import audit_file

    result = audit_file(arguments.file, arguments.device)
    print(result.table(arguments.allow))
    if result.why:
        print(f"the engine itself was not asked: {result.why}")
    result.require(str(arguments.file), arguments.allow)
    return 0


def _progress(bar: Bar, what: str, done: int, total: int) -> None:
    bar.progress(what, done, total, "step" if what.startswith("build: ") else "image")


def _options(arguments: argparse.Namespace) -> EngineOptions:
    from export.engine.options import EngineOptions

    return EngineOptions(
        precision="fp16" if arguments.fp16 else "int8" if arguments.int8 else None,
        engine=arguments.engine, batch=arguments.batch, hardware_compatible=arguments.hardware_compatible,
        version_compatible=arguments.version_compatible, timing_cache=arguments.timing_cache,
        workspace_gb=arguments.workspace, sm=arguments.sm,
        check_hashes=not arguments.skip_hashes,
    )  # fmt: skip


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between, got {text!r}") from None


def _batch(text: str) -> tuple[int, int, int]:
    """MIN,OPT,MAX, or one number for all three."""
    numbers = _numbers(text)
    if len(numbers) not in (1, 3):
        raise argparse.ArgumentTypeError(f"expected MIN,OPT,MAX or one number, got {text!r}")
    least, tuned, most = numbers * 3 if len(numbers) == 1 else numbers
    return least, tuned, most
