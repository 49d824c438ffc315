"""The proof on paper: `verify.json` for machines and one self-contained `verify.html` for people."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path

import cv2
import numpy as np

from export.verification import Score, Verification
from runtime.draw import draw_detections, sheet
from runtime.files import write_text
from runtime.image import read_image

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1300px; margin: 2rem auto; padding: 0 1rem; color: #222 }
pre { background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 13px } img { max-width: 100% }
.passed { color: #1a7f37 } .failed { color: #cf222e }
"""


def write_reports(verification: Verification, folder: Path, name: str = "verify") -> tuple[Path, Path]:
    """Write `<name>.json` and `<name>.html` into `folder`; returns both paths."""
    data = write_text(folder / f"{name}.json", json.dumps(verification.to_json(), indent=1, allow_nan=False))
    word = "passed" if verification.passed else "failed"
    reference = verification.reference
    parts = [
        f'<h1>Verification <span class="{word}">{word}</span></h1>',
        f"<p>{reference.evaluation.images} images of <code>{html.escape(str(verification.annotations))}</code>, COCO "
        "box metrics in points; every line was scored by the same evaluation on the same pixels. delta: mAP against "
        "the PyTorch model. drift: the largest distance between a box of the reference and the same box of the "
        "artifact, in pixels of the picture. ms: one frame at a time, letterbox to boxes.</p>",
        f"<pre>{html.escape(verification.table())}</pre>",
        "<h2>Side by side</h2>",
    ]
    for score in verification.artifacts:
        parts.append(
            f"<p>Left <b>{html.escape(reference.path.name)}</b>, right <b>{html.escape(score.path.name)}</b>.</p>"
        )
        parts.append(f'<img alt="detections side by side" src="data:image/jpeg;base64,{_pairs(verification, score)}">')
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>isodet: verification {word}</title>'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts)
    )
    return data, write_text(folder / f"{name}.html", page)


def _pairs(verification: Verification, score: Score, count: int = 4) -> str:
    """A sheet of pictures, twice each, as base64 JPEG."""
    left = verification.reference.evaluation.detections
    right = score.evaluation.detections
    records = [r for r in verification.dataset.records if r.id in left and r.id in right]
    cells = []
    for i in np.linspace(0, len(records) - 1, min(count, len(records))).astype(int):
        picture = read_image(records[i].path)
        for found in (left, right):
            cells.append(
                draw_detections(
                    picture, found[records[i].id].filter(threshold=verification.reference.evaluation.threshold)
                )
            )
    ok, encoded = cv2.imencode(".jpg", sheet(cells, 4, (320, 320)))
    assert ok
    return base64.b64encode(encoded.tobytes()).decode()
