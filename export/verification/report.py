"""Reports of a verification: a JSON file for machines and one self-contained HTML page for people."""

from __future__ import annotations

import html
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from export.card_paths import private_folders, without_paths
from export.verification.bisect import Bisection
from export.verification.changed_images import changed_sheet, most_changed
from export.verification.scores import Score, Verification
from export.verification.verify import VerifyError
from runtime.files.html import image, table, write_page
from runtime.files.write import write_text
from runtime.images.image import write_image

_STYLE = """<style>
body { max-width: 1500px } td, th { padding: .2rem .55rem; white-space: nowrap; font-size: 13.5px }
td:nth-child(2), td:nth-child(3), td:last-child, th:nth-child(2), th:nth-child(3), th:last-child { text-align: left }
.wide td:last-child { white-space: normal; min-width: 14rem } .wide { overflow-x: auto }
.passed { color: #1a7f37 } .failed { color: #cf222e } .not-scored { color: #9a6700 }
</style>"""


def check_folder(folder: Path) -> None:
    """Raise `VerifyError` unless a report can be written into `folder`, which is created if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"room for a report")
            file.flush()
    except OSError as error:
        raise VerifyError.at(
            folder, f"no report can be written here: {error.strerror}; name another folder with --report"
        ) from None


def write_reports(
    verification: Verification, folder: Path, name: str = "verify", bisections: Sequence[Bisection] = ()
) -> tuple[Path, Path]:
    """Write `<name>.json`, `<name>.html` and a picture `<name>.<artifact>.<backend>.jpg` for each score whose
    detections moved. Returns the paths of the first two.

    Reports are handed on with the artifact, so they contain names of files and the hash of the annotations, no folders.
    """
    verdict = verification.verdict
    reference = verification.reference
    known = private_folders(folder, verification.annotations.parent, *(s.path.parent for s in verification.artifacts))
    head, rows = without_paths(verification.rows(), known)
    parts = [
        _STYLE,
        f'<h1>Verification: <span class="{verdict.replace(" ", "-")}">{verdict}</span></h1>',
        f"<p>{reference.evaluation.images} images of <code>{html.escape(verification.annotations.name)}</code>; every "
        "line was scored by the same evaluation on the same pixels.</p>",
        f'<div class="wide">{table(head, rows)}</div>',
        *(f"<p>{html.escape(line)}</p>" for line in without_paths(verification.remarks(), known)),
        "<p>mAP to APl: COCO's box metrics in points. delta: mAP against the PyTorch model. Of boxes "
        f"with a score of at least {reference.evaluation.threshold:.2f}, the reference's best threshold: drift px is "
        "the largest distance between one of the reference and the same of the artifact, in pixels of the picture; "
        "lost are those that the artifact has not at any score, new those that only the artifact has. ms: one frame at "
        "a time, letterbox to boxes.</p>",
    ]
    for bisection in bisections:
        parts += ["<h2>Where it departs</h2>", f"<pre>{html.escape(without_paths(bisection.text(), known))}</pre>"]
    for score in verification.artifacts:
        parts += _side_by_side(verification, score, folder, name)
    content = {**verification.to_json(), "bisections": [bisection.to_json() for bisection in bisections]}
    data = without_paths(content, known)
    written = write_text(folder / f"{name}.json", json.dumps(data, indent=1, allow_nan=False))
    return written, write_page(folder / f"{name}.html", f"isodet: verification {verdict}", parts)


def _side_by_side(verification: Verification, score: Score, folder: Path, name: str) -> list[str]:
    """The images that moved most: a table and pictures, which are also written as a file."""
    backend = f"{score.engine.partition(' ')[0]}-{score.device}"
    parts = [f"<h2>{html.escape(score.path.name)} on {html.escape(f'{score.engine} {score.device}')}</h2>"]
    path = folder / f"{name}.{score.path.stem}.{re.sub('[^a-z0-9]+', '-', backend.lower())}.jpg"
    pictures = changed_sheet(verification, score)
    path.unlink(missing_ok=True)
    if pictures is None:
        return [*parts, "<p>There is no picture to show.</p>"]
    write_image(path, pictures)
    names = {record.id: record.path.name for record in verification.dataset.records}
    rows = [
        [names[i.image_id], f"{i.moved:.3f}", str(i.boxes), str(i.unmatched), str(i.extra), f"{i.box_max_px:.3f}",
         f"{i.score_max:.4f}"]
        for i in most_changed(score)
    ]  # fmt: skip
    return [
        *parts,
        "<p>The images that moved most. moved counts objects: a lost or new one with its score, a pair with its score "
        "times 1 - IoU and the difference of the scores.</p>",
        table(["image", "moved", "boxes", "lost", "new", "drift px", "score difference"], rows),
        f"<p>Left <b>{html.escape(verification.reference.path.name)}</b>, right <b>{html.escape(score.path.name)}</b>. "
        "Green: both have it. Orange: lost. Red: new.</p>",
        image(path),
    ]
