"""Time and memory of reading the annotations of many pictures.

    python benchmarks/read_coco.py [--images 100000] [--boxes 7] [--classes 80] [--polygons 24] [--keep FOLDER]

Writes a COCO file of made-up annotations, of --boxes objects in a picture on average (as COCO itself: 118,287 pictures,
860,001 objects), each with a polygon of --polygons points, which is what makes such files large, and an empty file for
every picture, because a reader that is asked to looks for them. Then `runtime.read_coco` reads it in a process of its
own: seconds, the peak of resident memory, and what of both is Python's `json` alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

WAYS = {
    "json.loads alone": "json.loads(pathlib.Path(file).read_bytes())",
    "read_coco, pictures not looked for": "read_coco(file, folder, check_files=False)",
    "read_coco": "read_coco(file, folder)",
    "read_dataset and fingerprint, as trainer fit": "fingerprint(read_dataset(file, folder))",
}


def write(folder: Path, images: int, boxes: int, classes: int, points: int) -> tuple[Path, int]:
    """The annotation file in `folder`, with `folder/images`; and how many objects it has."""
    rng = np.random.default_rng(0)
    pictures = folder / "images"
    pictures.mkdir(parents=True)
    rows, number = [], 0
    for image, count in enumerate(rng.poisson(boxes, images).tolist()):
        (pictures / f"{image:012d}.jpg").touch()
        corners = rng.uniform(0, (400, 300), (count, 2))
        sides = rng.uniform(4, 240, (count, 2))
        outlines = rng.random((count, points, 2))
        for corner, side, outline in zip(corners, sides, outlines, strict=True):
            number += 1
            polygon = np.round(corner + outline * side, 2).reshape(-1).tolist()
            rows.append(
                {
                    "segmentation": [polygon], "area": round(float(side.prod()) * 0.6, 4),
                    "iscrowd": int(number % 80 == 0), "image_id": image,
                    "bbox": np.round((*corner, *side), 2).tolist(), "category_id": number % classes + 1, "id": number,
                }
            )  # fmt: skip
    listed = [{"file_name": f"{i:012d}.jpg", "height": 540, "width": 640, "id": i} for i in range(images)]
    categories = [{"id": i + 1, "name": f"class {i + 1}"} for i in range(classes)]
    file = folder / "annotations.json"
    file.write_text(json.dumps({"images": listed, "annotations": rows, "categories": categories}))
    return file, number


def measure(way: str, file: Path, folder: Path) -> tuple[float, float, float]:
    """In a new process: seconds that passed, seconds of a core, and MiB at the peak beyond what the imports take."""
    code = (
        "import json, pathlib, time\n"
        "from runtime.datasets.coco import read_coco\nfrom runtime.datasets import fingerprint, read_dataset\n"
        f"file, folder = {str(file)!r}, {str(folder)!r}\n"
        # Not getrusage: its peak outlives exec, and would be that of this process.
        "peak = lambda: int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        f"before, wall, cpu = peak(), time.perf_counter(), time.process_time()\nkept = {WAYS[way]}\n"
        "print(time.perf_counter() - wall, time.process_time() - cpu, peak() - before)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    wall, cpu, kib = map(float, said.split())
    return wall, cpu, kib / 1024


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=7, help="objects in a picture, on average")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--polygons", type=int, default=24, help="points of each object's polygon")
    parser.add_argument("--keep", type=Path, help="a new folder to leave the files in")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        start = time.perf_counter()
        file, objects = write(
            arguments.keep or Path(temporary) / "data",
            arguments.images, arguments.boxes, arguments.classes, arguments.polygons,
        )  # fmt: skip
        size, took = file.stat().st_size / 2**20, time.perf_counter() - start
        print(f"{arguments.images} images, {objects} objects, {size:.0f} MiB of JSON, written in {took:.0f} s\n")
        print("| | seconds | of a core | peak, MiB |\n|---|---|---|---|")
        for way in WAYS:
            wall, cpu, memory = measure(way, file, file.parent / "images")
            print(f"| {way} | {wall:.1f} | {cpu:.1f} | {memory:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
