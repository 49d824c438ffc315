"""`batch_size: auto`: the number of images for which a training step fits into memory."""

from __future__ import annotations

from collections.abc import Callable

import torch

from isodet.strict import ConfigError
from models.detector import Detector as Network
from models.loss import detection_loss
from trainer.config.train import TrainConfig
from trainer.devices.free_memory import available_memory
from trainer.optim import build_optimizer

MOST = 64
GPU_SHARE, CPU_SHARE = 0.85, 0.5


def automatic_batch(
    config: TrainConfig, device: torch.device, amp: torch.dtype | None, images: int, objects: int
) -> int:
    """The largest power of two, at most 64 and `images`, whose step fits. `objects`: the most in one picture.

    On a GPU steps of 1, 2, 4, ... images are made, and may take 85 % of the free memory. A CPU does not refuse a step
    that is too large: it swaps. So the tensors that the backward pass keeps are counted in steps of 1 and 2 images, and
    twice their bytes (the gradients) may take half of the available memory. Raises `ConfigError` where a system without
    a GPU does not say how much memory is available.
    """
    probe = Probe(config, device, amp, objects)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        budget = int(GPU_SHARE * torch.cuda.mem_get_info(device)[0])
        return largest_batch(probe.gpu_bytes, budget, min(MOST, images), tried=True)
    free = available_memory()
    if free is None:
        raise ConfigError("batch_size: auto: this system does not say how much memory is free; set a number")
    return largest_batch(probe.cpu_bytes, int(CPU_SHARE * free), min(MOST, images), tried=False)


def largest_batch(measure: Callable[[int], int], budget: int, most: int, tried: bool) -> int:
    """The largest power of two up to `most` whose step takes at most `budget` bytes; at least 1.

    `measure` gives the bytes of a step. With `tried` it measures every size, and torch.OutOfMemoryError means too
    large. Without, it measures 1 and 2 images, and larger sizes lie on the line through both.
    """
    sizes = [2**i for i in range(max(most, 1).bit_length())]
    if not tried:
        first, second = measure(1), measure(2)
        per_image = max(second - first, 1)
        return max(size for size in sizes if size == 1 or first + (size - 1) * per_image <= budget)
    best = 1
    for size in sizes:
        try:
            if measure(size) > budget:
                break
        except torch.OutOfMemoryError:
            break
        best = size
    return best


class Probe:
    """Training steps on made-up pictures, for their memory."""

    def __init__(self, config: TrainConfig, device: torch.device, amp: torch.dtype | None, objects: int) -> None:
        self.config, self.device, self.amp, self.objects = config, device, amp, objects
        self.model = Network(config.model, load_weights=False).to(device).train()
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.optimizer = build_optimizer(self.model, config.optim)

    def gpu_bytes(self, images: int) -> int:
        """Peak of the allocator in a whole step of `images` images."""
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            self._losses(images).backward()
            self.optimizer.step()
            return torch.cuda.max_memory_allocated(self.device)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()

    def cpu_bytes(self, images: int) -> int:
        """Twice the bytes that the backward pass of `images` images keeps, and four times the weights'."""
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = self._losses(images)  # alive while counting: no address is used twice
        weights = sum(p.nbytes for p in self.model.parameters())
        del total
        return 2 * sum(kept.values()) + 4 * weights

    def _losses(self, images: int) -> torch.Tensor:
        height, width = self.config.model.input_size_hw
        pixels = torch.zeros(images, height, width, 3, dtype=torch.uint8, device=self.device)
        boxes = torch.tensor([0.1 * width, 0.1 * height, 0.6 * width, 0.6 * height], device=self.device)
        labels = torch.zeros(images, self.objects, dtype=torch.int64, device=self.device)
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            raw = self.model(pixels)
        grid = self.model.priors((height, width))
        return detection_loss(self.config.model, raw, grid, boxes.expand(images, self.objects, 4), labels).total
