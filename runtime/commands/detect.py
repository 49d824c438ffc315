"""`runtime detect`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from runtime.commands.arguments import flag
from runtime.commands.detect_run import DetectOptions, DetectSummary, detect
from runtime.commands.shared import MODELS, Quiet, chosen, updates


@dataclass(frozen=True, kw_only=True)
class Detect(DetectOptions, Quiet):
    """Detect in pictures, folders, videos, webcams or URLs.

    Writes annotated pictures or an annotated video, and JSON lines. Several sources go through the model together and
    have outputs of their own.

    source: picture, folder or quoted glob of pictures, video file, webcam number, or URL (rtsp://, http://)
    model: an .onnx, .engine or .pt file (default: the newest runs/*/best.onnx, else best.pt)

    examples:
      runtime detect street.jpg
      runtime detect photos/ --model best.onnx --out found
      runtime detect 'photos/**/*.jpg' --classes car,person --no-save --json found.jsonl
      runtime detect 0 --show                          the first webcam, in a window; q ends
      runtime detect aerial/ --tiles auto              small objects in large pictures, tile by tile
      runtime detect clip.mp4 --track                  objects keep their number from frame to frame
      runtime detect rtsp://10.0.0.1/1 rtsp://10.0.0.2/1 --every 5

    Webcams and URLs without an end keep their newest frame, and are connected again when they go; of files, every
    frame comes. Ctrl-C, SIGTERM and SIGHUP end with the outputs complete up to there; a second one ends at once,
    without. Exit status 1 also where one of several sources failed; the others' outputs are written.

    a JSON line: {"source": ..., "frame": 0, "time_s": 0.0,
                  "detections": [{"box_xyxy": [x1, y1, x2, y2], "score": 0.9, "label": 0, "name": ...}]}
    with --track each detection also has "track": a number, or null
    """

    source: Annotated[tuple[str, ...], flag("source")]
    model: Path | None = None

    def run(self) -> int:
        model = chosen(self.model, *MODELS)
        with tqdm(unit=" frames", disable=self.quiet) as bar, logging_redirect_tqdm():
            summary = detect(self.source, model, self, updates(bar))
        return _conclude(summary)


def _conclude(summary: DetectSummary) -> int:
    """Print the results and where they lie; returns the exit status."""
    for path, reason in summary.skipped:
        print(f"warning: {path}: {reason} (skipped)", file=sys.stderr)
    for path, reason in summary.unwritten:
        print(f"warning: {path}: not written: {reason}", file=sys.stderr)
    skipped = f", {len(summary.skipped)} unreadable pictures skipped" if summary.skipped else ""
    ended = " (interrupted)" if summary.interrupted else ""
    fps = f", {summary.frames / summary.seconds:.1f} frames/s" if summary.seconds > 0 else ""
    print(f"{summary.detections} detections in {summary.frames} frames{skipped}{fps}{ended}")
    if len(summary.sources) > 1:
        for source in summary.sources:
            dropped = f", {source.state.dropped} dropped" if source.state.dropped else ""
            print(f"  {source.source}: {source.detections} detections in {source.frames} frames{dropped}")
    written = [path for source in summary.sources if source.frames for path in (source.pictures, source.json_lines)]
    for name in dict.fromkeys(str(path) for path in written if path is not None):
        print(f"wrote {name}")
    failed = [source for source in summary.sources if source.state.state == "failed"]
    for source in failed:
        print(f"error: after {source.frames} frames: {source.state.error}", file=sys.stderr)
    return 1 if failed else 0
