"""`report.html`: a run on one page that needs no other file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.datasets.annotations import CocoDataset, reason_text
from runtime.evaluation.plots import CONFUSION, CURVES
from runtime.files.html import image, table, write_page
from trainer.config.train import TrainConfig, dump_config
from trainer.log.metrics import SCORES
from trainer.log.plots import metric_plots

_HEADS = ("mAP", "AP50", "AP75", "AP small", "AP medium", "AP large")  # of SCORES
MEASURED = (
    (CURVES, "Precision and recall, last epoch, IoU 0.5"),
    (CONFUSION, "Confusion, last epoch, at each class's threshold"),
)


SHOWN = 50
"""At most so many pictures that were left out are listed by name; the others are counted."""


def left_out(
    train: CocoDataset, val: CocoDataset, unusable: Sequence[Path], skipped: Sequence[tuple[Path, str]]
) -> list[str]:
    """Lines on the data that took no part in a run: annotations, and pictures that could not be used.

    unusable: training pictures. skipped: validation pictures and why.
    """
    lines = [
        f"{name} annotations: {reason_text(count, reason)}"
        for name, dataset in (("training", train), ("validation", val))
        for reason, count in dataset.problems.counts.items()
    ]
    pictures = [
        ("training", [str(path) for path in unusable]),
        ("validation", [f"{path}: {reason}" for path, reason in skipped]),
    ]
    for name, files in pictures:
        lines += [f"unreadable {name} picture: {file}" for file in files[:SHOWN]]
        if len(files) > SHOWN:
            lines.append(f"{len(files) - SHOWN} more unreadable {name} pictures")
    return lines


def write_report(
    run: Path,
    config: TrainConfig,
    rows: Sequence[dict[str, float]],
    per_class: Mapping[str, float] | None = None,
    left: Sequence[str] = (),
) -> Path:
    """Write the run's plots and `report.html`; returns the page's path. `left`: what `left_out` says."""
    plots = metric_plots(rows, run / "plots")
    validated = [r for r in rows if "map" in r]
    parts = [f"<h1>{html.escape(run.name)}</h1>"]
    if validated:
        best = max(validated, key=lambda r: r["map"])
        parts.append(
            f"<p>best.pt: <b>mAP {best['map']:.1f}</b>, AP50 {best['ap50']:.1f}, after epoch {best['epoch']:.0f} of "
            f"{config.schedule.epochs}; {sum(r['seconds'] for r in rows) / 60:.1f} minutes{_waited(rows)}.</p>"
        )
        parts.append(table(["epoch", *_HEADS], [[r["epoch"], *(r[s] for s in SCORES)] for r in validated]))
    if left:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in left)
        parts.append(f"<h2>Left out of the data, or changed</h2><ul>{items}</ul>")
    if per_class:
        parts.append("<h2>Per class</h2>" + table(["class", "AP"], [[k, v] for k, v in per_class.items()]))
    parts += map(image, plots)
    for name, text in MEASURED:
        if (run / "plots" / name).is_file():
            parts.append(f"<h2>{text}</h2>")
            parts.append(image(run / "plots" / name))
    sheet = run / "plots" / "validation.jpg"
    if sheet.is_file():
        parts.append("<h2>Validation pictures</h2><p>White: true boxes. Colored: found, with their scores.</p>")
        parts.append(image(sheet))
    parts.append(f"<h2>Configuration</h2><pre>{html.escape(dump_config(config))}</pre>")
    return write_page(run / "report.html", f"isodet: {run.name}", parts)


def _waited(rows: Sequence[dict[str, float]]) -> str:
    shares = [row["data_wait"] for row in rows if "data_wait" in row]
    return f", {sum(shares) / len(shares):.0f} % of the training in them waiting for pictures" if shares else ""
