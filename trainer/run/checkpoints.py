"""When a run writes `last.pt` and `best.pt`, and what they contain."""

from __future__ import annotations

import time

import torch

from runtime.card.card import Card
from runtime.evaluation.evaluate import Evaluation
from trainer.config.train import TrainConfig
from trainer.devices.distributed import Group
from trainer.failures import Interrupted
from trainer.log.metrics import MetricsLog
from trainer.run.folder import RunFolder, scored_card
from trainer.run.stop import StopRequest
from trainer.state import State

OTHERS_S = 20.0
"""How long one of several processes still waits for pictures after a signal. torchrun kills them after 30 s."""


class Checkpoints:
    """Saves at the end of epochs, within them when one is due, and when a signal asks to stop."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, card: Card, state: State, log: MetricsLog, stop: StopRequest,
        resumed: bool, group: Group,
    ) -> None:  # fmt: skip
        self.config, self.folder, self.card = config, folder, card
        self.state, self.log, self.stop = state, log, stop
        self._exists, self.group = resumed, group
        self._note_position()

    def _note_position(self) -> None:
        """Count minutes and steps from here: the state is as `last.pt` has it."""
        self._saved_at, self._steps = time.monotonic(), 0
        self._saved_epoch, self._saved_batch = self.state.epoch, self.state.batch

    def describe(self) -> str:
        """A sentence on what last.pt holds, for messages."""
        if not self._exists:
            return "no checkpoint was written before."
        epoch, batch = self._saved_epoch, self._saved_batch
        position = f"epoch {epoch + 1} after batch {batch}" if batch else f"the end of epoch {epoch}"
        return f"the last good checkpoint, {self.folder.path / 'last.pt'}, holds {position}."

    def after_step(self) -> None:
        """Save when minutes or steps say so; when asked to stop, save and raise `Interrupted`."""
        self._steps += 1
        minutes, steps = self.config.checkpoint_minutes, self.config.checkpoint_steps
        old = minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes
        stopped, old = self._agreed(bool(self.stop.signal), old)
        if stopped:
            self.stop_here()
        elif old or 0 < steps <= self._steps:
            self._save()

    def on_validation(self, done: int, total: int) -> None:
        """Show the progress of a validation. When asked to stop, do not wait for its end."""
        self.log.validating(done, total)
        if self.stop.signal and self.group.size == 1:  # several processes are not at the same picture: they finish it
            self.stop_here()

    def on_wait(self, seconds: float, batch: int) -> None:
        """When asked to stop, do not wait for batch number `batch`, which has not come for `seconds`.

        The gradients of an unfinished step are lost, because last.pt has none. Where there are several processes, the
        others may be in the middle of a step that needs this one, so it waits a little longer.
        """
        if not self.stop.signal or (self.group.size > 1 and seconds < OTHERS_S):
            return
        if self.group.size == 1 and batch == self.state.batch:
            self.stop_here()
        raise Interrupted(
            f"stopped by {self.stop.signal} while pictures did not come for {seconds:.0f} s; {self.describe()}"
            + (f" Go on with: trainer fit --resume {self.folder.path}" if self._exists else "")
        )

    def on_wait_after_training(self, seconds: float, _: int) -> None:
        """`on_wait` where nothing is trained, so that no gradients are lost and the state can be saved."""
        self.on_wait(seconds, self.state.batch)

    def _agreed(self, stopped: bool, old: bool) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether last.pt is old by the main process's clock."""
        if self.group.size == 1:
            return stopped, old
        flags = torch.tensor([int(stopped), int(old and self.group.main)], device=self.state.model.device)
        any_stopped, main_old = self.group.total(flags).tolist()
        return bool(any_stopped), bool(main_old)

    def end_epoch(self, evaluation: Evaluation | None, improved: bool, finished: bool) -> None:
        """Save the end of an epoch. Then stop, if asked to and the run is not `finished`."""
        self._save(evaluation, improved, finished)
        if self._agreed(bool(self.stop.signal), False)[0] and not finished:
            self.stop_here(save=False)

    def end_run(self, averaged: dict[str, torch.Tensor], evaluation: Evaluation, improved: bool) -> None:
        """Save the averaged weights of the last epochs as swa.pt, and as best.pt if they are the best."""
        if self.group.main:
            card = scored_card(self.card, {"epoch": self.state.epoch, "averaged": True}, evaluation)
            self.folder.save(averaged, card, improved)
        self._save(finished=True)

    def stop_here(self, save: bool = True) -> None:
        """Save, unless that is done already, and raise `Interrupted` with the command that goes on."""
        if save:
            self._save()
        position = f"in epoch {self.state.epoch + 1}, after batch {self.state.batch}"
        if self.state.epoch == self.config.schedule.epochs:
            position = "after the last epoch, while the averaged weights were judged"
        raise Interrupted(
            f"stopped by {self.stop.signal or 'a signal'} {position}; all of it is saved. "
            f"Go on with: trainer fit --resume {self.folder.path}"
        )

    def _save(self, evaluation: Evaluation | None = None, improved: bool = False, finished: bool = False) -> None:
        state, progress = self.state, {"epoch": self.state.epoch}
        if state.batch:
            progress["batch"] = state.batch
        saved = state.state_dict() | {"finished": finished, "records": self.log.state_dict()}
        if self.group.size > 1:
            saved["process_rng"] = self.group.gather(saved["rng"])
        if self.group.main:
            card = scored_card(self.card, progress, evaluation)
            self.folder.save(state.averages.deployed.state_dict(), card, improved, saved)
        self._exists = True
        self._note_position()
