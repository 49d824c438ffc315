"""mAP from scratch on the digits set: isodet, torchvision's FCOS and RetinaNet, and ultralytics' yolo11n.

    python -m benchmarks.digits_vs_peers [--images 1000] [--epochs 20] [--seeds 0 1 2] [--jobs 2]

Everyone gets the same pictures, size and number of epochs, and is judged by pycocotools through
`runtime.evaluation.evaluate`. torchvision's detectors (benchmarks/torchvision_peers.py: the same backbone and widths,
sizes and ranges for 320 px) also get isodet's augmentation, optimizer, schedule, precision and averaged weights, and
every learning rate of --rates on the first seed; the best one is then trained on the others. ultralytics, where it is
installed, trains with its own defaults but for the mirroring, which makes another symbol of a digit. The same script
tells what single choices of the recipe are worth (--ablation), and bfloat16 against float32.

Each training is a process of its own with --threads threads, --jobs of them at a time; finished ones stay in --out, so
that a run that was stopped goes on where it stood. --table prints what is there without training anything.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ISODET = {
    "isodet-atss": ("digits.yaml", ()),
    "isodet-fcos": ("digits-fcos.yaml", ()),
    "isodet-retinanet": ("digits-retinanet.yaml", ()),
    "isodet-atss-float32": ("digits.yaml", ("amp=off",)),
}
TORCHVISION = {"torchvision-fcos": "fcos", "torchvision-retinanet": "retinanet"}
YOLO = "ultralytics-yolo11n"
ABLATION = {
    "without averaged weights (EMA)": ("optim.ema=0",),
    "without augmentation": ("augment.scale_probability=0",),
    "auxiliary head": ("auxiliary.weight=0.25",),
    "no quality branch": ("model.quality=none",),
    "mosaic, last 4 epochs without": ("augment.mosaic.probability=0.5", "augment.mosaic.close_epochs=4"),
    "copy-paste": ("augment.copy_paste.probability=0.5",),
    "SGD 0.01": ("optim.kind=sgd", "optim.lr=0.01", "optim.weight_decay=0.0001"),
    "photometric distortion": ("augment.distort.probability=0.5",),
    "scaling every picture": ("augment.scale_probability=1",),
    "head norm gn": ("model.head.norm=gn",),
    "AdamW, half the rate": ("optim.lr=0.001",),
}


@dataclass(frozen=True)
class Job:
    """One training."""

    name: str
    seed: int
    rate: float | None = None
    """torchvision: the learning rate that is tried."""

    def path(self, out: Path) -> Path:
        name = "".join(c if c.isalnum() else "-" for c in self.name)
        return out / f"{name}{'' if self.rate is None else f'-{self.rate:g}'}-seed{self.seed}.json"


def train(job: Job, out: Path, epochs: int) -> dict[str, Any]:
    """Train and judge; runs in a process of its own."""
    from runtime import Detector
    from runtime.evaluation.evaluate import evaluate
    from trainer.config_reader import read_config
    from trainer.data.datasets import val_data
    from trainer.loop import fit

    recipe, overrides = ISODET.get(job.name, ("digits.yaml", ABLATION.get(job.name, ())))
    name = job.path(out).stem
    config = read_config(out / "data" / recipe, [
        f"name={name}", f"seed={job.seed}", f"schedule.epochs={epochs}", f"val_interval={epochs}", *overrides,
        *([f"optim.lr={job.rate}"] if job.rate is not None else []),
    ])  # fmt: skip
    data = val_data(config)
    started = time.perf_counter()
    if job.name in TORCHVISION:
        from benchmarks.torchvision_peers import train_torchvision

        judged = train_torchvision(TORCHVISION[job.name], config, out / f"{name}.pth", _show)
    elif job.name == YOLO:
        from benchmarks.ultralytics_peer import train_yolo

        judged = train_yolo("yolo11n", config, out)
    else:
        judged = evaluate(Detector(fit(config, out / "runs", quiet=True).best), data)
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"name": job.name, "seed": job.seed, "rate": job.rate, "map": judged.map, "ap50": judged.ap50,
            "ap75": judged.ap75, "seconds": seconds, "peak_gib": memory}  # fmt: skip


def _show(done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        print(f"step {done} of {total}", file=sys.stderr, flush=True)


def run(jobs: Sequence[Job], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what is not there yet, `arguments.jobs` at a time, and give all results."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}

    def one(job: Job) -> dict[str, Any]:
        path = job.path(arguments.out)
        if not path.exists():
            words = [
                sys.executable, "-m", "benchmarks.digits_vs_peers", "--out", str(arguments.out),
                "--epochs", str(arguments.epochs),
                "--one", job.name, str(job.seed), "" if job.rate is None else str(job.rate),
            ]  # fmt: skip
            with open(path.with_suffix(".log"), "w") as log:
                status = subprocess.run(words, env=environment, stdout=log, stderr=log).returncode
            if status:
                sys.exit(f"{job.name}, seed {job.seed} ended with status {status}: see {path.with_suffix('.log')}")
        result: dict[str, Any] = json.loads(path.read_text())
        rate = "" if job.rate is None else f"rate {job.rate:g} "
        print(f"{job.name:<40} {rate}seed {job.seed}  mAP {result['map']:.2f}  AP50 {result['ap50']:.2f}  "
              f"{result['seconds'] / 60:.1f} min  {result['peak_gib']:.1f} GiB", flush=True)  # fmt: skip
        return result

    with ThreadPoolExecutor(arguments.jobs) as pool:
        return list(pool.map(one, jobs))


def table(out: Path) -> None:
    """What is in `out`, best learning rate first: means over seeds."""
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*-seed*.json"))]
    groups: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["name"], result["rate"]), []).append(result)
    print(f"\n{'training':<42}{'rate':>8}{'seeds':>7}{'mAP':>8}{'min..max':>15}{'AP50':>8}{'minutes':>9}{'GiB':>6}")
    for (name, rate), found in sorted(groups.items(), key=lambda item: (item[0][0], -_mean(item[1], "map"))):
        maps = [one["map"] for one in found]
        span = f"{min(maps):.2f}..{max(maps):.2f}"
        print(f"{name:<42}{'' if rate is None else f'{rate:g}':>8}{len(found):>7}{_mean(found, 'map'):>8.2f}{span:>15}"
              f"{_mean(found, 'ap50'):>8.2f}{_mean(found, 'seconds') / 60:>9.1f}"
              f"{max(one['peak_gib'] for one in found):>6.1f}")  # fmt: skip


def _mean(results: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.mean(result[key] for result in results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="training pictures; 200 validate")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=[5e-4, 1e-3, 2e-3, 4e-3])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[*ISODET, *TORCHVISION, YOLO],
                        help="default: all that is installed")  # fmt: skip
    parser.add_argument("--ablation", action="store_true", help="train the single changes of the recipe, too")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=max((os.cpu_count() or 2), 1), help="of each training")
    parser.add_argument("--out", type=Path, default=Path("runs/digits_vs_peers"), help="finished trainings are kept")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    out: Path = arguments.out
    if arguments.one:
        name, seed, rate = arguments.one
        job = Job(name, int(seed), float(rate) if rate else None)
        result = train(job, out, arguments.epochs)
        job.path(out).write_text(json.dumps(result, indent=1))
        return 0
    if not arguments.table:
        if not (out / "data").exists():
            from trainer.recipes.digits import make_digits

            make_digits(out / "data", train_images=arguments.images)
        names = arguments.only or [*ISODET, *TORCHVISION, *([YOLO] if find_spec("ultralytics") else [])]
        plain = [Job(name, seed) for name in names if name not in TORCHVISION for seed in arguments.seeds]
        if arguments.ablation:
            plain += [Job(name, arguments.seeds[0]) for name in ABLATION]
        tried = [name for name in names if name in TORCHVISION]
        first = run([Job(name, arguments.seeds[0], rate) for name in tried for rate in arguments.rates], arguments)
        for name in tried:
            best = max((one for one in first if one["name"] == name), key=lambda one: one["map"])
            plain += [Job(name, seed, best["rate"]) for seed in arguments.seeds[1:]]
        run(plain, arguments)
    table(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
