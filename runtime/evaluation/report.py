"""The report of `trainer eval` and `runtime eval`: one page, with the pictures and the numbers beside it."""

from __future__ import annotations

import html
import json
from pathlib import Path

from runtime.evaluation.coco_eval import EvaluationError
from runtime.evaluation.details import PROTOCOLS, Measurement, bucket_rows, class_rows, notes
from runtime.evaluation.evaluate import shown
from runtime.evaluation.plots import CONFUSION, CURVES, write_plots
from runtime.evaluation.worst import worst_images, worst_sheet
from runtime.files.html import image, table, write_page
from runtime.files.write import write_text
from runtime.images.image import write_image

WORST = "worst.jpg"


def write_report(measurement: Measurement, folder: Path, title: str, count: int = 12) -> Path:
    """Write report.html into `folder`, with curves.png, confusion.png, worst.jpg and metrics.json; returns the page.

    `title` names what was evaluated. `count`: how many of the worst images are shown.
    Raises `EvaluationError` where `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise EvaluationError.at(folder, "is a file, expected a folder for the report")
    plots = {path.name: path for path in write_plots(measurement, folder)}
    write_text(folder / "metrics.json", json.dumps(measurement.to_json(), indent=1, ensure_ascii=False) + "\n")
    e = measurement.evaluation
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{e.images} images of <code>{html.escape(str(measurement.dataset.annotations))}</code>, "
        f"{sum(s.objects for s in measurement.classes)} objects. "
        "AP in points; precision, recall and F1 in per cent.</p>",
    ]
    if e.skipped:
        first = html.escape(str(e.skipped[0][0]))
        parts.append(f"<p>{len(e.skipped)} unreadable images were left out, the first: {first}</p>")
    for note in filter(None, (e.nan_note(), e.cap_note())):
        parts.append(f"<p>{html.escape(note)}.</p>")
    head = ["COCO, all classes", "mAP", "AP50", "AP75", "small", "medium", "large", "AR100"]
    row = ["", *map(shown, (e.map, e.ap50, e.ap75, e.ap_small, e.ap_medium, e.ap_large, e.ar100))]
    if measurement.protocol != "coco":
        head.append(PROTOCOLS[measurement.protocol])
        row.append(shown(measurement.map))
    parts.append(table(head, [row]))
    parts += ["<h2>Classes</h2>", f"<p>{_threshold_text(measurement)}</p>", table(*class_rows(measurement.classes))]
    if measurement.buckets:
        head, rows = bucket_rows(measurement.buckets)
        parts += ["<h2>Sizes</h2>", "<p>By the root of the object's area.</p>", table(head, rows)]
    if CURVES in plots:
        parts += ["<h2>Precision and recall</h2>", image(plots[CURVES])]
    if CONFUSION in plots:
        parts += [
            "<h2>Confusion</h2>",
            "<p>At IoU 0.5, of detections above the threshold of their class. Rows are what is there, columns what was "
            "reported. Last column: objects that nothing was reported for. Last row: reports where no object is left, "
            "second boxes on one object among them.</p>",
            image(plots[CONFUSION]),
        ]
        if pairs := measurement.confusion.pairs():
            parts.append(table(["there", "reported as", "times"], pairs))
    (folder / WORST).unlink(missing_ok=True)
    wrong = worst_images(measurement)
    # Detections of another program are judged without pictures.
    drawn = [score for score in wrong if e.matches[score.index].record.path.is_file()][:count]
    if wrong and not drawn:
        parts.append("<p>The pictures are not there: no worst images are shown.</p>")
    if drawn:
        write_image(folder / WORST, worst_sheet(measurement, drawn))
        parts += [
            "<h2>Worst images</h2>",
            f"<p>{len(wrong)} of {e.images} images have a mistake; these have the lowest F1. Left what is true: green "
            "is found, orange missed, gray ignored. Right what was reported: green is right, red wrong.</p>",
            image(folder / WORST),
        ]
    return write_page(folder / "report.html", f"isodet: {title}", parts)


def _threshold_text(measurement: Measurement) -> str:
    wanted = "the best F1" if measurement.precision is None else f"a precision of {measurement.precision:g}"
    text = f"Thresholds are chosen for {wanted} at IoU 0.5; precision, recall and F1 are those at the threshold."
    return "<br>".join([text, *notes(measurement.classes)])
