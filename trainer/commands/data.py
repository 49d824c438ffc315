"""The commands for data sets and checkpoints of others: `trainer new`, `convert`, `import` and `mine-negatives`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tqdm import tqdm

from runtime.commands.arguments import flag, number
from runtime.commands.shared import Data, OfRun, Quiet, updates
from trainer.commands.config import comparing

Format = Literal["coco", "voc", "yolo", "list"]
"""The same as in `runtime.datasets`, whose readers the other commands need not load."""
_DIR = flag(metavar="DIR")
_DATA = flag(metavar="DATA")
_FILE = flag(metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class MineNegatives(OfRun, Data, Quiet):
    """Collect false positives to train against.

    Detects in pictures, keeps what overlaps no annotated object, and writes it for augment.hard_negatives, which pastes
    it as background onto training pictures (docs/augmentation.md).

    out: file to write
    annotations: of any format (default: the run's training data)
    score: lowest score to keep
    max_overlap: with any object: common area over the smaller box
    limit: most to write, by score
    device: auto, cpu, cuda or cuda:N
    """

    out: Annotated[Path, flag(metavar="FILE.json")]
    annotations: Annotated[Path | None, _DATA] = None
    score: float = 0.3
    max_overlap: Annotated[float, flag(metavar="SHARE")] = 0.1
    limit: int = 1000
    device: str = "auto"

    def run(self) -> int:
        from runtime.detector import Detector
        from trainer.prepare.negatives import mine_negatives, training_data

        checkpoint = self.chosen()
        detector = Detector(checkpoint, device=self.device)
        dataset = training_data(detector.card, checkpoint, self.annotations, self.images)
        with tqdm(unit="image", disable=self.quiet) as bar:
            mined = mine_negatives(
                detector, dataset, self.out, score=self.score, max_overlap=self.max_overlap, limit=self.limit,
                progress=updates(bar),
            )  # fmt: skip
        for path, reason in mined.skipped:
            print(f"warning: {path}: {reason}", file=sys.stderr)
        print(
            f"{mined.found} of {mined.detections} detections in {mined.images} images are on no object\n"
            f"wrote {self.out}: the {mined.written} with the highest scores\n"
            f"next: trainer fit CONFIG augment.hard_negatives.probability=0.5 "
            f"augment.hard_negatives.file={self.out}"
        )
        return 0


@dataclass(frozen=True, kw_only=True)
class New(Quiet):
    """Start from a recipe or from your annotations.

    Writes a recipe with its data (digits, shapes), or a commented config for your own annotations: COCO JSON, a JSON
    list, a folder of Pascal VOC .xml, YOLO's data.yaml or folder of labels (docs/data.md).

    what: digits, shapes, or the config file to write
    out: recipes: where to (default: a folder of its name)
    train: annotations to train on
    train_images: folder of their pictures
    val: annotations to validate on
    val_images: folder of their pictures
    val_share: instead of --val: validate on this share of --train, such as 0.2, where the data set has no split;
        pictures that look the same, and frames of one video or burst, stay on one side
    format: of both (default: told by content)
    detector: default: atss
    init: start from this checkpoint, trained or imported
    size: longest input side (default: chosen from the data)
    """

    what: Annotated[str, flag("what", metavar="RECIPE|FILE.yaml")]
    out: Annotated[Path | None, _DIR] = None
    train: Annotated[Path | None, _DATA] = None
    train_images: Annotated[Path | None, _DIR] = None
    val: Annotated[Path | None, _DATA] = None
    val_images: Annotated[Path | None, _DIR] = None
    val_share: Annotated[
        float | None,
        flag(metavar="SHARE", type=number("a share between 0 and 1, such as 0.2", lambda share: 0 < share < 1)),
    ] = None
    format: Format | Literal["auto"] = "auto"
    detector: Literal["atss", "retinanet", "fcos", "gfl", "gflv2", "tood"] | None = None
    init: Annotated[Path | None, flag(metavar="BEST.pt")] = None
    size: Annotated[int | None, flag(metavar="PX")] = None

    def __post_init__(self) -> None:
        from trainer.new.config import RECIPES

        if self.what in RECIPES:
            if self.format != "auto" or any((self.train, self.val, self.val_share, self.train_images, self.val_images)):
                raise ValueError(f"the recipe {self.what!r} makes its own data: no --train and --val")
            return
        if self.val_share and (self.val or self.val_images):
            raise ValueError("--val-share takes the validation pictures from --train: no --val and --val-images")
        if self.train is None or not (self.val or self.val_share):
            raise ValueError(
                f"{self.what!r} is not a recipe ({', '.join(RECIPES)}); for your own data name a new FILE.yaml "
                "and give --train and --val (with --train-images and --val-images where the format has none), "
                "or --train and --val-share 0.2 where the data set has no split"
            )
        if self.init is not None and self.detector is not None:
            raise ValueError("--init brings its detector with it: no --detector")
        if self.out is not None:
            raise ValueError("--out is for recipes; a config is written to the FILE.yaml that you name")

    def run(self) -> int:
        from trainer.new.config import new_config, new_recipe

        if self.train is None:
            with tqdm(unit="image", disable=self.quiet) as bar:
                path = new_recipe(self.what, self.out or Path(self.what), progress=updates(bar))
        else:
            with (
                tqdm(unit="image", disable=self.quiet or self.val_share is None) as bar,
                comparing(self.quiet) as steps,
            ):
                path = new_config(
                    Path(self.what), self.train, self.train_images, self.val, self.val_images,
                    detector=self.detector or "atss", size=self.size, init=self.init, format=self.format,
                    val_share=self.val_share, progress=updates(bar), comparing=updates(steps),
                )  # fmt: skip
            if self.val_share is not None:
                lists = ", ".join(str(path.with_suffix(f".{split}.txt")) for split in ("train", "val"))
                print(f"wrote {lists}: which pictures train and which validate, a path a line")
        print(f"wrote {path}\nnext: trainer check-data {path}\n      trainer fit {path}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Convert(Quiet):
    """Write a data set in another format.

    SOURCE is COCO JSON, a JSON list, a folder of Pascal VOC .xml or YOLO's data.yaml or folder of labels; what the new
    format cannot hold is told.

    source: annotation file or folder
    to: format to write
    out: FILE.json (coco, list) or a new folder
    images: folder of the pictures (default: the format's own)
    classes: only these classes, one a line, in this order
    format: of SOURCE (default: told by content)
    split: of a data.yaml; and its name
    voc_origin: what VOC coordinates count from (default: told by them)
    """

    source: Annotated[Path, flag("source", metavar="SOURCE")]
    to: Format
    out: Annotated[Path, flag(metavar="PATH")]
    images: Annotated[Path | None, _DIR] = None
    classes: Annotated[Path | None, _FILE] = None
    format: Annotated[Format | Literal["auto"], flag("--from")] = "auto"
    split: Literal["train", "val", "test"] = "train"
    voc_origin: Literal[0, 1] | None = None
    pictures: Annotated[Literal["leave", "copy", "link"], flag(either={
        "--copy": ("copy", "copy the pictures, too (default: they stay where they are)"),
        "--symlink": ("link", "link to the pictures"),
    })] = "leave"  # fmt: skip

    def run(self) -> int:
        from runtime.datasets.annotations import read_class_names
        from trainer.prepare.convert import convert

        classes = None if self.classes is None else read_class_names(self.classes)
        with tqdm(unit="image", disable=self.quiet) as bar:
            done = convert(
                self.source, self.to, self.out, images=self.images, classes=classes, pictures=self.pictures,
                format=self.format, split=self.split, progress=updates(bar),
                voc_origin="auto" if self.voc_origin is None else self.voc_origin,
            )  # fmt: skip
        boxes = sum(len(record.labels) for record in done.dataset.records)
        print(f"{len(done.dataset)} images, {boxes} boxes, {len(done.dataset.class_names)} classes")
        for note in done.notes:
            print(f"note: {note}")
        print("wrote " + ", ".join(str(path) for path in done.written))
        images = f" --train-images {done.images}" if self.pictures == "leave" else ""  # else where the format has them
        print(f"to train on it: trainer new my.yaml --train {done.annotations}{images} --val ...")
        return 0


@dataclass(frozen=True, kw_only=True)
class Import(Quiet):
    """Take over a checkpoint of torchvision or mmdetection.

    Writes one of torchvision (retinanet_resnet50_fpn, _v2, fcos_resnet50_fpn) or mmdetection (ATSS, FCOS, RetinaNet) as
    isodet's, to evaluate and to export. No pickled code is run.

    file: their .pth
    out: checkpoint to write
    source: whose it is (default: its names)
    classes: names, one a line (default: the file's, COCO's)
    input_size: of graphs, multiples of 32 (default: 800 1344)
    resize: sides it was trained with (default: the file's, or 800 1333)
    style: mmdet: where ResNets stride (default: as published)
    norm_eps: of the backbone's norms (default: as published)
    """

    file: Annotated[Path, flag("file", metavar="FILE")]
    out: Path = Path("best.pt")
    source: Annotated[Literal["torchvision", "mmdet"] | None, flag("--from")] = None
    classes: Annotated[Path | None, _FILE] = None
    input_size: Annotated[tuple[int, int] | None, flag(nargs=2, metavar=("H", "W"))] = None
    resize: Annotated[tuple[int, int] | None, flag(nargs=2, metavar=("SHORT", "LONG"))] = None
    style: Literal["pytorch", "caffe"] | None = None
    norm_eps: Annotated[float | None, flag(metavar="EPS")] = None

    def run(self) -> int:
        from runtime.datasets.annotations import read_class_names
        from trainer.import_checkpoint import import_detector

        imported = import_detector(
            self.file, self.out, self.source, None if self.classes is None else read_class_names(self.classes),
            input_size_hw=self.input_size, style=self.style, norm_eps=self.norm_eps, resize=self.resize,
        )  # fmt: skip
        resize, (height, width) = imported.config.resize, imported.config.input_size_hw
        print(
            f"{imported.source} {imported.architecture}, {len(imported.config.classes)} classes, "
            f"{imported.config.backbone.name}\n"
            f"  pictures: short side {resize.short}, long side at most {resize.long}, as its authors have it; "
            f"an exported graph letterboxes into {height}x{width}"
        )
        for note in imported.notes:
            print(f"  taken as {note}")
        print(
            f"wrote {self.out}\nnext: trainer eval {self.out} --annotations FILE.json --images FOLDER\n"
            f"      exporter onnx {self.out} --simplify --annotations FILE.json --images FOLDER"
        )
        return 0
