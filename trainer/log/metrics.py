"""The numbers of a run: the progress line, metrics.csv, and the rows for the loggers."""

from __future__ import annotations

import csv
import io
import resource
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from models.loss import Losses
from runtime.evaluation.evaluate import Evaluation
from runtime.files.write import write_text
from trainer.config.train import TrainConfig
from trainer.log.loggers import open_loggers

SCORES = ("map", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
LOSSES = ("loss", "loss_cls", "loss_box", "loss_quality")
VAL_LOSSES = tuple(f"val_{name}" for name in LOSSES)
HELP = ("loss_distill", "loss_aux")
"""Terms of the loss where there is a teacher or an auxiliary head."""
_TERMS = tuple(name.removeprefix("loss_") for name in (*LOSSES[1:], *HELP))
"""The terms of the loss in the order that a checkpoint has them: the first three, or all."""
COLUMNS = ("epoch", "step", "lr", *LOSSES, "images_per_s", *SCORES, *VAL_LOSSES, "seconds", *HELP, "data_wait")
"""data_wait: per cent of the training time spent waiting for the next batch."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv; cells that were not measured are left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


class MetricsLog:
    """Collects the losses of an epoch, shows them while it runs and writes a row when it ends."""

    def __init__(
        self, config: TrainConfig, run: Path, steps: int, start_epoch: int = 0, quiet: bool = False,
        start_step: int = 0, writes: bool = True,
    ) -> None:  # fmt: skip
        """The log of a run with epochs of `steps`, resumed after `start_epoch` epochs and `start_step` steps.

        Of several processes one `writes`; the others have to be `quiet`. Raises `RecordsError`.
        """
        absent = {"distill": config.distill is None, "aux": config.auxiliary is None}
        self.terms = tuple(name for name in _TERMS if not absent.get(name))
        self.writes = writes
        self.run = run
        self.epochs = epochs = config.schedule.epochs
        done = start_epoch * steps
        # Older events from this step on are dropped. The events of a finished epoch are at its last step, and stay.
        purge = done + 1 if done + start_step else None
        self.loggers = open_loggers(config, run, purge) if writes else []
        self.interval = 0.5 if sys.stderr.isatty() else 15.0
        self.bar = tqdm(
            total=epochs * steps, initial=done + start_step, unit="step", disable=quiet, file=sys.stderr,
            dynamic_ncols=True, smoothing=0.05, mininterval=self.interval,
            bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed} gone, {remaining} left {postfix}",
        )  # fmt: skip
        self._refreshed = time.monotonic()
        # A resumed run continues the file, without the rows of epochs that are trained again.
        self.rows: list[dict[str, float]] = [r for r in read_metrics(run / "metrics.csv") if r["epoch"] <= start_epoch]
        self.begin_epoch(start_epoch)

    @property
    def places(self) -> list[str]:
        """A sentence for each logger on where its records are."""
        return [logger.where for logger in self.loggers if logger.where]

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.images, self.batches, self.train_seconds, self.wait_seconds = epoch, 0, 0, 0.0, 0.0
        self.sums = dict.fromkeys(self.terms, 0.0)
        self.val_losses: dict[str, float] = {}
        self.epoch_started = time.monotonic()
        self.bar.set_description_str(f"epoch {epoch + 1}/{self.epochs}", refresh=False)

    def state_dict(self) -> dict[str, Any]:
        """The sums and times of the current epoch so far."""
        terms = _TERMS if len(self.terms) > 3 else _TERMS[:3]
        return {
            "sums": [self.sums.get(name, 0.0) for name in terms],
            "images": self.images,
            "batches": self.batches,
            "train_seconds": self.train_seconds,
            "wait_seconds": self.wait_seconds,
            "seconds": time.monotonic() - self.epoch_started,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on with an epoch that was interrupted: its means and times are those of both parts."""
        sums = dict(zip(_TERMS, saved["sums"], strict=False))
        self.sums = {name: sums[name] for name in self.terms}
        self.images, self.batches = saved["images"], saved["batches"]
        self.train_seconds, self.epoch_started = saved["train_seconds"], time.monotonic() - saved["seconds"]
        self.wait_seconds = saved.get("wait_seconds", 0.0)

    def waited(self, seconds: float) -> None:
        """Add the seconds until the next batch came."""
        self.wait_seconds += seconds

    @property
    def wait_share(self) -> float:
        """The share of the epoch's training time spent waiting so far, 0..1."""
        return min(1.0, self.wait_seconds / max(self.train_seconds, 1e-9))

    def batch(self, losses: Mapping[str, float], images: int) -> None:
        """Count a batch with its `losses` by name, and refresh the progress line."""
        self.images += images
        self.batches += 1
        self.sums = {name: total + losses[name] for name, total in self.sums.items()}
        self.train_seconds = time.monotonic() - self.epoch_started
        means = {name: total / self.batches for name, total in self.sums.items()}
        self.bar.set_postfix_str(
            f"loss {sum(means.values()):.3f} ({' '.join(f'{name} {mean:.3f}' for name, mean in means.items())}) "
            f"{self.images / self.train_seconds:.0f} img/s, {100 * self.wait_share:.0f}% waiting, {_memory()}",
            refresh=False,
        )

    def validating(self, done: int, total: int) -> None:
        """Refresh the progress line during validation; in a log file as rarely as during training."""
        now = time.monotonic()
        due = now - self._refreshed >= self.interval or done == total
        self.bar.set_postfix_str(f"validating {done}/{total} images", refresh=due)
        self._refreshed = now if due else self._refreshed

    def validated(self, losses: Losses) -> None:
        """Keep the losses on the validation pictures for the epoch's row."""
        values = as_floats(losses)
        self.val_losses = dict(zip(VAL_LOSSES, (sum(values), *values), strict=True))

    def step(self) -> None:
        self.bar.update()

    def say(self, text: str) -> None:
        """A line that stays, above the progress line."""
        if not self.bar.disable:
            self.bar.write(text, file=sys.stderr)

    def warn(self, text: str) -> None:
        """A line about something wrong. The process that writes prints it in a quiet run, too."""
        if self.writes:
            tqdm.write(f"warning: {text}", file=sys.stderr)

    def end_epoch(self, step: int, lr: float, evaluation: Evaluation | None) -> dict[str, float]:
        """Write the epoch's row to metrics.csv and give it to the loggers; returns it."""
        n = max(self.batches, 1)
        row: dict[str, float] = {"epoch": self.epoch + 1, "step": step, "lr": lr, "loss": sum(self.sums.values()) / n}
        row |= {f"loss_{name}": total / n for name, total in self.sums.items()}
        row["images_per_s"] = self.images / max(self.train_seconds, 1e-9)
        if evaluation is not None:
            row |= {key: getattr(evaluation, key) for key in SCORES}
        row |= self.val_losses
        row["seconds"] = time.monotonic() - self.epoch_started
        row["data_wait"] = 100 * self.wait_share
        self.rows.append(row)
        if self.writes:
            named = {_by_split(key): value for key, value in row.items() if key not in ("epoch", "step")}
            for logger in self.loggers:
                logger.epoch(named, step)
            self._write()
        return row

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({k: int(v) if k in ("epoch", "step") else f"{v:.6g}" for k, v in row.items()})
        write_text(self.run / "metrics.csv", text.getvalue())

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.bar.close()
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        for logger in self.loggers:
            logger.close("finished" if kind is None else "interrupted" if stopped else "failed")


def _by_split(column: str) -> str:
    """`train/loss` for loss, `val/loss` for val_loss, `val/map` for map."""
    name = column.removeprefix("val_")
    return f"{'val' if column in SCORES or name != column else 'train'}/{name}"


def as_floats(losses: Iterable[torch.Tensor]) -> list[float]:
    """The terms of a batch as Python numbers, with a single copy from the device."""
    return torch.stack(list(losses)).detach().tolist()


def _memory() -> str:
    if torch.cuda.is_available():
        return f"GPU {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"RAM {peak / (2**30 if sys.platform == 'darwin' else 2**20):.1f} GiB"
