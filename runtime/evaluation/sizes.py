"""AP by object size, in ranges that the user chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isodet.errors import ArgumentError
from runtime.datasets.annotations import CocoDataset
from runtime.detections import Detections
from runtime.evaluation.coco_eval import MOST, coco_evaluator, mean_points

_COCO_END = 1e10
"""Square pixels: where COCO's own largest range ends."""


@dataclass(frozen=True)
class Bucket:
    """Objects whose area has a root of `low` to `high` pixels, both ends included, as COCO's ranges have them."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class BucketScore:
    """COCO's numbers over one bucket in points, 0..100; NaN where it holds no object."""

    bucket: Bucket
    ap: float
    ap50: float
    ar100: float
    objects: int


def parse_buckets(text: str) -> tuple[Bucket, ...]:
    """Buckets from text such as `tiny:0-16,small:16-32,rest:32-inf`. Raises ValueError for anything else."""
    buckets: list[Bucket] = []
    for part in text.split(","):
        name, colon, ends = part.strip().partition(":")
        low, dash, high = ends.partition("-")
        try:
            bucket = Bucket(name.strip(), float(low), float(high))
        except ValueError:
            bucket = Bucket("", 0, 0)
        if not (colon and dash and bucket.name and 0 <= bucket.low < bucket.high and math.isfinite(bucket.low)):
            raise ArgumentError.of(
                "buckets",
                f"expected NAME:LOW-HIGH in pixels of the root of an area, as tiny:0-16,large:96-inf; got {part!r}",
            )
        if bucket.name in [earlier.name for earlier in buckets]:
            raise ArgumentError.of("buckets", f"{bucket.name!r} is there twice")
        buckets.append(bucket)
    return tuple(buckets)


def bucket_scores(
    detections: dict[int, Detections], dataset: CocoDataset, buckets: Sequence[Bucket], most: int = MOST
) -> tuple[BucketScore, ...]:
    """COCO's AP, AP50 and AR100 over the objects of each bucket, over the images that `detections` has.

    most: detections of a class in an image that count.

    The size of an object is the `area` of its annotation. As in COCO's small, medium and large, objects of another size
    do not count, nor do the detections that find them, nor false positives of another size.
    """
    areas = [(bucket.low**2, min(bucket.high**2, _COCO_END)) for bucket in buckets]
    evaluator = coco_evaluator(detections, dataset, areas, (most,))
    precision = evaluator.eval["precision"]  # [IoU, recall, class, area, most detections]
    recall = evaluator.eval["recall"]  # [IoU, class, area, most detections]
    scores = []
    for i, bucket in enumerate(buckets):
        low, high = areas[i]
        objects = sum(
            int(((r.area >= low) & (r.area <= high) & ~r.crowd).sum()) for r in dataset.records if r.id in detections
        )
        ap, ap50 = mean_points(precision[:, :, :, i, -1]), mean_points(precision[0, :, :, i, -1])
        scores.append(BucketScore(bucket, ap, ap50, mean_points(recall[:, :, i, -1]), objects))
    return tuple(scores)
