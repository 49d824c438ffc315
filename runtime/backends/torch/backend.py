"""PyTorch: runs a checkpoint, or the model that is being trained."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isodet.rooms import find_rooms
from runtime.backends.device import parse_device
from runtime.backends.options import DEFAULT, BackendOptions
from runtime.backends.protocol import Backend, BackendError, Images, OutOfMemory, RawOutputs, Stages, TimedCall
from runtime.card.card import Card
from runtime.images.device_frames import LEGACY_STREAM, DeviceFrame
from runtime.images.image import FixedSize

try:
    import torch

    from runtime.backends.torch.compiling import compiled
    from runtime.backends.torch.graphs import RECORDING, RecordedModule
except ImportError as error:
    raise BackendError(
        f"a .pt checkpoint needs PyTorch: pip install 'isodet[train]', or use the exported .onnx ({error})"
    ) from error

if TYPE_CHECKING:
    from torch import nn


class TorchBackend(Backend):
    """A module `model(images uint8 [B, H, W, 3]) -> (num_dets, boxes, scores, labels)`, as
    `models.deploy.graph.Deploy`.

    The module moves to `device`, and every call puts it into eval mode, where it stays: a training loop that shares its
    layers must call `.train()` before it goes on. With `cuda_graphs` only the first batch of a size calls the module,
    and its weights must stay where they are in memory. See `runtime.backends.protocol.Backend`.
    """

    def __init__(
        self, model: nn.Module, card: Card, device: str | torch.device = "auto", options: BackendOptions = DEFAULT
    ) -> None:
        options.check("checkpoint", "options")
        self.card = card
        self.name = f"PyTorch {torch.__version__.partition('+')[0]}"
        self._device, self.why = _resolve(str(device))
        self.device = str(self._device)
        self.model = model.to(self._device)
        if options.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self._compiled = compiled(self.model, _cannot_compile) if options.compile else None
        self._dtype = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[options.autocast]
        self._stream: torch.cuda.Stream | None = None  # None: the thread's current one
        self._graphs: RecordedModule | None = None
        self._records = options.cuda_graphs
        if options.cuda_graphs:
            self._check_graphs()
            self._make_stream()
        self.fixed_batch: int | None = None
        self.max_batch = 16 if self._device.type == "cpu" else 32
        self._process = os.getpid()
        self._path: Path | None = None  # of the checkpoint, where it is from one

    @classmethod
    def load(
        cls, path: str | Path, device: str = "auto", threads: int | None = None, options: BackendOptions = DEFAULT
    ) -> TorchBackend:
        """The checkpoint at `path`. `threads` sets PyTorch's CPU threads, for the whole process.

        Raises `CardError` or `models.checkpoint.CheckpointError` for a file that cannot be used.
        """
        options.check("checkpoint", path)
        find_rooms("models")
        from models.checkpoint import load_detector  # the runtime imports networks only here and below

        model, card = load_detector(path, options.check_hashes)
        if threads is not None:
            torch.set_num_threads(threads)
        backend = cls(model, Card.from_json(card, path, options.check_hashes), device, options)
        backend._path = Path(path)
        return backend

    def __call__(self, images: Images) -> RawOutputs:
        if os.getpid() != self._process:  # a fork has none of PyTorch's threads, and would wait for them for ever
            torch.set_num_threads(1)
            self._process = os.getpid()
        return self._batch(images, lambda stage: None)

    @property
    def timed(self) -> TimedCall | None:
        return self._timed if self._device.type == "cuda" else None

    def _timed(self, images: Images) -> tuple[RawOutputs, dict[str, float]]:
        def lap(stage: str) -> None:
            # Wait for the stream: waiting for the whole device is not allowed while another thread records.
            torch.cuda.current_stream(self._device).synchronize()
            clock.lap(stage)

        clock = Stages()
        return self._batch(images, lap), clock.seconds

    @torch.no_grad()  # not inference_mode: tensors that a model caches on the way may go on into training
    def _batch(self, images: Images, lap: Callable[[str], None]) -> RawOutputs:
        """The outputs for `images`. `lap(stage)` is called after a stage was started, with its stream current.

        The GPU's work goes to the stream of this context, or where it has none, to the thread's current one.
        """
        graphs = self._graphs
        stream = nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
        try:
            with nullcontext() if graphs is None else graphs.turn, stream:
                if graphs is None:
                    batch = self._tensor(images)
                    lap("host to device")
                    outputs = self._run(batch)
                else:
                    recorded = graphs.of(len(images), self._run)
                    self._fill(recorded.images, images)
                    lap("host to device")
                    outputs = recorded.replay(len(images))
                lap("engine")
                raw = _on_host(outputs)
                lap("device to host")
                return raw
        except torch.OutOfMemoryError as error:
            with RECORDING:
                torch.cuda.empty_cache()  # cached blocks of the larger batch would leave no room for a smaller one
            message = f"{self.name} failed on a batch of {len(images)}: {error}"
            raise (OutOfMemory(message) if self._path is None else OutOfMemory.at(self._path, message)) from error

    def _run(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        self.model.eval()
        # On a GPU, autocast must not cache cast weights, because the cache serves all threads: another stream could
        # read a weight before it is written, and a recording would leave one that only its replay writes.
        device, dtype = self._device.type, self._dtype
        with nullcontext() if dtype is None else torch.autocast(device, dtype, cache_enabled=device == "cpu"):
            outputs: Sequence[torch.Tensor] = (self.model if self._compiled is None else self._compiled)(images)
        return outputs

    @property
    def takes_device_frames(self) -> bool:
        return self._device.type == "cuda"

    def host_memory(self, size: int) -> NDArray[np.uint8]:
        if self._device.type == "cpu":
            return super().host_memory(size)
        try:
            return np.asarray(torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy(), np.uint8)
        except RuntimeError as error:  # PyTorch has no exception of its own for it
            raise OutOfMemory(f"{self.name}: no {size} bytes of page-locked memory: {error}") from error

    def context(self) -> TorchBackend:
        """On the CPU this backend itself: several threads may call a module in eval mode. On a GPU the same module with
        a stream of its own. Raises `BackendError` for a compiled module, as all threads share its compiler.
        """
        if self._compiled is not None:
            raise BackendError(f"{self.name} with compile runs one call at a time: expected workers=1")
        if self._device.type == "cpu":
            return self
        context = copy.copy(self)
        context._make_stream()
        return context

    def _make_stream(self) -> None:
        """Make a stream for this context, and with `cuda_graphs` its recordings."""
        self._stream = torch.cuda.Stream(self._device)
        # Wait once for earlier work, such as loading the weights. Waiting in every call would put each batch behind
        # those of the other workers.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        if self._records:
            self._graphs = RecordedModule(self.name, self.card.frame_hw, self._device, self._stream)

    def _check_graphs(self) -> None:
        """Raise `BackendError` where CUDA graphs cannot be used."""
        if self._device.type == "cpu":
            raise BackendError.of("cuda_graphs", f"needs a GPU; the device is the CPU here ({self.why})")
        if not isinstance(self.card.resize_rule(), FixedSize):
            reason = "this model takes each picture in a size of its own (short-side rule), and a recording is of one"
            raise BackendError.of("cuda_graphs", f"{reason}; export it, which gives it one size")

    def _tensor(self, images: Images) -> torch.Tensor:
        if isinstance(images, np.ndarray):
            return torch.from_numpy(images).to(self._device)
        return torch.stack(self._frame_tensors(images))

    def _frame_tensors(self, frames: Sequence[DeviceFrame]) -> list[torch.Tensor]:
        """Frames of this GPU as tensors uint8 [H, W, 3] on the same memory. It waits for the frames' streams."""
        wait_for({frame.stream for frame in frames if frame.stream is not None}, self._device)
        return [torch.as_tensor(frame, device=self._device) for frame in frames]

    def _fill(self, rows: torch.Tensor, images: Images) -> None:
        """Start copying `images` into the first of `rows` (uint8 [R, H, W, 3]); further rows stay as they are."""
        size = (*self.card.frame_hw, 3)
        shapes = {images.shape[1:]} if isinstance(images, np.ndarray) else {frame.shape for frame in images}
        if shapes - {size}:  # else PyTorch would silently broadcast a row of pixels over the picture
            raise BackendError(f"{self.name}: expected images {list(size)}, got {list(max(shapes - {size}))}")
        if isinstance(images, np.ndarray):
            rows[: len(images)].copy_(torch.from_numpy(images))
            return
        for row, frame in zip(rows, self._frame_tensors(images), strict=False):
            row.copy_(frame)


def wait_for(streams: Iterable[int], device: torch.device) -> None:
    """Wait for these CUDA streams, given by their handles."""
    for stream in streams:
        if stream == LEGACY_STREAM:  # a reserved number, which PyTorch would take for an address
            torch.cuda.default_stream(device).synchronize()
        else:
            torch.cuda.ExternalStream(stream, device).synchronize()


def _on_host(outputs: Sequence[torch.Tensor]) -> RawOutputs:
    num_dets, boxes, scores, labels = outputs
    return RawOutputs(
        num_dets.cpu().numpy().astype(np.int32, copy=False),
        boxes.float().cpu().numpy(),
        scores.float().cpu().numpy(),
        labels.cpu().numpy().astype(np.int32, copy=False),
    )


def _cannot_compile(reason: str) -> BackendError:
    advice = "load the model without it (BackendOptions(compile=False))"
    return BackendError.of("compile", f"torch.compile cannot work here; {advice}. It said: {reason}")


def read_checkpoint_card(path: str | Path, check_hashes: bool = True) -> Card:
    """The card in the checkpoint at `path`. Raises `CardError`, or `CheckpointError` for a broken file."""
    find_rooms("models")
    from models.checkpoint import read_checkpoint

    return Card.from_json(read_checkpoint(path, check_hashes=check_hashes)["card"], path, check_hashes)


def _resolve(device: str) -> tuple[torch.device, str]:
    """The device, and why. Raises `BackendError` for a CUDA device that is not here."""
    kind, index = parse_device(device)
    if kind == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device()), "PyTorch's current CUDA device"
        return torch.device("cpu"), "PyTorch finds no CUDA device here"
    if kind == "cpu":
        return torch.device("cpu"), "as asked"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise BackendError(
            f"device {device}: PyTorch finds {count} CUDA devices here; use cpu, or check nvidia-smi", key="device"
        )
    return torch.device("cuda", index), "as asked"
