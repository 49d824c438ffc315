"""The processes that share a training: which one this is, and how they exchange values. Without torchrun: one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from isodet.strict import ConfigError
from trainer.config.train import TrainConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process, number `rank` of `size`. All processes call a method, or none; a single one returns at once."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.rank == 0

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes, without a graph."""
        if self.size == 1:
            return tensor
        tensor = tensor.detach().clone()
        dist.all_reduce(tensor)
        return tensor

    def count(self, number: int, device: torch.device) -> int:
        """The sum of a number over the processes."""
        return number if self.size == 1 else int(self.total(torch.tensor(number, device=device)))

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks; every process gets them."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share_buffers(self, module: nn.Module) -> None:
        """Give all processes the main one's buffers: each has running statistics of its own pictures only."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def parallel(self, module: nn.Module, device: torch.device) -> nn.Module:
        """`module` with gradients that are means over the processes."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(module, [device] if device.type == "cuda" else None)


@contextmanager
def process_group(device: str) -> Iterator[Group]:
    """Join the processes that torchrun started, by NCCL on GPUs, by gloo on CPUs. Without torchrun a group of one."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        yield Group()
        return
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_device())
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Group(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def local_device() -> torch.device:
    """The GPU of this process."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def local_processes() -> int:
    """How many processes torchrun started on this machine; 1 without it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def check_parallel(config: TrainConfig, group: Group, device: torch.device) -> None:
    """Raise `ConfigError` for what several processes cannot do."""
    if group.size > 1 and ":" in config.device:
        raise ConfigError(f"device: {config.device!r} is one GPU for {group.size} processes; use auto or cuda")
    if group.size > 1 and device.type == "cpu" and config.model.backbone.norm == "sync":
        raise ConfigError(
            "model.backbone.norm: sync needs GPUs (torch has no SyncBatchNorm for CPUs); use gn, whose "
            "statistics are each picture's own, or bn"
        )
