"""ONNX Runtime on the GPU: its CUDA provider, and its plugin for RTX cards, under `Detector` and alone.

Files are float32 and float16; of float32 the CUDA provider makes TensorFloat-32 where it is not told otherwise.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import export
from benchmarks.gpu.artifacts import Subject, digits, exported, frames, same_detections, scored, untrained
from benchmarks.gpu.eager import BATCHES
from benchmarks.gpu.networks import R18, R50, SMALL_R50, TINY, network_config
from benchmarks.gpu.speed import PYTORCH, Run, speeds
from benchmarks.gpu.stage import NotHere, Row, Setting, one_line
from benchmarks.gpu.timing import ratio, turns
from export.options import Precision
from runtime import BackendOptions, Detections, Detector
from runtime.backends.load import load_backend
from runtime.backends.ort.library import load_onnxruntime
from runtime.backends.protocol import BackendError

Provider = Literal["cuda", "rtx"]
CUDA = "CUDAExecutionProvider"
PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")


def rows(setting: Setting) -> Iterator[Row]:
    setting.require_cuda()
    try:
        onnxruntime = load_onnxruntime()
    except BackendError as error:
        raise NotHere(one_line(error)) from None
    offered = onnxruntime.get_available_providers()
    yield Row("ONNX Runtime", onnxruntime.__version__, note=", ".join(offered))
    has_cuda, has_plugin = CUDA in offered, importlib.util.find_spec(PLUGIN) is not None
    if not has_cuda and not has_plugin:
        raise NotHere("this onnxruntime is built for the CPU: carry onnxruntime-gpu (benchmarks/gpu/carry.sh ort)")
    subject, why = digits(setting)
    if subject is None:
        yield Row("mAP", None, note=f"{why}; detections of random weights are compared with PyTorch's")
        subject = untrained(setting, network_config(TINY if setting.small else R18))
    files: dict[Precision, Path] = {}
    yield from written(setting, subject, files)
    if has_cuda:
        yield from provided(setting, subject, files, "cuda")
    else:
        yield Row("CUDA provider", None, note="this onnxruntime is built for the CPU: benchmarks/gpu/carry.sh ort")
    if has_plugin:
        yield from provided(setting, subject, files, "rtx")
    else:
        yield Row("plugin for RTX cards", None, note=f"no {PLUGIN} here: benchmarks/gpu/carry.sh rtx-ep")
    if has_cuda and setting.left() > 50:
        yield from large(setting)


def written(setting: Setting, subject: Subject, files: dict[Precision, Path]) -> Iterator[Row]:
    """The ONNX files into `files`, and a row for what is remarkable about one."""
    for precision in PRECISIONS:
        try:
            files[precision], note = exported(setting, subject, precision)
        except (export.ExportError, ImportError) as error:
            yield Row(f"{subject.name} {precision}: ONNX file", None, note=one_line(error))
            continue
        if note:
            yield Row(f"{subject.name} {precision}: ONNX file", "exported without the GPU", note=note)


def provided(setting: Setting, subject: Subject, files: Mapping[Precision, Path], provider: Provider) -> Iterator[Row]:
    """Everything of one provider: detections, mAP, CUDA graphs, speed. What it refuses is a row with its words."""
    for precision, path in files.items():
        what = f"{subject.name} {precision}, provider {provider}"
        forms: dict[str, BackendOptions] = {}
        for name, cuda_graphs in (("", False), (", CUDA graphs", True)):
            options = BackendOptions(provider=provider, cuda_graphs=cuda_graphs)
            if setting.left() < 20:
                yield Row(f"{what}{name}", None, note="no time left")
                continue
            try:
                detector = Detector(path, setting.device, threshold=0.0, options=options)
                yield same_detections(f"{what}{name}", subject, precision, detector)
                if name == "" and provider == "cuda" and subject.dataset is not None:
                    yield scored(what, subject, path, setting.device)
            except (BackendError, export.VerifyError) as error:
                yield Row(f"{what}{name}", None, note=one_line(error))
            else:
                forms[name] = options
        if provider == "cuda" and precision == "fp32" and forms:
            yield from tensor_float(setting, subject, path)
        if "" in forms:
            # The plugin's kernels are for batches up to what its backend takes at most.
            most = 2 if setting.small else BATCHES[-1] if provider == "cuda" else 32
            batches = [batch for batch in BATCHES if batch <= most]
            try:
                ways = contestants(setting, subject, path, forms)
            except BackendError as error:
                yield Row(f"{what}: speed", None, note=one_line(error))
                continue
            yield from speeds(setting, what, subject, batches, ways)


def contestants(setting: Setting, subject: Subject, path: Path, forms: Mapping[str, BackendOptions]) -> dict[str, Run]:
    """Ways to run the file. Raises `BackendError`."""
    detector = Detector(path, setting.device, threshold=0.5, options=forms[""])
    detector.backend.max_batch = max(detector.backend.max_batch, *BATCHES)  # all of a batch at once

    def detect(images: NDArray[np.uint8]) -> list[Detections]:
        return detector(list(images))

    ways: dict[str, Run] = {"Detector": detect}
    for name, options in forms.items():
        ways[f"backend{name}"] = load_backend(path, setting.device, options=options)
    if forms[""].provider == "cuda":
        ways["bare session"] = partial(run_bare, bare_session(path, setting.device))
    precision: Literal["none", "fp16"] = "none" if setting.device == "cpu" else "fp16"
    ways[PYTORCH] = load_backend(subject.checkpoint, setting.device, options=BackendOptions(autocast=precision))
    return ways


def bare_session(path: Path, device: str, tf32: bool = True) -> Any:
    """A session as its makers show it, on the GPU or else on none. Raises `BackendError` where that fails."""
    onnxruntime = load_onnxruntime()
    providers: list[Any] = ["CPUExecutionProvider"]
    if device != "cpu":
        onnxruntime.preload_dlls()  # the CUDA libraries that PyTorch brought
        search = {"cudnn_conv_algo_search": "HEURISTIC"}  # the default searches for seconds at each size of batch
        providers.insert(0, (CUDA, {**search, "use_tf32": int(tf32)}))
    try:
        session = onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        raise BackendError(f"bare session: {one_line(error)}") from error
    if device != "cpu" and CUDA not in session.get_providers():
        raise BackendError(f"bare session: its {CUDA} did not load")
    return session


def run_bare(session: Any, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
    """Its outputs. Raises `BackendError`, as for want of memory."""
    try:
        found: list[NDArray[Any]] = session.run(None, {"images": images})
    except Exception as error:  # as above
        raise BackendError(f"bare session: {one_line(error)}") from error
    return found


def tensor_float(setting: Setting, subject: Subject, path: Path) -> Iterator[Row]:
    """What TensorFloat-32 gains and moves in the float32 file."""
    batch = setting.amount(8, 2)
    what = f"{subject.name} fp32, batch {batch}: TensorFloat-32, the provider's default, over float32"
    if setting.left() < 20:
        yield Row(what, None, note="no time left")
        return
    images = frames(subject, batch)
    try:
        with_it, without = (bare_session(path, setting.device, tf32) for tf32 in (True, False))
    except BackendError as error:
        yield Row(what, None, note=one_line(error))
        return
    calls = {"with": partial(run_bare, with_it, images), "without": partial(run_bare, without, images)}
    taken = turns(calls, 0.2 if setting.small else 1.0, setting.device)
    names = [output.name for output in with_it.get_outputs()]
    scores = [run_bare(session, images)[names.index("scores")] for session in (with_it, without)]
    apart = float(np.abs(scores[0] - scores[1]).max())
    yield Row(what, ratio(taken["without"], taken["with"]), "times as fast",
              note=f"scores in their order differ by at most {apart:.1e}")  # fmt: skip


def large(setting: Setting) -> Iterator[Row]:
    """The published ATSS, float16 first."""
    subject = untrained(setting, network_config(SMALL_R50 if setting.small else R50))
    for precision in reversed(PRECISIONS):
        what = f"{subject.name} {precision}, provider cuda"
        if setting.left() < 40:
            yield Row(what, None, note="no time left")
            continue
        try:
            path, _ = exported(setting, subject, precision)
            ways = contestants(setting, subject, path, {"": BackendOptions()})
        except (export.ExportError, BackendError, ImportError) as error:
            yield Row(what, None, note=one_line(error))
            continue
        yield from speeds(setting, what, subject, [1, 4, 8, 16] if not setting.small else [1], ways)
