"""`trainer fit`: the training loop."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from models.deploy.graph import Deploy
from models.detector import Detector as Network
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
from trainer.data.loader import Batches, training_batches
from trainer.data.tiles import in_tiles, views_line
from trainer.data.train_set import TrainSet, resize_rule
from trainer.devices.allocator import freed_memory_kept
from trainer.devices.distributed import Group, check_parallel, local_device, local_processes, process_group
from trainer.devices.memory import automatic_batch
from trainer.devices.precision import deterministic, pick_amp, pick_device
from trainer.devices.threads import Threads, training_threads
from trainer.extras.averaging import estimate_norms
from trainer.extras.distill import describe
from trainer.extras.qat import calibrate, follow_ranges, last_moving_epoch
from trainer.failures import Interrupted, TrainingError, dead_processes
from trainer.log.metrics import MetricsLog
from trainer.log.plots import validation_sheet
from trainer.log.report import left_out, write_report
from trainer.optim import learning_rate, refresh_rates, steps_per_epoch
from trainer.run.checkpoints import Checkpoints
from trainer.run.folder import Resume, RunFolder, make_card
from trainer.run.lock import training_in
from trainer.run.stop import StopRequest
from trainer.state import State, new_state, seed_everything, starting_model
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
    one; on a CPU the weights are then, bit for bit, those of a run that was never interrupted, as long as both compute
    with as many threads (`threads`). SIGINT and SIGTERM finish the step, save and raise `Interrupted`, a
    KeyboardInterrupt. Raises `ConfigError`, `DatasetError`, `CheckpointError`, `RecordsError`, `EvaluationError` or
    `TrainingError`, each saying what to do.
    """
    with deterministic(config.deterministic), process_group(config.device) as group, ExitStack() as stack:
        run = _prepare(config, Path(runs), resume, quiet, group, stack)
        for epoch in range(run.state.epoch, run.config.schedule.epochs):
            _train(run, epoch)
            if _validate_and_save(run, epoch):
                break
        return _finish(run)


@dataclass
class _Run:
    """What the stages of `fit` share, and what one leaves for the next."""

    config: TrainConfig
    resume: Resume | None
    group: Group
    train: CocoDataset
    val: CocoDataset
    train_set: TrainSet
    batches: Batches
    threads: Threads | None
    state: State
    card: Card
    folder: Path
    log: MetricsLog
    checkpoints: Checkpoints
    first_epoch: int
    """The first epoch that this process trains, from 0."""
    evaluation: Evaluation | None = None
    """That of the last validated epoch."""
    advised: bool = False
    """Whether the log has advice on the time that pictures take."""
    unusable: int = 0
    """How many training pictures the log has counted as unusable."""
    warned: set[str] = field(default_factory=set)
    """The kinds of warnings on an evaluation that the log has."""

    @property
    def device(self) -> torch.device:
        return self.state.model.device

    def after_step(self) -> None:
        """After each optimizer step: watch its speed, and save where it is time to."""
        if self.threads is not None:
            self.threads.after_step()
            self.state.threads = self.threads.chosen
        self.checkpoints.after_step()


def _prepare(
    config: TrainConfig, runs: Path, resume: Resume | None, quiet: bool, group: Group, stack: ExitStack
) -> _Run:
    """Make data, network and run folder, and describe them in the log. `stack` closes the folder and its lock."""
    device = pick_device(config.device)
    if group.size > 1 and device.type == "cuda":
        device = local_device()
    stack.enter_context(freed_memory_kept(device.type == "cpu"))
    check_parallel(config, group, device)
    amp = pick_amp(config.amp, device)
    train, val = _data(config)
    if config.batch_size == "auto":
        objects = max(len(record.labels) for record in train.records)
        fitting = automatic_batch(config, device, amp, max(len(train) // group.size, 1), objects)
        config = replace(config, batch_size=min(group.gather(fitting)))
    seed_everything(config.seed)
    card = make_card(config, train, val, amp)
    data_changed = resume is not None and resume.changes(card)

    pictures = pictures_for(config.data, train.records, local_processes())
    views = in_tiles(train, config)
    train_set = TrainSet(
        views, resize_rule(config.model), config.augment, config.seed, pictures, config.schedule.epochs
    )
    batches = training_batches(config, train_set, device, group)
    detector, started_from = starting_model(config, resume is not None)
    ranges = calibrate(detector.to(device), config, train_set, device) if resume is None else ""
    steps = steps_per_epoch(len(batches), config.optim.accumulate)
    state = new_state(config, detector.to(device), amp, steps * config.schedule.epochs, group)
    other_steps = resume is not None and state.resume(resume.state, group.rank)
    if data_changed:
        state.batch = 0

    folder = _folder(config, runs, resume, group)
    if group.main:
        stack.enter_context(training_in(folder.path))
    start_step = steps_per_epoch(state.batch, config.optim.accumulate)
    log = stack.enter_context(
        MetricsLog(config, folder.path, steps, state.epoch, quiet or not group.main, start_step, group.main)
    )
    stop = stack.enter_context(StopRequest())
    checkpoints = Checkpoints(config, folder, card, state, log, stop, resume is not None, group)

    stack.callback(torch.set_num_threads, torch.get_num_threads())
    threads = training_threads(config.threads, device, config.deterministic, group.size, state.threads, log.say)
    run = _Run(
        config, resume, group, train, val, train_set, batches, threads, state, card, folder.path, log, checkpoints,
        state.epoch,
    )  # fmt: skip
    notes = (views_line(train, views, config), started_from, describe(state.model.distillation), ranges)
    _introduce(run, (*notes, pictures.describe(), *log.places))
    if data_changed:
        log.warn(f"the annotations changed since the checkpoint: epoch {state.epoch + 1} starts again")
    elif other_steps:
        log.say(f"an epoch has other steps than before the checkpoint: epoch {state.epoch + 1} starts again")
    return run


def _data(config: TrainConfig) -> tuple[CocoDataset, CocoDataset]:
    """The training and the validation data; raises `DatasetError` where one of them has no object."""
    train, val = train_data(config), val_data(config)
    if all(record.crowd.all() for record in train.records):
        raise DatasetError.at(
            train.annotations,
            f"none of its {len(train)} training images has an object to train on "
            f"({train.problems.summary() or 'no annotation was found: do the files lie where they are looked for?'})",
        )
    require_objects(val)
    return train, val


def _folder(config: TrainConfig, runs: Path, resume: Resume | None, group: Group) -> RunFolder:
    """The run's folder, which the main process makes, or opens again, and tells the others."""
    folder = None
    if group.main:
        folder = RunFolder.new(runs, config) if resume is None else RunFolder.reopened(resume.run)
    folder = group.gather(folder)[0]
    assert folder is not None, "the main process is the first"
    return folder


def _train(run: _Run, epoch: int) -> None:
    """The steps of `epoch`, from its first batch that is not done yet."""
    config, state, log, checkpoints = run.config, run.state, run.log, run.checkpoints
    log.begin_epoch(epoch)
    if run.threads is not None:
        run.threads.pause()
    follow_ranges(state.detector, epoch < last_moving_epoch(config))
    if run.resume is not None and state.batch:
        log.load_state_dict(run.resume.state["records"])
    with dead_processes(checkpoints.describe):
        batches = timed(run.batches.begin(epoch, state.batch, checkpoints.on_wait), log.waited)
        train_epoch(state, batches, len(run.batches), log, run.after_step, checkpoints.describe)
    typical = epoch > run.first_epoch or config.schedule.epochs - run.first_epoch == 1  # before, caches fill
    if typical and not run.advised and (line := advice(log.wait_share, config, run.device, run.train.records)):
        log.say(line)
        run.advised = True
    if unusable := run.train_set.unusable[run.unusable :]:
        run.unusable += len(unusable)
        log.warn(
            f"{run.unusable} of {len(run.train_set)} training pictures cannot be used, as logged; one is {unusable[0]}"
        )


def _validate_and_save(run: _Run, epoch: int) -> bool:
    """Score `epoch`, write its row, last.pt and best.pt. Returns whether the run is to end."""
    config, state, log, schedule = run.config, run.state, run.log, run.config.schedule
    evaluation, improved, dropped = None, False, False
    if (epoch + 1) % config.val_interval == 0 or epoch + 1 == schedule.epochs:
        run.evaluation = evaluation = _evaluate(run, state.averages.deployed)
        improved, dropped = state.count_validation(evaluation.map)
        log.say(f"epoch {epoch + 1}: {_scores(evaluation)}{'  <- best so far' if improved else ''}")
        _warn_of(run, evaluation)
        if run.group.main:
            if config.val_loss:
                wait = run.checkpoints.on_wait_after_training
                with dead_processes(run.checkpoints.describe):
                    deployed = state.averages.deployed
                    log.validated(validation_losses(config, deployed, run.val, run.device, state.model.amp, wait))
            validation_sheet(run.val, evaluation, run.folder / "plots" / "validation.jpg")
    state.epoch, state.batch = epoch + 1, 0
    if state.epoch > schedule.epochs - schedule.swa_epochs:
        state.averages.after_averaged_epoch()
    log.end_epoch(state.epoch * state.steps_per_epoch, float(state.schedule.get_last_lr()[0]), evaluation)
    if dropped:
        refresh_rates(state.schedule)
        log.say(f"no better mAP for {schedule.patience} validations: the learning rate drops")
    stopped = evaluation is not None and state.plateau.stops(schedule)
    over = stopped or state.epoch == schedule.epochs
    run.checkpoints.end_epoch(evaluation, improved, finished=over and not schedule.swa_epochs)
    if stopped and state.epoch < schedule.epochs:
        log.say(f"no better mAP for {schedule.early_stop} validations: the run ends early")
    return over


def _finish(run: _Run) -> FitResult:
    """Evaluate and save averaged weights where the config asks for them; write the plots and the report."""
    state, swa = run.state, run.state.averages.swa
    if swa is not None:
        averaged: Network = swa.module  # type: ignore[assignment]
        checkpoints = run.checkpoints
        with dead_processes(checkpoints.describe):
            batches = run.batches.begin(run.config.schedule.epochs, waiting=checkpoints.on_wait_after_training)
            progress = checkpoints.on_validation
            estimate_norms(averaged, batches, run.device, state.model.amp, lambda done: progress(done, done))
        evaluation = _evaluate(run, averaged)
        improved = evaluation.map > state.best_map
        state.best_map = max(state.best_map, evaluation.map)
        run.log.say(f"averaged weights: {_scores(evaluation)}{'  <- best so far' if improved else ''}")
        checkpoints.end_run(averaged.state_dict(), evaluation, improved)
        run.evaluation = run.evaluation or evaluation
    last = run.evaluation
    assert last is not None, "the last epoch is always validated, and a finished run is not resumed"
    if run.group.main:
        write_plots(measure(last, run.val), run.folder / "plots")
        lines = left_out(run.train, run.val, run.train_set.unusable, last.skipped)
        write_report(run.folder, run.config, run.log.rows, last.per_class, lines)
    return FitResult(run.folder, run.folder / "best.pt", state.best_map, last)


def _evaluate(run: _Run, model: Network) -> Evaluation:
    """The scores of `model` on the validation data. Each process evaluates a part of it."""
    run.group.share_buffers(model)
    detector, part = deployable(model, run.card, run.device), (run.group.rank, run.group.size)
    batch = run.config.images_per_batch
    return evaluate(detector, run.val, batch, run.checkpoints.on_validation, part, run.group.gather)


def _warn_of(run: _Run, evaluation: Evaluation) -> None:
    """Warn of what makes the scores doubtful, of each kind once in a run."""
    notes = [evaluation.nan_note(), evaluation.cap_note()]
    if skipped := evaluation.skipped:
        path, reason = skipped[0]
        notes.insert(0, f"{len(skipped)} unreadable validation pictures left out, as {path}: {reason}")
    for note in filter(None, notes):
        kind = note.partition(":")[0]  # its numbers change from epoch to epoch
        if kind not in run.warned:
            run.log.warn(note)
        run.warned.add(kind)


def deployable(model: Network, card: Card, device: torch.device) -> Detector:
    """The public detector over a fused copy of a model in training: validation is an inference run."""
    training = model.training
    deploy = Deploy(model.eval())
    model.train(training)
    deploy = deploy.to(memory_format=torch.channels_last)
    return Detector(TorchBackend(deploy, card, device), threshold=0.0)


def _introduce(run: _Run, notes: Iterable[str]) -> None:
    """Log the model, the data, the device, what is wrong with the data, and those of `notes` that are not empty."""
    config, group, m = run.config, run.group, run.config.model
    parameters = sum(p.numel() for p in run.state.detector.parameters())
    height, width = m.input_size_hw
    precision = str(run.state.model.amp or torch.float32).removeprefix("torch.")
    lines = [
        f"{m.detector} (assign {m.assign.kind}, box {m.box.code}, quality {m.quality}) on {m.backbone.name} "
        f"x{m.backbone.width:g}: {parameters / 1e6:.1f} M parameters, {len(m.classes)} classes, {height}x{width} px",
        f"train {len(run.train.records)} images, val {len(run.val.records)}; batch {config.batch_size} x "
        f"{f'{group.size} processes x ' if group.size > 1 else ''}"
        f"{config.optim.accumulate}; {run.device.type}, {precision}; into {run.folder}",
    ]
    if config.optim.base_batch is not None:
        rate = learning_rate(config.optim, config.images_per_batch, group.size)
        lines.append(f"learning rate {rate:g}: {config.optim.lr:g} is meant for batches of {config.optim.base_batch}")
    for line in lines:
        run.log.say(line)
    for name, dataset in (("train", run.train), ("val", run.val)):
        if summary := dataset.problems.summary():
            run.log.warn(f"{name}: {summary}")
    if origins := different_origins(config, run.train, run.val):
        run.log.warn(origins)
    for note in filter(None, notes):
        run.log.say(note)


def _scores(e: Evaluation) -> str:
    return (
        f"mAP {e.map:.1f}, AP50 {e.ap50:.1f}, AP75 {e.ap75:.1f}, "
        f"small {e.ap_small:.1f}, medium {e.ap_medium:.1f}, large {e.ap_large:.1f} ({e.seconds:.0f} s)"
    )
