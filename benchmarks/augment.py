"""Images per second of the training set with each augmentation, and its operations against torchvision's.

    python benchmarks/augment.py [--images 48] [--size 640] [--rounds 3]

First table: `TrainSet` on one core, from JPEG files of the digits recipe (640 x 480) to inputs of --size, with one
augmentation at a time that always happens, in its default ranges; everything else is off. Second table: single
operations on the same picture of --size with its boxes, ours (uint8 BGR arrays) and torchvision.transforms.v2 (uint8
RGB tensors, one thread). Contestants take turns, round after round; the tables show medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision
from torchvision import tv_tensors
from torchvision.transforms import v2

from isodet.strict import build
from runtime.datasets.coco import CocoDataset, read_coco
from runtime.images.image import FixedSize
from trainer.augment import color, jitter_color, random_placement
from trainer.augment.crop import random_crop
from trainer.augment.degrade import blur, jpeg, noise
from trainer.augment.geometry import Picture, affine, flip_horizontal
from trainer.augment.policy import affine_matrix
from trainer.check.augment import alone
from trainer.config.augment import AugmentConfig
from trainer.config.augment_sections import BlurConfig, CropConfig, JpegConfig, NoiseConfig
from trainer.data.train_set import TrainSet
from trainer.recipes import make_digits

OWN = ("flip", "flip_vertical", "scale", "color", "copy_paste", "hard_negatives", "trivial", "auto", "crop", "mosaic",
       "distort", "blur", "noise", "jpeg", "mixup")  # fmt: skip


def train_sets(dataset: CocoDataset, size: int) -> dict[str, TrainSet]:
    """No augmentation, each alone, today's defaults, and one usual combination."""
    negatives = dataset.images_dir.parent / "negatives.json"
    rows = [
        {"image_id": r.id, "file_name": r.path.name, "bbox": [40, 40, 60, 60], "score": 0.5, "class": "0"}
        for r in dataset.records
    ]
    content = {"isodet": "hard negatives", "format": 1, "images": dataset.images_dir.name, "negatives": rows}
    negatives.write_text(json.dumps(content))
    base = build(AugmentConfig, {"hard_negatives": {"file": str(negatives), "empty_only": False},
                                 "copy_paste": {"margin": 0}})  # fmt: skip
    poisson = build(AugmentConfig, {"copy_paste": {"blend": "poisson"}})
    usual = build(AugmentConfig, {"mosaic": {"probability": 0.5}, "copy_paste": {"probability": 0.3},
                                  "blur": {"probability": 0.1}, "noise": {"probability": 0.1},
                                  "jpeg": {"probability": 0.1}})  # fmt: skip
    resize = FixedSize((size, size))
    sets = {"none (letterbox only)": TrainSet(dataset, resize, None)}
    sets |= {name: TrainSet(dataset, resize, alone(base, name)) for name in OWN}
    sets["copy_paste, poisson"] = TrainSet(dataset, resize, alone(poisson, "copy_paste"))
    sets["the defaults: flip, scale, color"] = TrainSet(dataset, resize, AugmentConfig())
    sets["defaults, mosaic 0.5, copy_paste 0.3,\n  blur, noise, jpeg 0.1"] = TrainSet(dataset, resize, usual)
    return sets


Work = Callable[[], object]


def operations(size: int) -> dict[str, tuple[Work, Work]]:
    """(ours, torchvision's) on one picture of `size` with 8 boxes."""
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (size // 8, size // 8, 3), np.uint8), (size, size)).astype(np.uint8)
    corners = np.sort(rng.uniform(0, size, (8, 2, 2)), axis=1)
    boxes, labels = corners.reshape(8, 4).astype(np.float32), np.arange(8)
    picture = Picture(image, boxes, labels)
    sample = {
        "image": tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1)))),
        "boxes": tv_tensors.BoundingBoxes(
            torch.from_numpy(boxes), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(size, size)
        ),
        "labels": torch.from_numpy(labels),
    }

    def theirs(*transforms: torch.nn.Module) -> Work:
        compose = v2.Compose(list(transforms))
        return lambda: compose(sample)

    def scaled() -> object:
        placement = random_placement((size, size), (size, size), (0.6, 1.6), rng)
        return placement.apply(image), placement.boxes(boxes)

    defaults, q60 = AugmentConfig(), JpegConfig(probability=1, quality=(60, 60))
    sigma1, noise10 = (
        BlurConfig(probability=1, sigma=(1, 1), motion=0),
        NoiseConfig(probability=1, sigma=(10, 10), gray=0),
    )
    iou = CropConfig(probability=1, measure="iou", least=(0.0, 0.1, 0.3, 0.5, 0.7, 0.9))
    turn = affine_matrix("rotate", 15, (size, size))
    return {
        "flip": (lambda: flip_horizontal(image, boxes), theirs(v2.RandomHorizontalFlip(1))),
        "scale 0.6..1.6 into the same size": (
            scaled, theirs(v2.ScaleJitter((size, size), (0.6, 1.6)), v2.RandomCrop(size, pad_if_needed=True))),
        "brightness, contrast, saturation, hue": (
            lambda: jitter_color(image, defaults, rng), theirs(v2.ColorJitter(0.2, 0.25, 0.3, 0.02))),
        "crop by IoU": (lambda: random_crop(picture, iou, rng),
                        theirs(v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes())),
        "turn by 15 degrees": (lambda: affine(picture, turn, (0, 0, 0)),
                               theirs(v2.RandomRotation((15, 15), v2.InterpolationMode.BILINEAR))),
        "equalize": (lambda: color.equalize(image), theirs(v2.RandomEqualize(1))),
        "sharpness": (lambda: color.sharpness(image, 1.5), theirs(v2.RandomAdjustSharpness(1.5, 1))),
        "Gaussian blur, sigma 1": (lambda: blur(image, sigma1, rng), theirs(v2.GaussianBlur(7, 1.0))),
        "Gaussian noise, sigma 10": (lambda: noise(image, noise10, rng), theirs(v2.GaussianNoise(0, 10 / 255))),
        "JPEG, quality 60": (lambda: jpeg(image, q60, rng), theirs(v2.JPEG(60))),
    }  # fmt: skip


def seconds(work: Work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as folder:
        make_digits(Path(folder) / "digits", arguments.images, 1, (480, 640))
        dataset = read_coco(Path(folder) / "digits" / "train.json", Path(folder) / "digits" / "train")
        sets = train_sets(dataset, arguments.size)
        times: dict[str, list[float]] = {name: [] for name in sets}
        for epoch in range(arguments.rounds):
            for name, train_set in sets.items():
                train_set.set_epoch(epoch)
                times[name].append(seconds(lambda s=train_set: [s[i] for i in range(len(s))]))  # type: ignore[misc]
    plain = statistics.median(times["none (letterbox only)"])
    print(f"OpenCV {cv2.__version__}, torchvision {torchvision.__version__}, one thread, {arguments.images} pictures "
          f"of 640 x 480, input {arguments.size} x {arguments.size}, {arguments.rounds} rounds\n")  # fmt: skip
    print("| augmentation | images/s | speed of no augmentation |\n|---|---|---|")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"| {' '.join(name.split())} | {arguments.images / median:.0f} | {plain / median:.2f} |")
    print("\n| operation | isodet, ms | torchvision v2, ms | times faster |\n|---|---|---|---|")
    for name, (ours, reference) in operations(arguments.size).items():
        runs: tuple[list[float], list[float]] = ([], [])
        for _ in range(5 * arguments.rounds):
            for work, kept in zip((ours, reference), runs, strict=True):
                kept.append(1000 * seconds(work))
        mine, other = (statistics.median(kept) for kept in runs)
        print(f"| {name} | {mine:.2f} | {other:.2f} | {other / mine:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
