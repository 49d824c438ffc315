"""Which parts of a recipe pay on real photographs: a screening of many at once, and named recipes over seeds.

    python -m benchmarks.recipe --data FOLDER screen [--pictures 3000] [--resume]
    python -m benchmarks.recipe --data FOLDER compare base tood+dfl mosaic --seeds 0 1 2 [--pictures 6000]

FOLDER and its sets are as benchmarks/real_sets.py describes them. The base is the config that `trainer new` writes for
a set, with the batch and the learning rate that it wrote before this study (`START`). What it writes today is the
recipe lr4.

`screen` trains a Plackett-Burman design: 20 recipes on each set, in which each of the changes (19 at most) is on in
half of them and all pairs of changes are balanced. So each training tells of all changes, and each effect is as exact
as if all trainings had been spent on it alone. Which recipes these are differs from set to set, so that pairs of
changes that act together do not look like the same third one everywhere. The sets take turns, their recipes in random
order: what is there can be read at any time with --table. An effect is a coefficient of a linear model with a mean of
each set, in points of mAP; its error is from what the model leaves unexplained.

`compare` trains recipes by name, changes joined by +, and shows their mean difference to the first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.gpu.machine import processor
from benchmarks.real_sets import (
    RESULTS,
    SIZE,
    Results,
    SetsError,
    config_path,
    epochs_of,
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

FIRST_ROW = (1, 1, -1, -1, 1, 1, 1, 1, -1, 1, -1, 1, -1, -1, -1, -1, 1, 1, -1)
"""Plackett and Burman, The Design of Optimum Multifactorial Experiments, 1946: the design of 20 runs. 18 more rows are
its rotations, the last is all -1."""

START = {"batch_size": 8, "optim.lr": 0.0007}
"""0.001 for a batch of 16, by its square root."""

CHANGES: dict[str, tuple[str, ...]] = {
    "tood": ("model.detector=tood",),
    "dfl": ("model.box.code=dfl",),
    "batch4": ("batch_size=4", "optim.lr={lr}"),
    "backbone_lr": ("optim.backbone_lr=0.3",),
    "frozen": ("model.backbone.frozen_stages=1",),
    "mosaic": ("augment.mosaic.probability=0.5", "augment.mosaic.close_epochs={third}"),
    "mixup": ("augment.mixup.probability=0.3", "augment.mixup.close_epochs={third}"),
    "copy_paste": ("augment.copy_paste.probability=0.5",),
    "multi_scale": ("augment.multi_scale.probability=0.5",),
    "auxiliary": ("auxiliary.weight=0.25",),
    "no_ema": ("optim.ema=0",),
    "lr2": ("optim.lr={lr}",),
    "scale_always": ("augment.scale_probability=1.0",),
    "crop": ("augment.crop.probability=0.5",),
}
"""The changes of the screening: overrides of the config, with {third} of the epochs and the rate {lr} that the changes
together give: by the square root of the batch, and doubled."""

RATES = {"batch4": 0.5**0.5, "batch2": 0.5, "lr2": 2, "lr4": 4, "lr8": 8}
"""What changes multiply the learning rate by; a smaller batch by the square root of its size."""

MORE: dict[str, tuple[str, ...]] = {
    "base": (),
    "gfl": ("model.detector=gfl",),
    "gflv2": ("model.detector=gflv2",),
    "ddod": ("model.assign.kind=ddod", "model.quality=iou"),
    "fcos": ("model.detector=fcos",),
    "lr4": ("optim.lr={lr}",),
    "lr8": ("optim.lr={lr}",),
    "batch2": ("batch_size=2", "optim.lr={lr}"),
    "anchors3": ("model.anchors.size=3",),
    "anchors4": ("model.anchors.size=4",),
    "lite1": ("model.backbone.name=efficientnet_lite1",),
    "distill": ("distill.teacher={teacher}", "distill.region={region}"),
    "distill_features": ("distill.teacher={teacher}", "distill.logits=0", "distill.features=2"),
    "resnet18": ("model.backbone.name=resnet18", "model.backbone.weights=null", "optim.lr={lr_scratch}"),
    "repvgg": (
        "model.backbone.name=repvgg_a0", "model.backbone.weights=null", "model.head.block=repconv",
        "model.head.norm=bn", "optim.lr={lr_scratch}",
    ),
}  # fmt: skip
"""Further recipes for `compare`. {teacher}: what `TEACHER` made of the same set, seed and pictures, one size larger;
{region}: priors of which the student learns, a tenth, because inputs are small."""

TEACHER = ("lr4", "lite1")
"""Is trained by `compare lr4+lite1`, before a recipe that distills it."""


@dataclass(frozen=True)
class Training:
    """One training: a set, the changes to its config, a seed, and the pictures to see."""

    data_set: str
    changes: tuple[str, ...]
    seed: int
    pictures: int
    size: int = SIZE

    @property
    def name(self) -> str:
        return f"{'+'.join(self.changes) or 'base'}-{self.data_set}-seed{self.seed}-{self.pictures}"


def screening(sets: Iterable[str], pictures: int, size: int = SIZE) -> list[Training]:
    """The trainings of the design: the sets in turn, their recipes in an order that is random and always the same."""
    rotations = [np.roll(FIRST_ROW, shift) for shift in range(len(FIRST_ROW))]
    design = np.array([*rotations, -np.ones(len(FIRST_ROW), np.int64)])
    by_set = []
    for name in sets:
        rng = np.random.default_rng([ord(letter) for letter in name])
        flipped = (design * rng.choice((-1, 1), len(FIRST_ROW)))[:, : len(CHANGES)]
        recipes = [
            tuple(change for change, level in zip(CHANGES, levels, strict=True) if level > 0) for levels in flipped
        ]
        by_set.append([Training(name, recipes[row], int(row), pictures, size) for row in rng.permutation(len(recipes))])
    return [training for turn in zip(*by_set, strict=True) for training in turn]


def config_of(training: Training, out: Path) -> tuple[TrainConfig, int]:
    """The config of a training, and how many pictures it sees."""
    from trainer.config_reader import read_config

    path, changes = config_path(out, training.data_set, training.size), training.changes
    start = [f"{key}={value}" for key, value in START.items()]
    plain = read_config(path, start)
    values = {
        "third": -(-epochs_of(plain, training.pictures) // 3),
        "lr": f"{START['optim.lr'] * prod(RATES[change] for change in changes if change in RATES):.2g}",
        "lr_scratch": first_rate(plain, "resnet18", pretrained=False),
        "teacher": (out / "runs" / replace(training, changes=TEACHER).name / "best.pt").resolve(),
        "region": 0.1,
    }
    taught = any("{teacher}" in text for change in changes for text in {**CHANGES, **MORE}[change])
    if taught and not Path(str(values["teacher"])).is_file():
        raise SetsError.at(str(values["teacher"]), f"no such teacher yet: first compare {'+'.join(TEACHER)}")
    overrides = [f"name={training.name}", f"seed={training.seed}", *start]
    overrides += [text.format(**values) for change in changes for text in {**CHANGES, **MORE}[change]]
    config, pictures, _ = shown(path, overrides, training.pictures)
    return config, pictures


def train(training: Training, out: Path) -> dict[str, Any]:
    """Train and judge; the record of the results."""
    import torch

    from runtime import Detector
    from runtime.evaluation.evaluate import evaluate
    from trainer.data.datasets import val_data
    from trainer.loop import fit

    config, pictures = config_of(training, out)
    started = time.perf_counter()
    judged = evaluate(Detector(fit(config, out / "runs", quiet=True).best), val_data(config))
    return {
        **asdict(training), "backbone": config.model.backbone.name, "weights": config.model.backbone.weights,
        "seen": pictures, "map": judged.map, "ap50": judged.ap50, "ap75": judged.ap75,
        "seconds": round(time.perf_counter() - started, 1), "processor": processor(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def trained(training: Training, arguments: argparse.Namespace) -> dict[str, Any]:
    """`train` in a process of its own."""
    words = ["benchmarks.recipe", "--data", str(arguments.data), "--out", str(arguments.out)]
    threads = max(1, (os.cpu_count() or 1) // arguments.processes)
    return in_own_process(training.name, [*words, "one", json.dumps(asdict(training))], arguments.out, threads)


def key_of(record: dict[str, Any]) -> Training:
    """The training that a record is of."""
    return Training(
        record["data_set"], tuple(record["changes"]), record["seed"], record["pictures"], record.get("size", SIZE)
    )


def train_all(trainings: Sequence[Training], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train what has no record yet; all records."""
    results = Results(arguments.out, arguments.resume)
    there = {key_of(record) for record in results.records}
    missing = [training for training in trainings if training not in there]
    with ThreadPoolExecutor(arguments.processes) as pool:
        waiting = [pool.submit(trained, training, arguments) for training in missing]
        try:
            for number, future in enumerate(as_completed(waiting), start=1):
                record = future.result()
                results.add(f"{number} of {len(missing)}: {key_of(record).name}", record)
        finally:
            for future in waiting:
                future.cancel()
    return results.records


def screened(records: Sequence[dict[str, Any]], pictures: int, size: int) -> list[dict[str, Any]]:
    """The records that tell of the changes: all with no other ones, those of an older design, too."""
    kept = []
    for record in records:
        training = key_of(record)
        if (training.pictures, training.size) == (pictures, size) and CHANGES.keys() >= set(training.changes):
            kept.append(record)
    return kept


def effects(records: Sequence[dict[str, Any]], key: str = "map") -> list[tuple[str, float, float]]:
    """(change, effect in points, its standard error) by least squares with a mean of each set."""
    sets = sorted({record["data_set"] for record in records})
    columns = [[float(record["data_set"] == name) for name in sets] for record in records]
    levels = [[0.5 if change in record["changes"] else -0.5 for change in CHANGES] for record in records]
    matrix = np.hstack([np.array(columns), np.array(levels)])
    if len(records) <= matrix.shape[1]:
        raise SetsError.of("screen", f"{len(records)} trainings are too few for {matrix.shape[1]} unknowns; go on")
    values = np.array([record[key] for record in records])
    solution, _, rank, _ = np.linalg.lstsq(matrix, values, rcond=None)
    if rank < matrix.shape[1]:
        raise SetsError.of("screen", "the trainings so far do not tell all changes apart; go on with --resume")
    variance = float(np.sum((values - matrix @ solution) ** 2)) / (len(records) - matrix.shape[1])
    errors = np.sqrt(variance * np.diag(np.linalg.inv(matrix.T @ matrix)))
    first = len(sets)
    return [(name, float(solution[first + i]), float(errors[first + i])) for i, name in enumerate(CHANGES)]


def screening_table(records: Sequence[dict[str, Any]]) -> str:
    """The effects in Markdown, the largest first."""
    at_50 = {name: effect for name, effect, _ in effects(records, "ap50")}
    lines = ["| change | mAP | error | AP50 |", "|---|---|---|---|"]
    for name, effect, error in sorted(effects(records), key=lambda one: -one[1]):
        lines.append(f"| `{name}` | {effect:+.2f} | {error:.2f} | {at_50[name]:+.2f} |")
    return "\n".join(lines)


def comparison_table(records: Sequence[dict[str, Any]], recipes: Sequence[str], sets: Sequence[str]) -> str:
    """Each recipe's mAP on each set, and its mean difference to the first recipe over what both have."""
    lines = [
        f"| recipe | {' | '.join(sets)} | mean | difference | trainings |",
        f"|---|{'---|' * len(sets)}---|---|---|",
    ]
    by_recipe = {recipe: [r for r in records if r["changes"] == _changes(recipe)] for recipe in recipes}
    first = {(r["data_set"], r["seed"]): r["map"] for r in by_recipe[recipes[0]]}
    for recipe, found in by_recipe.items():
        cells = [_mean([r["map"] for r in found if r["data_set"] == name]) for name in sets]
        complete = all(cell is not None for cell in cells)
        mean = f"{statistics.mean(cell for cell in cells if cell is not None):.1f}" if complete else "-"
        differences = [r["map"] - first[r["data_set"], r["seed"]] for r in found if (r["data_set"], r["seed"]) in first]
        difference = f"{statistics.mean(differences):+.2f}" if differences and recipe != recipes[0] else "-"
        texts = ["-" if cell is None else f"{cell:.1f}" for cell in cells]
        lines.append(f"| {recipe} | {' | '.join([*texts, mean, difference])} | {len(found)} |")
    return "\n".join(lines)


def _changes(recipe: str) -> list[str]:
    changes = [change for change in recipe.split("+") if change != "base"]
    known = {**CHANGES, **MORE}
    if unknown := [change for change in changes if change not in known]:
        raise SetsError.of("compare", f"there is no change {unknown[0]!r}; there are {', '.join(known)}")
    return changes


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="sets of pictures")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="default: all of the folder")
    parser.add_argument("--size", type=int, default=SIZE, help="longest side of the input in pixels")
    parser.add_argument("--processes", type=int, default=2, help="trainings at a time, which share the cores")
    parser.add_argument("--out", type=Path, default=Path("runs/recipe"), help="results, configs and runs")
    parser.add_argument("--resume", action="store_true", help="go on with the results that are in --out")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    screen = commands.add_parser("screen", help="the effects of all changes at once")
    screen.add_argument("--pictures", type=int, default=3000, help="that a training sees, in whole epochs")
    compare = commands.add_parser("compare", help="recipes by name")
    compare.add_argument("recipes", nargs="+", metavar="RECIPE", help=f"of {', '.join({**CHANGES, **MORE})}")
    compare.add_argument("--pictures", type=int, default=6000, help="that a training sees, in whole epochs")
    compare.add_argument("--seeds", nargs="+", type=int, default=[0])
    one = commands.add_parser("one")
    one.add_argument("training")
    one.add_argument("result", type=Path)
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments)
    except (IsodetError, OSError) as error:
        print(f"recipe: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "one":
        values = json.loads(arguments.training)
        training = Training(**{**values, "changes": tuple(values["changes"])})
        arguments.result.write_text(json.dumps(train(training, arguments.out)), encoding="utf-8")
        return 0
    sets = sets_of(arguments.data, arguments.sets)
    names = arguments.sets or list(sets)
    recipes: list[str] = getattr(arguments, "recipes", [])
    if arguments.command == "screen":
        trainings = screening(names, arguments.pictures, arguments.size)
    else:
        trainings = [
            Training(name, tuple(_changes(recipe)), seed, arguments.pictures, arguments.size)
            for seed in arguments.seeds for recipe in recipes for name in names
        ]  # fmt: skip
    if arguments.table:
        records = read_results(arguments.out / RESULTS)
    else:
        for name in names:
            write_config(name, sets[name], arguments.out, arguments.size)
        records = train_all(trainings, arguments)
    records = [record for record in records if record["data_set"] in names]
    if recipes:
        wanted = set(trainings)
        print(comparison_table([record for record in records if key_of(record) in wanted], recipes, names))
    else:
        print(screening_table(screened(records, arguments.pictures, arguments.size)))
    return 0


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # `trainer new` writes the config of the machine that it sees
    sys.exit(main())
