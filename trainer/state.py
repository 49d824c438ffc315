"""Everything that changes while training, and so everything that `last.pt` carries."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from models.checkpoint import start_from
from models.detector import Detector as Network
from models.layers.heads import Head
from models.quant import quantise
from trainer.config.auxiliary import auxiliary_model
from trainer.config.train import TrainConfig
from trainer.devices.distributed import Group
from trainer.extras.averaging import build_average, build_swa
from trainer.extras.distill import Distillation, build_adapters, build_distillation
from trainer.failures import TrainingError
from trainer.optim import Plateau, add_parameters, build_optimizer, build_schedule, learning_rate, refresh_rates
from trainer.training_model import Learner, Look

_PARTS = ("model", "average", "swa", "optimizer", "schedule", "scaler", "beside")
_NUMBERS = ("epoch", "batch", "best_map", "skipped")


@dataclass
class State:
    model: Network
    forward: Callable[[torch.Tensor], Any]
    """The learner, or its compiled or distributed form with the same weights; not saved."""
    average: AveragedModel | None
    swa: AveragedModel | None
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Batches of the epoch under way that are done; those of an accumulated step are done together."""
    best_map: float = -1.0
    plateau: Plateau = field(default_factory=Plateau)
    skipped: int = 0
    """Batches left out because their loss or gradient was not finite (`optim.on_nan: skip`)."""
    distillation: Distillation | None = None
    steps_per_epoch: int = 0
    """Optimiser steps."""
    whole: Learner | None = None
    """The model and what learns beside it, if anything does."""

    def look(self, images: torch.Tensor) -> Look:
        """What the losses ask for of uint8 images [B, H, W, 3]."""
        answer = self.forward(images)
        return Look(answer, [], None) if self.whole is None else answer

    @property
    def learner(self) -> nn.Module:
        """Everything that the optimiser changes."""
        return self.model if self.whole is None else self.whole

    @property
    def beside(self) -> nn.ModuleDict | None:
        """What learns beside the model, if anything."""
        return None if self.whole is None else self.whole.beside

    @property
    def deployed(self) -> Network:
        """The weights that are validated, saved and exported: the average where there is one."""
        return self.model if self.average is None else self.average.module  # type: ignore[return-value]

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and text only. Random numbers are those of this process: what a loader process draws
        depends on seed, epoch and picture alone."""
        parts = {name: getattr(self, name) for name in _PARTS}
        saved: dict[str, Any] = {name: part.state_dict() for name, part in parts.items() if part is not None}
        saved |= {name: getattr(self, name) for name in _NUMBERS}
        saved["plateau"], saved["steps_per_epoch"] = asdict(self.plateau), self.steps_per_epoch
        if self.distillation is not None:
            saved["teacher"] = self.distillation.teacher_sha256
        return saved | {"rng": torch.get_rng_state(), "other_rng": _other_rng()}

    def load_state_dict(self, saved: dict[str, Any], rank: int = 0) -> None:
        """Take over what `state_dict` gave, also of versions that saved at the end of epochs only.

        `rank`: of this process, where several have random numbers of their own. Raises `TrainingError` where the
        teacher is another than before.
        """
        if self.distillation is not None and saved.get("teacher") != self.distillation.teacher_sha256:
            raise TrainingError.of(
                "distill.teacher",
                f"{self.distillation.config.teacher} is another file than the one that this run was "
                "started with; put that one back, or start a new run",
            )
        for name in _PARTS:
            if name in saved:
                getattr(self, name).load_state_dict(saved[name])
        for name in _NUMBERS:
            setattr(self, name, saved.get(name, getattr(self, name)))
        for name, value in saved.get("plateau", {}).items():
            setattr(self.plateau, name, value)
        each = saved.get("process_rng", [])
        torch.set_rng_state(each[rank] if rank < len(each) else saved["rng"])
        if "other_rng" in saved:
            _set_other_rng(saved["other_rng"])

    def keep_pace(self, before: int, rates: list[float]) -> bool:
        """After `load_state_dict`: the schedule of this run's epochs, and of the learning `rates` that it was made
        with, which depend on the number of processes; in the checkpoint epochs had `before` steps.

        True where that is another number. A batch's number means other pictures then: the epoch starts again.
        """
        steps = self.steps_per_epoch
        if before == steps and rates == list(self.schedule.base_lrs):
            return False
        self.schedule.base_lrs = [*rates]
        if before != steps:
            self.batch, self.schedule.last_epoch = 0, self.epoch * steps
        refresh_rates(self.schedule)
        return before != steps


def starting_model(config: TrainConfig, resumed: bool) -> tuple[Network, str]:
    """The network with the weights that training starts from, and a sentence on them where `init` names a checkpoint.

    A resumed run brings its own. Raises `CheckpointError`.
    """
    model = Network(config.model, load_weights=config.init is None and not resumed)
    started = "" if config.init is None or resumed else start_from(model, config.init)
    if config.qat is not None:
        model = quantise(model.eval(), config.qat.float_layers)
    return model, started


def new_state(config: TrainConfig, model: Network, amp: torch.dtype | None, total_steps: int, group: Group) -> State:
    """The start of a training of `model`, where it is, over `total_steps` optimiser steps.

    Raises `ConfigError` or `CheckpointError` for a teacher that cannot teach it.
    """
    device = next(model.parameters()).device
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config.optim, learning_rate(config.optim, config.images_per_batch, group.size))
    distillation = build_distillation(config, model)
    whole = _whole(config, model, distillation)
    if whole is not None:
        whole.beside.to(device)
        if config.channels_last:
            whole = whole.to(memory_format=torch.channels_last)
        add_parameters(optimizer, whole.beside, config.optim.weight_decay)
    plateau = Plateau()
    forward = group.parallel(model if whole is None else whole, device)
    return State(
        model,
        compiled(forward) if config.compile else forward,
        build_average(model, config.optim.ema),
        build_swa(model, config.schedule.swa_epochs),
        optimizer,
        build_schedule(optimizer, total_steps, config.schedule, plateau),
        torch.amp.GradScaler(device.type, enabled=amp == torch.float16),
        plateau=plateau,
        distillation=distillation,
        steps_per_epoch=total_steps // config.schedule.epochs,
        whole=whole,
    )


def _whole(config: TrainConfig, model: Network, distillation: Distillation | None) -> Learner | None:
    if distillation is None and config.auxiliary is None:
        return None
    head = None
    if config.auxiliary is not None:
        first, last = config.model.neck.levels
        head = Head(auxiliary_model(config.auxiliary, config.model), last - first + 1)
    levels = distillation is not None and distillation.config.features > 0
    return Learner(model, build_adapters(distillation, model), head, levels)


def compiled(model: nn.Module) -> Callable[[torch.Tensor], Any]:
    """`model` through torch.compile; raises `TrainingError`, at its first images, where no compiler works."""
    network = torch.compile(model)

    def forward(images: torch.Tensor) -> Any:
        try:
            return network(images)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split())[:300]
            raise TrainingError.of(
                "compile", f"torch.compile cannot work here; set compile=false. It said: {reason}"
            ) from error

    return forward


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _other_rng() -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    numpy = [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), gauss]
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": numpy, "cuda": cuda}


def _set_other_rng(saved: dict[str, Any]) -> None:
    random.setstate(saved["python"])
    kind, keys, position, has_gauss, gauss = saved["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    if torch.cuda.is_available() and len(saved["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved["cuda"])
