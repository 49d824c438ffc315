"""mAP on sets of real photographs: isodet, torchvision's FCOS and RetinaNet, and ultralytics' yolo11n and yolo26n.

    python -m benchmarks.real_vs_peers --data FOLDER [--pictures 6000] [--seeds 0 1 2] [--sets bccd leaf] [--resume]

FOLDER holds sets of pictures, as benchmarks/real_sets.py describes. `trainer new` writes a config for each set, which
all rows take: the pictures and their size, the batch, and as many epochs as show about --pictures pictures.
torchvision's detectors (benchmarks/torchvision_peers.py) also get its backbone and weights, augmentation, optimizer,
rate, schedule and averaged weights. ultralytics, where it is installed, trains by its own defaults but for the
mirroring (benchmarks/ultralytics_peer.py): from scratch, and from its COCO weights where --yolo-weights names the
files. pycocotools judges all through `runtime.evaluation.evaluate`, by at most 100 detections a picture.

Everything runs on the CPU. Each training is a process of its own. Its result becomes a line of results.jsonl in --out
as soon as it is there. A run that was cut short goes on with --resume. At the end comes a table in Markdown; --table
prints it without training anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.machine import installed, processor
from benchmarks.real_sets import (
    RESULTS,
    SIZE,
    Results,
    config_path,
    first_rate,
    in_own_process,
    read_results,
    sets_of,
    shown,
    write_config,
)
from isodet.errors import IsodetError

if TYPE_CHECKING:
    from trainer.config.train import TrainConfig

PACKAGES = ("torch", "torchvision", "pycocotools", "ultralytics", "timm")


TORCHVISION = {"torchvision-fcos": "fcos", "torchvision-retinanet": "retinanet"}
YOLO = {"ultralytics-yolo11n": "yolo11n", "ultralytics-yolo26n": "yolo26n"}
YOLO_COCO = {f"{row}-coco": network for row, network in YOLO.items()}
"""From weights of COCO, in a file with the network's name."""
BACKBONES = {
    "isodet-lite0": ("efficientnet_lite0", ()),
    "isodet-edge": ("repvgg_a0", ("model.head.block=repconv", "model.head.norm=bn")),
}
"""isodet with another backbone than `trainer new` chooses, and what else is set."""
ROWS = ("isodet", *BACKBONES, *TORCHVISION, *YOLO, *YOLO_COCO)


@dataclass(frozen=True)
class Job:
    """One training: the row of the table on a set, with a seed and so many pictures to see."""

    row: str
    data_set: str
    seed: int
    pictures: int
    size: int = SIZE

    @property
    def name(self) -> str:
        return f"{self.row}-{self.data_set}-seed{self.seed}"


def why_not(row: str, yolo_weights: Sequence[Path], chosen: str) -> str:
    """Why a row is not trained here; "" where it is. chosen: the backbone that `trainer new` chose for the sets."""
    from models.backbones import published

    if row == "isodet-lite0":
        if chosen == BACKBONES[row][0]:
            return "`trainer new` chose its backbone, so it is the row isodet"
        weights = published(BACKBONES[row][0])
        return "" if weights is not None and weights.here else "its ImageNet weights are not installed"
    if network := (YOLO | YOLO_COCO).get(row):
        package = find_spec("ultralytics")
        if package is None or package.origin is None:
            return "ultralytics is not installed"
        models = Path(package.origin).parent / "cfg" / "models"
        if not any(models.rglob(f"{network.removesuffix('n')}.yaml")):  # n, the size, is not in the file's name
            return f"the installed ultralytics has no {network}"
        if row in YOLO_COCO and coco_weights(row, yolo_weights) is None:
            return f"no --yolo-weights {network}.pt"
    return ""


def coco_weights(row: str, yolo_weights: Sequence[Path]) -> Path | None:
    """The file among `yolo_weights` that `row` starts from; None for a row from scratch, and where it is missing."""
    return next((path for path in yolo_weights if path.stem == YOLO_COCO.get(row)), None)


def config_of(job: Job, out: Path) -> tuple[TrainConfig, int]:
    """The config of one training, and how many pictures it sees."""
    from models.backbones import published
    from trainer.config_reader import read_config

    path = config_path(out, job.data_set, job.size)
    overrides = [f"name={job.name}", f"seed={job.seed}"]
    if job.row in BACKBONES:
        backbone, more = BACKBONES[job.row]
        weights = published(backbone)
        pretrained = weights is not None and weights.here
        overrides += [
            f"model.backbone.name={backbone}",
            f"model.backbone.weights={'imagenet' if pretrained else 'null'}",
            f"optim.lr={first_rate(read_config(path), backbone, pretrained)}",
            *more,
        ]
    config, pictures, steps = shown(path, overrides, job.pictures)
    ema = 0.999 if steps >= 10_000 else 0.99  # as `trainer new` chooses it
    return replace(config, optim=replace(config.optim, ema=ema)), pictures


def train(job: Job, out: Path, yolo_weights: Sequence[Path] = ()) -> dict[str, Any]:
    """Train one row on one set and judge it; the record of the results."""
    import torch

    from runtime import Detector
    from runtime.evaluation.evaluate import evaluate
    from trainer.data.datasets import val_data
    from trainer.loop import fit

    config, pictures = config_of(job, out)
    backbone = config.model.backbone
    start = f"{backbone.name}, {'ImageNet' if backbone.weights else 'from scratch'}"
    started = time.perf_counter()
    if job.row in TORCHVISION:
        from benchmarks.torchvision_peers import train_torchvision

        weights = out / "weights" / f"{job.name}.pth"
        weights.parent.mkdir(parents=True, exist_ok=True)
        judged = train_torchvision(TORCHVISION[job.row], config, weights, lambda done, total: None)
    elif network := (YOLO | YOLO_COCO).get(job.row):
        from benchmarks.ultralytics_peer import train_yolo

        coco = coco_weights(job.row, yolo_weights)
        assert (coco is not None) == (job.row in YOLO_COCO), "refused before"
        start = f"{network}, {'from scratch' if coco is None else 'COCO'}"
        judged = train_yolo(network, config, out / "ultralytics" / job.data_set, coco)
    else:
        judged = evaluate(Detector(fit(config, out / "runs", quiet=True).best), val_data(config))
    versions = {"isodet": installed("isodet"), **{name: installed(name) for name in PACKAGES}}
    return {
        **asdict(job), "start": start, "seen": pictures, "map": judged.map, "ap50": judged.ap50, "ap75": judged.ap75,
        "seconds": round(time.perf_counter() - started, 1), "processor": processor(),
        "threads": torch.get_num_threads(), "python": platform.python_version(),
        "versions": {name: version for name, version in versions.items() if version},
    }  # fmt: skip


def trained(job: Job, arguments: argparse.Namespace) -> dict[str, Any]:
    """`train` in a process of its own."""
    words = ["benchmarks.real_vs_peers", "--data", str(arguments.data), "--out", str(arguments.out)]
    words += ["--yolo-weights", *map(str, arguments.yolo_weights)] if arguments.yolo_weights else []
    return in_own_process(job.name, [*words, "--one", json.dumps(asdict(job))], arguments.out, arguments.threads)


def is_of(record: dict[str, Any], job: Job) -> bool:
    """Whether `record` is the result of `job`."""
    return {key: record.get(key) for key in asdict(job)} == asdict(job)


def markdown(records: Sequence[dict[str, Any]], rows: Sequence[str], sets: Sequence[str]) -> str:
    """The table: mAP of each row on each set, averaged over seeds, and the means over all sets."""
    lines = [
        f"| training | start | {' | '.join(sets)} | mean mAP | mean AP50 | minutes |",
        f"|---|---|{'---|' * len(sets)}---|---|---|",
    ]
    for row in rows:
        of_row = [record for record in records if record["row"] == row]
        if not of_row:
            continue
        of_sets = [[record for record in of_row if record["data_set"] == name] for name in sets]
        cells = [_points(of_set, "map") for of_set in of_sets]
        means = ["-", "-"]  # a mean over fewer sets than the other rows have cannot be compared with theirs
        if all(of_sets):
            means = [f"{statistics.mean(_mean(of_set, key) for of_set in of_sets):.1f}" for key in ("map", "ap50")]
        starts = "; ".join(dict.fromkeys(record["start"] for record in of_row))
        minutes = statistics.mean(record["seconds"] for record in of_row) / 60
        lines.append(f"| {row} | {starts} | {' | '.join([*cells, *means])} | {minutes:.1f} |")
    seen = {record["data_set"]: record["seen"] for record in records}
    lines.append("")
    lines.append(f"Pictures seen: {', '.join(f'{name} {seen[name]}' for name in sets if name in seen)}.")
    for place in dict.fromkeys(_place(record) for record in records):
        lines.append(place)
    return "\n".join(lines)


def _mean(records: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.mean(record[key] for record in records)


def _points(records: Sequence[dict[str, Any]], key: str) -> str:
    """The mean over seeds, and the range of several; - for none."""
    if not records:
        return "-"
    values = [record[key] for record in records]
    span = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{_mean(records, key):.1f}{span}"


def _place(record: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    threads = f"{record['threads']} thread{'s' if record['threads'] > 1 else ''}"
    return f"Processor: {record['processor']}, {threads}. Python {record['python']}, {versions}."


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="sets of pictures")
    parser.add_argument("--pictures", type=int, default=6000, help="pictures that a training sees, in whole epochs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="default: all of the folder")
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=ROWS, help=f"default: all of {', '.join(ROWS)}")
    parser.add_argument("--size", type=int, default=SIZE, help="longest side of the input in pixels")
    parser.add_argument("--yolo-weights", nargs="+", type=Path, default=[], metavar="FILE",
                        help="COCO weights of ultralytics: yolo11n.pt, yolo26n.pt")  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each training")
    parser.add_argument("--out", type=Path, default=Path("runs/real_vs_peers"), help="results and configs")
    parser.add_argument("--resume", action="store_true", help="go on with the results that are in --out")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments)
    except (IsodetError, OSError) as error:
        print(f"real_vs_peers: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    from trainer.config_reader import read_config

    out: Path = arguments.out
    if arguments.one:
        text, result = arguments.one
        Path(result).write_text(json.dumps(train(Job(**json.loads(text)), out, arguments.yolo_weights)))
        return 0
    sets = sets_of(arguments.data, arguments.sets)
    names = arguments.sets or list(sets)
    rows = arguments.only or list(ROWS)
    jobs = [
        Job(row, name, seed, arguments.pictures, arguments.size)
        for seed in arguments.seeds
        for name in names
        for row in rows
    ]
    if arguments.table:
        records = read_results(out / RESULTS)
    else:
        results = Results(out, arguments.resume)
        records = results.records
        configs = [write_config(name, sets[name], out, arguments.size) for name in names]
        chosen = read_config(configs[0]).model.backbone.name  # it depends on the machine, and not on the set
        for row in rows:
            if reason := why_not(row, arguments.yolo_weights, chosen):
                print(f"{row} is left out: {reason}")
                jobs = [job for job in jobs if job.row != row]
        for job in jobs:
            if not any(is_of(record, job) for record in records):
                results.add(job.name, trained(job, arguments))
    print(markdown([record for record in records if any(is_of(record, job) for job in jobs)], rows, names))
    return 0


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # `trainer new` writes the config of the machine that it sees
    sys.exit(main())
