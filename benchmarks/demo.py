"""`make demo`: the whole road once, by the commands that a user would type.

Data, training, ONNX, the proof that it scores what PyTorch scores, and boxes on a video it never saw. Each
command is shown before it runs; a command that fails ends the demo with its status. Everything is written
under runs/: the data in runs/demo-data (made anew each time, from a seed), the rest in runs/demo (runs/demo-2
where that exists, and so on).
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from trainer.recipes.digits_video import digits_video

DATA = Path("runs/demo-data")


class Demo:
    """Runs commands, and remembers how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        # The commands of the environment that this Python belongs to, whether or not it was activated.
        self.environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(self, stage: str, *command: str | Path) -> None:
        """Show the command, run it, keep its time under `stage`; exit with its status if that is not 0."""
        words = [str(word) for word in command]
        print(f"\n$ {shlex.join(words)}", flush=True)
        started = time.perf_counter()
        status = subprocess.run(words, env=self.environment).returncode
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
        if status:
            sys.exit(f"\nthe demo stopped: `{shlex.join(words)}` ended with status {status}")


def main() -> None:
    started, begun = time.perf_counter(), time.time()
    demo = Demo()
    if DATA.exists():
        print(f"removing {DATA} of an earlier demo")
        shutil.rmtree(DATA)
    demo.run("data", "trainer", "new", "digits", "--out", DATA)
    demo.run("training", "trainer", "fit", DATA / "digits.yaml", "name=demo")
    run = newest_run(begun)
    model = run / "best.onnx"
    demo.run("export", "exporter", "onnx", run / "best.pt", "--simplify")
    demo.run("verification", "exporter", "verify", model, "--against", run / "best.pt")
    print(f"\nmaking {run / 'digits.mp4'}: moving digits by writers that training never saw", flush=True)
    digits_video(run / "digits.mp4")
    demo.run("video", "runtime", "detect", run / "digits.mp4", "--model", model, "--out", run / "detections")
    write_sheet(model, run / "sheet.jpg")
    report(run, demo.seconds, time.perf_counter() - started)


def newest_run(since: float) -> Path:
    """The folder that `trainer fit name=demo` just wrote: runs/demo, or runs/demo-2 where that was taken."""
    written = [path for path in Path("runs").glob("demo*/best.pt") if path.stat().st_mtime >= since]
    if not written:
        sys.exit("the demo stopped: training left no runs/demo*/best.pt")
    return max(written, key=lambda path: path.stat().st_mtime).parent


def write_sheet(model: Path, out: Path) -> None:
    """Twelve validation pictures with the boxes that the ONNX file finds."""
    import cv2

    from runtime import Detector
    from runtime.images.draw import draw_detections, sheet
    from runtime.images.image import read_image

    frames = [read_image(path) for path in sorted((DATA / "val").glob("*.jpg"))[:12]]
    found = Detector(model)(frames)
    cells = [draw_detections(frame, detections) for frame, detections in zip(frames, found, strict=True)]
    if not cv2.imwrite(str(out), sheet(cells, columns=4, cell_hw=(320, 320))):
        sys.exit(f"the demo stopped: {out} could not be written")


def report(run: Path, seconds: dict[str, float], total: float) -> None:
    verification: dict[str, Any] = json.loads((run / "verify.json").read_text(encoding="utf-8"))
    print(f"\n{'':<22}{'mAP':>8}{'AP50':>8}{'difference':>13}{'ms/frame':>11}")
    for score in (verification["reference"], *verification["artifacts"]):
        delta = f"{score['delta_map']:+.3f}" if score["passed"] is not None else "reference"
        print(f"{score['engine']:<22}{score['map']:>8.2f}{score['ap50']:>8.2f}{delta:>13}{score['latency_ms']:>11.1f}")
    print(f"on {verification['images']} validation images; the same evaluation on the same pixels\n")
    for stage, spent in seconds.items():
        print(f"{stage:<22}{spent:>8.1f} s")
    print(f"{'in all':<22}{total:>8.1f} s\n")
    for path, what in (
        (run / "best.onnx", "the detector: runtime.Detector needs nothing else"),
        (run / "best.pt", "its checkpoint"),
        (run / "report.html", "training: curves, scores, pictures"),
        (run / "verify.html", "the proof, side by side"),
        (run / "sheet.jpg", "validation pictures with boxes"),
        (run / "detections" / "digits.mp4", "the video with boxes"),
        (DATA / "digits.yaml", "the recipe, to play with"),
    ):
        print(f"{path!s:<34}{what}{'' if path.exists() else '  (missing)'}")


if __name__ == "__main__":
    main()
