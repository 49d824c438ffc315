"""When a run writes `last.pt` and `best.pt`, and what stands in them."""

from __future__ import annotations

import time

import torch

from runtime.card.card import Card
from runtime.evaluation.evaluate import Evaluation
from trainer.config.train import TrainConfig
from trainer.devices.distributed import Group
from trainer.failures import Interrupted
from trainer.log.metrics import MetricsLog
from trainer.run.folder import RunFolder
from trainer.run.stop import StopRequest
from trainer.state import State

FELLOWS_S = 20.0
"""How long a process of several waits for pictures after a signal; torchrun kills after 30 s."""


class Checkpoints:
    """Saves at the end of epochs, within them when one is due, and when a signal asks to stop."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, card: Card, state: State, log: MetricsLog, stop: StopRequest,
        resumed: bool, group: Group,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.card = config, folder, card
        self.state, self.log, self.stop = state, log, stop
        self._there, self.group = resumed, group
        self.device = state.model.device
        self._saved()

    def _saved(self) -> None:
        self._when, self._steps, self._at = time.monotonic(), 0, (self.state.epoch, self.state.batch)

    def said(self) -> str:
        """A sentence on what last.pt holds, for messages."""
        if not self._there:
            return "no checkpoint was written before."
        epoch, batch = self._at
        where = f"epoch {epoch + 1} after batch {batch}" if batch else f"the end of epoch {epoch}"
        return f"the last good checkpoint, {self.folder.path / 'last.pt'}, holds {where}."

    def after_step(self) -> None:
        """Save when minutes or steps say so; when asked to stop, save and raise `Interrupted`."""
        self._steps += 1
        minutes, steps = self.config.checkpoint_minutes, self.config.checkpoint_steps
        old = minutes > 0 and time.monotonic() - self._when >= 60 * minutes
        stopped, old = self._agreed(bool(self.stop.signal), old)
        if stopped:
            self.stop_here()
        elif old or 0 < steps <= self._steps:
            self._save(None, False, False)

    def validating(self, done: int, total: int) -> None:
        """The progress of a validation, which is not worth waiting for when asked to stop."""
        self.log.validating(done, total)
        if self.stop.signal and self.group.size == 1:  # several are not at the same picture, and wait for its end
            self.stop_here()

    def waiting(self, seconds: float, batch: int) -> None:
        """When asked to stop while batch number `batch` does not come: do not wait for it.

        What the gradients of an unfinished step know is lost, as last.pt has none. Fellows may be in the middle of a
        step that this process has a part in, and are waited for a little longer.
        """
        if not self.stop.signal or (self.group.size > 1 and seconds < FELLOWS_S):
            return
        if self.group.size == 1 and batch == self.state.batch:
            self.stop_here()
        raise Interrupted(
            f"stopped by {self.stop.signal} while pictures did not come for {seconds:.0f} s; {self.said()}"
            + (f" Go on with: trainer fit --resume {self.folder.path}" if self._there else "")
        )

    def while_evaluation_waits(self, seconds: float, batch: int) -> None:
        """The same where nothing is trained: all that there is can be saved."""
        self.waiting(seconds, self.state.batch)

    def _agreed(self, stopped: bool, old: bool) -> tuple[bool, bool]:
        """What any process was asked, and what the main one's clock says."""
        if self.group.size == 1:
            return stopped, old
        answers = self.group.total(torch.tensor([int(stopped), int(old and self.group.main)], device=self.device))
        return bool(answers[0]), bool(answers[1])

    def averaging(self, done: int) -> None:
        """The same while BatchNorms are estimated anew."""
        self.validating(done, done)

    def end_epoch(self, evaluation: Evaluation | None, improved: bool, finished: bool) -> None:
        """Save the end of an epoch; then stop, if asked to and there is more to come."""
        self._save(evaluation, improved, finished)
        if self._agreed(bool(self.stop.signal), False)[0] and not finished:
            self.stop_here(save=False)

    def end_run(self, averaged: dict[str, torch.Tensor], evaluation: Evaluation, improved: bool) -> None:
        """Save the averaged weights of the last epochs as swa.pt, and as best.pt if they are the best."""
        if self.group.main:
            self.folder.save_weights(averaged, self.card, evaluation, self.state.epoch, improved)
        self._save(None, False, True)

    def stop_here(self, save: bool = True) -> None:
        """Save, where that is not done yet, and raise `Interrupted` with the command that goes on."""
        if save:
            self._save(None, False, False)
        where = f"in epoch {self.state.epoch + 1}, after batch {self.state.batch}"
        if self.state.epoch == self.config.schedule.epochs:
            where = "after the last epoch, while the averaged weights were judged"
        raise Interrupted(
            f"stopped by {self.stop.signal or 'a signal'} {where}; all of it is saved. "
            f"Go on with: trainer fit --resume {self.folder.path}"
        )

    def _save(self, evaluation: Evaluation | None, improved: bool, finished: bool) -> None:
        state, progress = self.state, {"epoch": self.state.epoch}
        if state.batch:
            progress["batch"] = state.batch
        saved = state.state_dict() | {"finished": finished, "records": self.log.state_dict()}
        if self.group.size > 1:
            saved["process_rng"] = self.group.gather(saved["rng"])
        if self.group.main:
            self.folder.save(state.averages.deployed.state_dict(), self.card, evaluation, progress, saved, improved)
        self._there = True
        self._saved()
