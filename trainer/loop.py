"""`trainer fit`: the training loop."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from models.deploy.graph import Deploy
from models.detector import Detector as Network
from models.quant import QuantDetector
from runtime.backends.torch.backend import TorchBackend
from runtime.card.card import Card
from runtime.datasets.annotations import CocoDataset, DatasetError
from runtime.detector import Detector
from runtime.evaluation.details import measure
from runtime.evaluation.evaluate import Evaluation, evaluate, require_objects
from runtime.evaluation.plots import write_plots
from trainer.config.train import TrainConfig
from trainer.data.cache import pictures_for
from trainer.data.data_wait import advice, timed
from trainer.data.datasets import different_origins, train_data, val_data
from trainer.data.loader import training_batches
from trainer.data.train_set import TrainSet, resize_rule
from trainer.devices.distributed import Group, check_parallel, local_device, local_processes, process_group
from trainer.devices.memory import automatic_batch
from trainer.devices.precision import deterministic, pick_amp, pick_device
from trainer.extras.averaging import estimate_norms
from trainer.extras.distill import describe
from trainer.extras.qat import calibrate, follow_ranges, last_moving_epoch
from trainer.failures import Interrupted, TrainingError, dead_processes
from trainer.log.metrics import HELP, Records
from trainer.log.plots import validation_sheet
from trainer.log.report import left_out, write_report
from trainer.optim import learning_rate, refresh_rates, steps_per_epoch
from trainer.run.checkpoints import Checkpoints
from trainer.run.folder import Resume, RunFolder, make_card
from trainer.run.lock import training_in
from trainer.run.stop import StopRequest
from trainer.state import new_state, seed_everything, starting_model
from trainer.step import train_epoch
from trainer.validation_loss import validation_losses

__all__ = ["FitResult", "Interrupted", "TrainingError", "deployable", "fit"]


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

    `resume` (from `trainer.run.folder.find_resumable`) continues an interrupted run with the batch after its last saved
    one; on a CPU the weights are then, bit for bit, those of a run that was never interrupted. SIGINT and SIGTERM
    finish the step, save and raise `Interrupted`, a KeyboardInterrupt. Raises `ConfigError`, `DatasetError`,
    `CheckpointError`, `RecordsError`, `EvaluationError` or `TrainingError`, each saying what to do.
    """
    with deterministic(config.deterministic), process_group(config.device) as group:
        return _fit(config, runs, resume, quiet, group)


def _fit(config: TrainConfig, runs: str | Path, resume: Resume | None, quiet: bool, group: Group) -> FitResult:
    device = pick_device(config.device)
    if group.size > 1 and device.type == "cuda":
        device = local_device()
    check_parallel(config, group, device)
    amp = pick_amp(config.amp, device)
    train, val = train_data(config), val_data(config)
    if all(record.crowd.all() for record in train.records):
        raise DatasetError.at(
            train.annotations,
            f"none of its {len(train)} training images has an object to train on "
            f"({train.problems.summary() or 'no annotation was found: do the files lie where they are looked for?'})",
        )
    require_objects(val)
    if config.batch_size == "auto":
        objects = max(len(record.labels) for record in train.records)
        fitting = automatic_batch(config, device, amp, max(len(train) // group.size, 1), objects)
        config = replace(config, batch_size=min(group.gather(fitting)))
    seed_everything(config.seed)
    card = make_card(config, train, val, amp)
    changed = resume is not None and resume.changes(card)
    pictures = pictures_for(config.data, train.records, local_processes())
    train_set = TrainSet(
        train, resize_rule(config.model), config.augment, config.seed, pictures, config.schedule.epochs
    )
    batches = training_batches(config, train_set, device, group)
    accumulate, epochs = config.optim.accumulate, config.schedule.epochs
    steps = steps_per_epoch(len(batches), accumulate)
    model, started = starting_model(config, resume is not None)
    ranges = ""
    if isinstance(model, QuantDetector) and resume is None:
        plain = TrainSet(train, train_set.resize, None, config.seed, pictures)
        ranges = calibrate(model.to(device), config, plain, device)
    state = new_state(config, model.to(device), amp, steps * epochs, group)
    other_epochs = False
    if resume is not None:
        rates = [float(rate) for rate in state.schedule.base_lrs]
        state.load_state_dict(resume.state, group.rank)
        other_epochs = state.keep_pace(resume.state.get("steps_per_epoch", steps), rates)
        state.batch = 0 if changed else state.batch
    folder = None if resume is None else RunFolder(resume.run)
    if group.main:
        folder = RunFolder.new(Path(runs), config) if resume is None else RunFolder.reopened(resume.run)
    folder = group.gather(folder)[0]
    assert folder is not None, "the main process has made it"

    start_step = steps_per_epoch(state.batch, accumulate)
    quiet = quiet or not group.main
    helped = [name for name, part in zip(HELP, (config.distill, config.auxiliary), strict=True) if part is not None]
    with (
        training_in(folder.path) if group.main else nullcontext(),
        Records(config, folder.path, steps, state.epoch, quiet, start_step, group.main, helped) as records,
        StopRequest() as stop,
    ):
        checkpoints = Checkpoints(config, folder, card, state, records, stop, resume is not None, group)
        for line in _introduction(config, state.model, train, val, device, amp, folder.path, group):
            records.say(line)
        for name, dataset in (("train", train), ("val", val)):
            if summary := dataset.problems.summary():
                records.warn(f"{name}: {summary}")
        if origins := different_origins(config, train, val):
            records.warn(origins)
        for line in filter(None, (started, describe(state.distillation), ranges, pictures.describe())):
            records.say(line)
        for line in (writer.where for writer in records.writers if writer.where):
            records.say(line)
        if changed:
            records.warn(f"the annotations changed since the checkpoint: epoch {state.epoch + 1} starts again")
        elif other_epochs:
            records.say(f"an epoch has other steps than before the checkpoint: epoch {state.epoch + 1} starts again")

        def judge(model: Network) -> Evaluation:
            group.share_buffers(model)
            detector, part = deployable(model, card, device), (group.rank, group.size)
            return evaluate(detector, val, config.images_per_batch, checkpoints.validating, part, group.gather)

        last, told, first, advised, warned = None, 0, state.epoch, "", set[str]()
        for epoch in range(first, epochs):
            records.begin_epoch(epoch)
            follow_ranges(state.model, epoch < last_moving_epoch(config))
            if resume is not None and state.batch:
                records.load_state_dict(resume.state["records"])
            with dead_processes(checkpoints.said):
                train_epoch(
                    config, state, timed(batches.begin(epoch, state.batch, checkpoints.waiting), records.waited),
                    len(batches), device, amp, group, records, checkpoints.after_step, checkpoints.said,
                )  # fmt: skip
            typical = epoch > first or epochs - first == 1  # the first starts processes and fills caches
            if typical and not advised and (advised := advice(records.wait_share, config, device, train.records)):
                records.say(advised)
            if unusable := train_set.unusable[told:]:
                told += len(unusable)
                records.warn(
                    f"{told} of {len(train_set)} training pictures cannot be used, as logged; one is {unusable[0]}"
                )

            evaluation, improved, dropped = None, False, False
            if (epoch + 1) % config.val_interval == 0 or epoch + 1 == epochs:
                last = evaluation = judge(state.deployed)
                improved = not evaluation.map < state.best_map  # nan (nothing to find) never loses
                dropped = state.plateau.update(not evaluation.map <= state.best_map, config.schedule)
                state.best_map = evaluation.map if improved else state.best_map
                records.say(f"epoch {epoch + 1}: {_scores(evaluation)}{'  <- best so far' if improved else ''}")
                for note in filter(None, (_unreadable(evaluation), evaluation.nan_note(), evaluation.cap_note())):
                    kind = note.partition(":")[0]  # its numbers change from epoch to epoch
                    if kind not in warned:
                        records.warn(note)
                    warned.add(kind)
                if group.main:
                    if config.val_loss:
                        with dead_processes(checkpoints.said):
                            measured = validation_losses(
                                config, state.deployed, val, device, amp, checkpoints.waiting_to_judge
                            )
                        records.validated(measured)
                    validation_sheet(val, evaluation, folder.path / "plots" / "validation.jpg")
            state.epoch, state.batch = epoch + 1, 0
            if state.swa is not None and state.epoch > epochs - config.schedule.swa_epochs:
                state.swa.update_parameters(state.model)
            records.end_epoch(state.epoch * steps, float(state.schedule.get_last_lr()[0]), evaluation)
            if dropped:
                refresh_rates(state.schedule)
                records.say(f"no better mAP for {config.schedule.patience} validations: the learning rate drops")
            stopped = evaluation is not None and state.plateau.stops(config.schedule)
            over = stopped or state.epoch == epochs
            checkpoints.end_epoch(evaluation, improved, finished=over and state.swa is None)
            if stopped and state.epoch < epochs:
                records.say(f"no better mAP for {config.schedule.early_stop} validations: the run ends early")
                break
        if state.swa is not None:
            averaged = state.swa.module
            with dead_processes(checkpoints.said):
                arriving = batches.begin(epochs, waiting=checkpoints.waiting_to_judge)
                estimate_norms(averaged, arriving, device, amp, checkpoints.averaging)
            evaluation = judge(averaged)  # type: ignore[arg-type]
            improved = evaluation.map > state.best_map
            state.best_map = max(state.best_map, evaluation.map)
            records.say(f"averaged weights: {_scores(evaluation)}{'  <- best so far' if improved else ''}")
            checkpoints.end_run(averaged.state_dict(), evaluation, improved)
            last = last or evaluation
        if group.main:
            if last is not None:
                write_plots(measure(last, val), folder.path / "plots")
            left = left_out(train, val, train_set.unusable, last.skipped if last else ())
            write_report(folder.path, config, records.rows, last.per_class if last else None, left)
    assert last is not None, "the last epoch is always validated, and a finished run is not resumed"
    return FitResult(folder.path, folder.path / "best.pt", state.best_map, last)


def deployable(model: Network, card: Card, device: torch.device) -> Detector:
    """The public detector over a fused copy of a model in training: validation is an inference run."""
    training = model.training
    deploy = Deploy(model.eval())
    model.train(training)
    deploy = deploy.to(memory_format=torch.channels_last)
    return Detector(TorchBackend(deploy, card, device), threshold=0.0)


def _introduction(
    config: TrainConfig, model: Network, train: CocoDataset, val: CocoDataset, device: torch.device,
    amp: torch.dtype | None, run: Path, group: Group,
) -> list[str]:  # fmt: skip
    m, parameters = config.model, sum(p.numel() for p in model.parameters())
    height, width = m.input_size_hw
    lines = [
        f"{m.detector} (assign {m.assign.kind}, box {m.box.code}, quality {m.quality}) on {m.backbone.name} "
        f"x{m.backbone.width:g}: {parameters / 1e6:.1f} M parameters, {len(m.classes)} classes, {height}x{width} px",
        f"train {len(train.records)} images, val {len(val.records)}; batch {config.batch_size} x "
        f"{f'{group.size} processes x ' if group.size > 1 else ''}"
        f"{config.optim.accumulate}; {device.type}, {str(amp or torch.float32).removeprefix('torch.')}; into {run}",
    ]
    if config.optim.base_batch is not None:
        rate = learning_rate(config.optim, config.images_per_batch, group.size)
        lines.append(f"learning rate {rate:g}: {config.optim.lr:g} is meant for batches of {config.optim.base_batch}")
    return lines


def _scores(e: Evaluation) -> str:
    return (
        f"mAP {e.map:.1f}, AP50 {e.ap50:.1f}, AP75 {e.ap75:.1f}, "
        f"small {e.ap_small:.1f}, medium {e.ap_medium:.1f}, large {e.ap_large:.1f} ({e.seconds:.0f} s)"
    )


def _unreadable(e: Evaluation) -> str:
    if not e.skipped:
        return ""
    path, reason = e.skipped[0]
    return f"{len(e.skipped)} unreadable validation pictures left out, as {path}: {reason}"
