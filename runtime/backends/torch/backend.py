"""PyTorch: runs a checkpoint, or the model that is being trained."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isodet.rooms import find_rooms
from runtime.backends.device import parse_device
from runtime.backends.options import DEFAULT, BackendOptions
from runtime.backends.protocol import Backend, BackendError, Images, OutOfMemory, RawOutputs, TimedCall
from runtime.backends.timing import Stages
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

    The module is moved to `device` and put into eval mode at every call, and stays so: a training loop
    that shares its layers calls `.train()` before it goes on. With `cuda_graphs` it is called for the first batch of a
    size only, and its weights must stay where they are. See `runtime.backends.protocol.Backend`.
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
            self._own_queue()
        self.fixed_batch: int | None = None
        self.max_batch = 16 if self._device.type == "cpu" else 32
        self._process = os.getpid()

    @classmethod
    def load(
        cls, path: str | Path, device: str = "auto", threads: int | None = None, options: BackendOptions = DEFAULT
    ) -> TorchBackend:
        """The checkpoint at `path`. `threads` sets PyTorch's CPU threads, which are those of the process.

        Raises `CardError` or `models.checkpoint.CheckpointError` for a file that cannot be used.
        """
        options.check("checkpoint", path)
        find_rooms("models")
        from models.checkpoint import load_detector  # here and below only: the networks are not the runtime's

        model, card = load_detector(path, options.check_hashes)
        if threads is not None:
            torch.set_num_threads(threads)
        return cls(model, Card.from_json(card, path, options.check_hashes), device, options)

    def __call__(self, images: Images) -> RawOutputs:
        self._forked()
        return self._batch(images, lambda stage: None)

    def _forked(self) -> None:
        """In a process that was forked PyTorch's threads stayed behind, and it would wait for them for ever."""
        if os.getpid() != self._process:
            torch.set_num_threads(1)
            self._process = os.getpid()

    @property
    def timed(self) -> TimedCall | None:
        return self._timed if self._device.type == "cuda" else None

    def _timed(self, images: Images) -> tuple[RawOutputs, dict[str, float]]:
        def lap(stage: str) -> None:
            # The stream, not the device: that cannot be waited for while another thread records.
            torch.cuda.current_stream(self._device).synchronize()
            clock.lap(stage)

        clock = Stages()
        return self._batch(images, lap), clock.seconds

    @torch.no_grad()  # not inference_mode: tensors that a model caches on the way may go on into training
    def _batch(self, images: Images, lap: Callable[[str], None]) -> RawOutputs:
        """A call. `lap` is told when each stage has been started, on the stream that it runs on."""
        graphs = self._graphs
        try:
            with nullcontext() if graphs is None else graphs.turn, self._queue():
                if graphs is None:
                    sent = self._tensor(images)
                    lap("host to device")
                    found = self._run(sent)
                else:
                    recorded = graphs.of(len(images), self._run)
                    self._fill(recorded.images, images)
                    lap("host to device")
                    found = recorded.replay(len(images))
                lap("engine")
                raw = _on_host(found)
                lap("device to host")
                return raw
        except torch.OutOfMemoryError as error:
            with RECORDING:
                torch.cuda.empty_cache()  # the blocks kept for the larger batch are in the way of a smaller one
            raise OutOfMemory(f"{self.name} failed on a batch of {len(images)}: {error}") from error

    def _run(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        self.model.eval()
        with self._precision():
            found: Sequence[torch.Tensor] = (self.model if self._compiled is None else self._compiled)(images)
        return found

    @property
    def takes_device_frames(self) -> bool:
        return self._device.type == "cuda"

    def host_memory(self, size: int) -> NDArray[np.uint8]:
        if self._device.type == "cpu":
            return super().host_memory(size)
        try:
            return np.asarray(torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy(), np.uint8)
        except RuntimeError as error:  # PyTorch has no error of its own for it
            raise OutOfMemory(f"{self.name}: no {size} bytes of page-locked memory: {error}") from error

    def context(self) -> TorchBackend:
        """Itself on the CPU: a module in eval mode may be called from several threads. On a GPU the same module with a
        stream of its own. Raises `BackendError` for a compiled one, whose compiler is one for all threads.
        """
        if self._compiled is not None:
            raise BackendError(f"{self.name} with compile runs one call at a time: expected workers=1")
        if self._device.type == "cpu":
            return self
        other = copy.copy(self)
        other._own_queue()
        return other

    def _own_queue(self) -> None:
        """Go on with a stream of its own, and with recordings of its own where there are any."""
        self._stream = torch.cuda.Stream(self._device)
        # Once, behind what was started before, as weights that were just loaded: waiting in every call would put it
        # behind the other workers' batches.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        if self._records:
            self._graphs = RecordedModule(self.name, self.card.frame_hw, self._device, self._stream)

    def _check_graphs(self) -> None:
        """Raise `BackendError` where there can be no recordings."""
        if self._device.type == "cpu":
            raise BackendError.of("cuda_graphs", f"needs a GPU; the device is the CPU here ({self.why})")
        if not isinstance(self.card.resize_rule(), FixedSize):
            raise BackendError.of(
                "cuda_graphs",
                "this model takes each picture in a size of its own (short-side rule), and a recording "
                "is of one; export it, which gives it one size",
            )

    def _tensor(self, images: Images) -> torch.Tensor:
        if isinstance(images, np.ndarray):
            return torch.from_numpy(images).to(self._device)
        return torch.stack(self._there(images))

    def _there(self, frames: Sequence[DeviceFrame]) -> list[torch.Tensor]:
        """Frames of this GPU as tensors uint8 [H, W, 3] on their memory, once that is ready."""
        wait_for({frame.stream for frame in frames if frame.stream is not None}, self._device)
        return [torch.as_tensor(frame, device=self._device) for frame in frames]

    def _fill(self, rows: torch.Tensor, images: Images) -> None:
        """Start copying `images` into the first of `rows` (uint8 [R, H, W, 3]); those after them keep what they had."""
        size = (*self.card.frame_hw, 3)
        shapes = {images.shape[1:]} if isinstance(images, np.ndarray) else {frame.shape for frame in images}
        if shapes - {size}:  # or a row of pixels would be spread over the picture in silence
            raise BackendError(f"{self.name}: expected images {list(size)}, got {list(max(shapes - {size}))}")
        if isinstance(images, np.ndarray):
            rows[: len(images)].copy_(torch.from_numpy(images))
            return
        for row, frame in zip(rows, self._there(images), strict=False):
            row.copy_(frame)

    def _queue(self) -> AbstractContextManager[Any]:
        """Where the GPU's work goes: the thread's current stream, or that of this context."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _precision(self) -> AbstractContextManager[Any]:
        if self._dtype is None:
            return nullcontext()
        # Weights that were cast are kept for all threads: on a GPU another stream could read them before they are
        # written, and a recording would hand out some that only its replay writes.
        return torch.autocast(self._device.type, self._dtype, cache_enabled=self._device.type == "cpu")


def wait_for(streams: Iterable[int], device: torch.device) -> None:
    """Return when these CUDA streams, by handle, are through."""
    for stream in streams:
        if stream == LEGACY_STREAM:  # a name, which PyTorch would take for an address
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
    return BackendError.of(
        "compile",
        f"torch.compile cannot work here; load the model without it (BackendOptions(compile=False)). It said: {reason}",
    )


def read_checkpoint_card(path: str | Path, check_hashes: bool = True) -> Card:
    """The card in the checkpoint at `path`. Raises `CardError`, or `CheckpointError` for a broken file."""
    find_rooms("models")
    from models.checkpoint import read_checkpoint

    return Card.from_json(read_checkpoint(path, check_hashes=check_hashes)["card"], path, check_hashes)


def _resolve(device: str) -> tuple[torch.device, str]:
    """The device, and why. Raises `BackendError` when CUDA is asked for and not there."""
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
