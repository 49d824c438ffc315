"""`trainer fit`: the training loop."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, RandomSampler

from models.checkpoint import start_from
from models.criterion import criterion
from models.deploy import Deploy
from models.detector import Detector as Network
from runtime import Card, Detector, read_coco
from runtime.backends.torch import TorchBackend
from runtime.coco import CocoDataset
from runtime.evaluate import Evaluation, evaluate
from trainer.config import TrainConfig
from trainer.data import Batch, TrainSet, collate, init_worker, resize_rule
from trainer.optim import build_average, build_optimizer, group_size, lr_factor, steps_per_epoch
from trainer.pictures import validation_sheet
from trainer.precision import pick_amp, pick_device, worker_count
from trainer.records import Records, as_floats
from trainer.report import write_report
from trainer.runs import Resume, RunFolder, make_card


class TrainingError(RuntimeError):
    """Training cannot go on; the message says where it stands and what to do."""


@dataclass
class State:
    """Everything that changes while training, and so everything that `last.pt` carries."""

    model: Network
    average: AveragedModel | None
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    epoch: int = 0
    """Finished epochs."""
    best_map: float = -1.0

    @property
    def deployed(self) -> Network:
        """The weights that are validated, saved and exported: the average where there is one."""
        return self.model if self.average is None else self.average.module  # type: ignore[return-value]

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in ("model", "average", "optimizer", "schedule", "scaler")}
        saved: dict[str, Any] = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return saved | {"epoch": self.epoch, "best_map": self.best_map, "rng": torch.get_rng_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name in ("model", "average", "optimizer", "schedule", "scaler"):
            if name in saved:
                getattr(self, name).load_state_dict(saved[name])
        self.epoch, self.best_map = saved["epoch"], saved["best_map"]
        torch.set_rng_state(saved["rng"])


@dataclass(frozen=True)
class FitResult:
    run: Path
    best: Path
    best_map: float
    """mAP of best.pt, 0..100."""
    last: Evaluation
    """Of the last epoch."""


def fit(config: TrainConfig, runs: str | Path = "runs", resume: Resume | None = None, quiet: bool = False) -> FitResult:
    """Train a detector; everything it writes is in `runs/<name>/`.

    `resume` (from `trainer.runs.find_resumable`) continues an interrupted run after its last finished epoch.
    Raises `ConfigError`, `CocoError` or `TrainingError`, each saying what to do.
    """
    _seed(config.seed)
    device = pick_device(config.device)
    amp = pick_amp(config.amp, device)
    train = read_coco(config.data.train.annotations, config.data.train.images, config.model.classes)
    val = read_coco(config.data.val.annotations, config.data.val.images, config.model.classes)
    train_set = TrainSet(train, resize_rule(config.model), config.augment, config.seed, config.schedule.epochs)
    loader, order = _loader(config, train_set, device)
    steps = steps_per_epoch(len(loader), config.optim.accumulate)
    epochs = config.schedule.epochs
    model = Network(config.model, load_weights=config.init is None and resume is None)
    started = start_from(model, config.init) if config.init is not None and resume is None else None
    state = _state(config, model.to(device), amp, steps * epochs)
    if resume is not None:
        state.load_state_dict(resume.state)
    folder = RunFolder.new(Path(runs), config) if resume is None else RunFolder(resume.run)
    card = make_card(config, val)

    with Records(folder.path, epochs, steps, state.epoch, quiet) as records:
        for line in _introduction(config, state.model, train, val, device, amp, folder.path):
            records.say(line)
        if started is not None:
            records.say(started)
        last, told = None, 0
        for epoch in range(state.epoch, epochs):
            records.begin_epoch(epoch)
            train_set.set_epoch(epoch)
            order.manual_seed(config.seed * 100_003 + epoch)
            _train_epoch(config, state, loader, device, amp, records)
            state.epoch = epoch + 1
            if unusable := train_set.unusable[told:]:
                told += len(unusable)
                records.say(
                    f"{told} of {len(train_set)} training pictures cannot be used, as logged; one is {unusable[0]}"
                )

            evaluation, improved = None, False
            if state.epoch % config.val_interval == 0 or state.epoch == epochs:
                detector = deployable(state.deployed, card, device)
                last = evaluation = evaluate(detector, val, config.batch_size, records.validating)
                improved = not evaluation.map < state.best_map  # nan (nothing to find) never loses
                state.best_map = evaluation.map if improved else state.best_map
                records.say(f"epoch {state.epoch}: {_scores(evaluation)}{'  <- best so far' if improved else ''}")
                validation_sheet(val, evaluation, folder.path / "plots" / "validation.jpg")
            records.end_epoch(state.epoch * steps, float(state.schedule.get_last_lr()[0]), evaluation)
            folder.save(state.deployed.state_dict(), card, evaluation, state.epoch, state.state_dict(), improved)
        write_report(folder.path, config, records.rows, last.per_class if last else None)
    assert last is not None, "the last epoch is always validated, and a finished run is not resumed"
    return FitResult(folder.path, folder.path / "best.pt", state.best_map, last)


def _train_epoch(
    config: TrainConfig,
    state: State,
    loader: DataLoader[Any],
    device: torch.device,
    amp: torch.dtype | None,
    records: Records,
) -> None:
    state.model.train()
    batches, accumulate = len(loader), config.optim.accumulate
    gradients = False
    for index, batch in enumerate(loader):
        if len(batch.images):  # a batch of which no image could be read is empty
            losses = _losses(config, state.model, batch, device, amp)
            state.scaler.scale(losses.total / group_size(index, batches, accumulate)).backward()
            gradients = True
            values = as_floats(losses)
            if not all(math.isfinite(v) for v in values):
                raise TrainingError(_diverged(state.epoch, values, batch))
            records.batch(values, len(batch.images))
        if (index + 1) % accumulate == 0 or index + 1 == batches:
            if gradients:
                _step(config, state)
            records.step()
            gradients = False
    if records.images == 0:
        raise TrainingError("not one training picture could be used; the log says why, `trainer check-data` lists them")


def _losses(config: TrainConfig, model: Network, batch: Batch, device: torch.device, amp: torch.dtype | None) -> Any:
    """Network under autocast; assignment and losses in float32."""
    images = batch.images.to(device, non_blocking=True)
    with torch.autocast(device.type, amp, enabled=amp is not None):
        raw = model(images)
    boxes, labels = batch.boxes_xyxy.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
    grid = model.priors((images.shape[1], images.shape[2]))
    return criterion(config.model, raw, grid, boxes, labels)


def _step(config: TrainConfig, state: State) -> None:
    """Unscale, clip, step, average, advance the schedule, forget the gradients."""
    if config.optim.clip_norm:
        state.scaler.unscale_(state.optimizer)
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.optim.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.average is not None:
        state.average.update_parameters(state.model)
    state.schedule.step()
    state.optimizer.zero_grad(set_to_none=True)


def deployable(model: Network, card: Card, device: torch.device) -> Detector:
    """The public detector over a fused copy of a model in training: validation is an inference run."""
    training = model.training
    deploy = Deploy(model.eval())
    model.train(training)
    deploy = deploy.to(memory_format=torch.channels_last)
    return Detector(TorchBackend(deploy, card, device), threshold=0.0)


def _state(config: TrainConfig, model: Network, amp: torch.dtype | None, total_steps: int) -> State:
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, config.optim)
    schedule = LambdaLR(optimizer, lambda step: lr_factor(step, total_steps, config.schedule))
    scaler = torch.amp.GradScaler(next(model.parameters()).device.type, enabled=amp == torch.float16)
    return State(model, build_average(model, config.optim.ema), optimizer, schedule, scaler)


def _loader(config: TrainConfig, dataset: TrainSet, device: torch.device) -> tuple[DataLoader[Any], torch.Generator]:
    """The training batches, and the generator that orders them (reseeded each epoch, so a resumed run agrees)."""
    order = torch.Generator()
    workers = worker_count(config.data.workers, device)
    loader = DataLoader(
        dataset, config.batch_size, sampler=RandomSampler(dataset, generator=order),
        collate_fn=partial(collate, fill_bgr=dataset.resize.fill_bgr), worker_init_fn=init_worker,
        num_workers=workers, persistent_workers=workers > 0, prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda", drop_last=len(dataset) >= config.batch_size,
    )  # fmt: skip
    return loader, order


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _introduction(
    config: TrainConfig, model: Network, train: CocoDataset, val: CocoDataset, device: torch.device,
    amp: torch.dtype | None, run: Path,
) -> list[str]:  # fmt: skip
    m, parameters = config.model, sum(p.numel() for p in model.parameters())
    height, width = m.input_size_hw
    lines = [
        f"{m.detector} (assign {m.assign.kind}, box {m.box.code}, quality {m.quality}) on {m.backbone.name} "
        f"x{m.backbone.width:g}: {parameters / 1e6:.1f} M parameters, {len(m.classes)} classes, {height}x{width} px",
        f"train {len(train.records)} images, val {len(val.records)}; batch {config.batch_size} x "
        f"{config.optim.accumulate}; {device.type}, {str(amp or torch.float32).removeprefix('torch.')}; into {run}",
    ]
    for name, dataset in (("train", train), ("val", val)):
        if summary := dataset.problems.summary():
            lines.append(f"{name}: {summary}")
    return lines


def _scores(e: Evaluation) -> str:
    return (
        f"mAP {e.map:.1f}, AP50 {e.ap50:.1f}, AP75 {e.ap75:.1f}, "
        f"small {e.ap_small:.1f}, medium {e.ap_medium:.1f}, large {e.ap_large:.1f} ({e.seconds:.0f} s)"
        + (f"; {len(e.skipped)} unreadable pictures left out, as {e.skipped[0][0]}" if e.skipped else "")
    )


def _diverged(epoch: int, values: list[float], batch: Batch) -> str:
    cls, box, quality = values
    return (
        f"the loss is not finite in epoch {epoch + 1} (cls {cls}, box {box}, quality {quality}) on images "
        f"{list(batch.image_ids)}; last.pt holds the end of epoch {epoch}. Lower optim.lr, lengthen "
        "schedule.warmup_steps, or set amp=off"
    )
