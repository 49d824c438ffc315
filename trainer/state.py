"""Everything that changes while training: what `last.pt` has to hold."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from models.checkpoint import start_from
from models.detector import Detector as Network
from models.quant import quantize
from trainer.config.train import TrainConfig
from trainer.data.train_set import Batch
from trainer.devices.distributed import Group
from trainer.extras.averaging import Averages
from trainer.failures import TrainingError
from trainer.optim import Plateau, add_parameters, build_optimizer, build_schedule, learning_rate, refresh_rates
from trainer.training_model import TrainingModel

_NUMBERS = ("epoch", "batch", "best_map", "skipped", "threads")


@dataclass
class State:
    config: TrainConfig
    model: TrainingModel
    forward: Callable[[Batch], dict[str, torch.Tensor]]
    """The model, or its distributed form with the same weights; not saved."""
    averages: Averages
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    plateau: Plateau
    steps_per_epoch: int
    """Optimizer steps."""
    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished batches of the current epoch. The batches of an accumulated step are finished together."""
    best_map: float = -1.0
    skipped: int = 0
    """Batches left out because their loss or gradient was not finite (`optim.on_nan: skip`)."""
    threads: int = 0
    """CPU threads that were the fastest (`threads: auto`); 0 before they are known."""

    @property
    def detector(self) -> Network:
        """The network with the weights that learn, which are deployed where nothing is averaged."""
        return self.model.detector

    def _parts(self) -> dict[str, Any]:
        """Everything that has a state dict, by its name in a checkpoint."""
        return {
            "model": self.detector, **self.averages.parts(), "optimizer": self.optimizer, "schedule": self.schedule,
            "scaler": self.scaler, "beside": self.model.beside,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors, numbers and text only.

        The random numbers are those of this process: what a loader process draws depends on seed, epoch and picture.
        """
        saved: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        if self.config.distill is None and self.config.auxiliary is None:
            del saved["beside"]  # empty in a plain training, whose file does not have it
        saved |= {name: getattr(self, name) for name in _NUMBERS}
        saved["plateau"], saved["steps_per_epoch"] = asdict(self.plateau), self.steps_per_epoch
        if self.model.distillation is not None:
            saved["teacher"] = self.model.distillation.teacher_sha256
        return saved | {"rng": torch.get_rng_state(), "other_rng": _other_rng()}

    def load_state_dict(self, saved: dict[str, Any], rank: int = 0) -> None:
        """Load what `state_dict` gave, also from versions that saved at the end of epochs only.

        `rank` chooses the random numbers of this process among those of several. Raises `TrainingError` where the
        teacher is not the same as before.
        """
        distillation = self.model.distillation
        if distillation is not None and saved.get("teacher") != distillation.teacher_sha256:
            raise TrainingError.of(
                "distill.teacher",
                f"{distillation.config.teacher} is another file than the one that this run was "
                "started with; put that one back, or start a new run",
            )
        for name, part in self._parts().items():
            if name in saved:
                part.load_state_dict(saved[name])
        for name in _NUMBERS:
            setattr(self, name, saved.get(name, getattr(self, name)))
        for name, value in saved.get("plateau", {}).items():
            setattr(self.plateau, name, value)
        each = saved.get("process_rng", [])
        torch.set_rng_state(each[rank] if rank < len(each) else saved["rng"])
        if "other_rng" in saved:
            _set_other_rng(saved["other_rng"])

    def resume(self, saved: dict[str, Any], rank: int) -> bool:
        """`load_state_dict`, then keep this run's own schedule, whose steps and rates depend on the processes.

        Returns whether epochs had another number of steps before. A batch's number means other pictures then, so the
        epoch starts again.
        """
        rates = [float(rate) for rate in self.schedule.base_lrs]
        self.load_state_dict(saved, rank)
        other_steps = bool(saved.get("steps_per_epoch", self.steps_per_epoch) != self.steps_per_epoch)
        if not other_steps and rates == list(self.schedule.base_lrs):
            return False
        self.schedule.base_lrs = [*rates]
        if other_steps:
            self.batch, self.schedule.last_epoch = 0, self.epoch * self.steps_per_epoch
        refresh_rates(self.schedule)
        return other_steps

    def count_validation(self, score: float) -> tuple[bool, bool]:
        """Count a validation with mAP `score`. Returns whether it is the best so far, and whether the rate drops."""
        improved = not score < self.best_map  # nan (nothing to find) never loses
        dropped = self.plateau.update(not score <= self.best_map, self.config.schedule)
        self.best_map = score if improved else self.best_map
        return improved, dropped


def starting_model(config: TrainConfig, resumed: bool) -> tuple[Network, str]:
    """The network with the weights that training starts from, and a sentence on them where `init` names a checkpoint.

    For a resumed run no weights are loaded: its state has them. Raises `CheckpointError`.
    """
    model = Network(config.model, load_weights=config.init is None and not resumed)
    started = "" if config.init is None or resumed else start_from(model, config.init)
    if config.qat is not None:
        model = quantize(model.eval(), config.qat.float_layers)
    return model, started


def new_state(config: TrainConfig, detector: Network, amp: torch.dtype | None, total_steps: int, group: Group) -> State:
    """The state at the start of a training of `detector`, on its device, over `total_steps` optimizer steps.

    Raises `ConfigError` or `CheckpointError` for a teacher that cannot teach it.
    """
    model = TrainingModel(config, detector, amp, group)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    rate = learning_rate(config.optim, config.images_per_batch, group.size)
    optimizer = build_optimizer(detector, config.optim, rate)
    add_parameters(optimizer, model.beside, config.optim.weight_decay)
    plateau = Plateau()
    return State(
        config,
        model,
        group.parallel(model, model.device),
        Averages.of(detector, config.optim.ema, config.schedule.swa_epochs),
        optimizer,
        build_schedule(optimizer, total_steps, config.schedule, plateau),
        torch.amp.GradScaler(model.device.type, enabled=amp == torch.float16),
        plateau,
        total_steps // config.schedule.epochs,
    )


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
