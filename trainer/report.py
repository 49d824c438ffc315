"""`report.html`: a run on one page that needs no other file."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.files import write_text
from trainer.config import TrainConfig, dump_config
from trainer.pictures import metric_plots
from trainer.records import SCORES

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1000px; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } img { max-width: 100% }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 13px }
"""


_HEADS = ("mAP", "AP50", "AP75", "AP small", "AP medium", "AP large")  # of SCORES


def write_report(
    run: Path, config: TrainConfig, rows: Sequence[dict[str, float]], per_class: Mapping[str, float] | None = None
) -> Path:
    """Write the run's plots and `report.html`; returns the page's path."""
    plots = metric_plots(rows, run / "plots")
    validated = [r for r in rows if "map" in r]
    parts = [f"<h1>{html.escape(run.name)}</h1>"]
    if validated:
        best = max(validated, key=lambda r: r["map"])
        parts.append(
            f"<p>best.pt: <b>mAP {best['map']:.1f}</b>, AP50 {best['ap50']:.1f}, after epoch {best['epoch']:.0f} of "
            f"{config.schedule.epochs}; {sum(r['seconds'] for r in rows) / 60:.1f} minutes.</p>"
        )
        parts.append(_table(["epoch", *_HEADS], [[r["epoch"], *(r[s] for s in SCORES)] for r in validated]))
    if per_class:
        parts.append("<h2>Per class</h2>" + _table(["class", "AP"], [[k, v] for k, v in per_class.items()]))
    for path in plots:
        parts.append(_image(path))
    sheet = run / "plots" / "validation.jpg"
    if sheet.is_file():
        parts.append("<h2>Validation pictures</h2><p>White: true boxes. Coloured: found, with their scores.</p>")
        parts.append(_image(sheet))
    parts.append(f"<h2>Configuration</h2><pre>{html.escape(dump_config(config))}</pre>")
    title = html.escape(f"isodet: {run.name}")
    body = "\n".join(parts)
    return write_text(
        run / "report.html",
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>\n{body}',
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[float | str]]) -> str:
    def cell(value: float | str) -> str:
        if isinstance(value, str):
            return html.escape(value)
        return "-" if math.isnan(value) else f"{value:.0f}" if value == int(value) else f"{value:.1f}"

    header = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table><tr>{header}</tr>{lines}</table>"


def _image(path: Path) -> str:
    kind = "png" if path.suffix == ".png" else "jpeg"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(path.stem)}" src="data:image/{kind};base64,{data}"></p>'
