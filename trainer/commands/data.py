"""What comes from outside: `trainer new`, `convert`, `import` and `mine-negatives`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from runtime.commands.shared import moves

NEW = (
    "Write a recipe with its data (digits, shapes), or a commented config for your own annotations: COCO JSON, a "
    "JSON list, a folder of Pascal VOC .xml, YOLO's data.yaml or folder of labels (docs/data.md)."
)
CONVERT = (
    "Write the boxes of SOURCE in another format. SOURCE is COCO JSON, a JSON list, a folder of Pascal VOC .xml or "
    "YOLO's data.yaml or folder of labels; what the new format cannot hold is told."
)
IMPORT = (
    "Write a checkpoint of torchvision (retinanet_resnet50_fpn, _v2, fcos_resnet50_fpn) or mmdetection (ATSS, "
    "FCOS, RetinaNet) as isodet's, to evaluate and to export. No pickled code is run."
)
MINE_NEGATIVES = (
    "Detect in pictures, keep what overlaps no annotated object, and write it for augment.hard_negatives, which "
    "pastes it as background onto training pictures (docs/augmentation.md)."
)


def mine_arguments(parser: argparse.ArgumentParser) -> None:
    """What `trainer mine-negatives` takes."""
    parser.add_argument("checkpoint", nargs="?", type=Path, help="default: the newest run's best.pt")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="file to write")
    parser.add_argument(
        "--annotations", type=Path, metavar="FILE", help="of any format (default: the run's training data)"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="folder of its pictures")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score to keep (default: 0.3)")
    parser.add_argument(
        "--max-overlap", type=float, default=0.1, metavar="SHARE",
        help="with any object: common area over the smaller box (default: 0.1)",
    )  # fmt: skip
    parser.add_argument("--limit", type=int, default=1000, help="most to write, by score (default: 1000)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")


def mine_negatives(arguments: argparse.Namespace) -> int:
    """Run it; returns the exit status."""
    from runtime.detector import Detector
    from runtime.runs import newest
    from trainer.prepare import negatives

    checkpoint = arguments.checkpoint
    if checkpoint is None:
        checkpoint = newest("best.pt", runs=arguments.runs)
        print(f"checkpoint: {checkpoint} (the newest run's)")
    detector = Detector(checkpoint, device=arguments.device)
    dataset = negatives.training_data(detector.card, checkpoint, arguments.annotations, arguments.images)
    with tqdm(unit="image", disable=arguments.quiet) as bar:
        mined = negatives.mine_negatives(
            detector, dataset, arguments.out, arguments.score, arguments.max_overlap, arguments.limit, moves(bar)
        )
    for path, reason in mined.skipped:
        print(f"warning: {path}: {reason}", file=sys.stderr)
    print(f"{mined.found} of {mined.detections} detections in {mined.images} images are on no object\n"
          f"wrote {arguments.out}: the {mined.written} with the highest scores\n"
          f"next: trainer fit CONFIG augment.hard_negatives.probability=0.5 "
          f"augment.hard_negatives.file={arguments.out}")  # fmt: skip
    return 0


def new_arguments(sub: argparse.ArgumentParser) -> None:
    """What `trainer new` takes."""
    sub.add_argument("what", metavar="RECIPE|FILE.yaml", help="digits, shapes, or the config file to write")
    sub.add_argument("--out", type=Path, metavar="DIR", help="recipes: where to (default: a folder of its name)")
    sub.add_argument("--train", type=Path, metavar="DATA", help="annotations to train on")
    sub.add_argument("--train-images", type=Path, metavar="DIR", help="folder of their pictures")
    sub.add_argument("--val", type=Path, metavar="DATA", help="annotations to validate on")
    sub.add_argument("--val-images", type=Path, metavar="DIR", help="folder of their pictures")
    sub.add_argument(
        "--val-share", type=_part, default=0.0, metavar="SHARE",
        help="instead of --val: validate on this share of --train, such as 0.2, where the data set has no split",
    )  # fmt: skip
    sub.add_argument(
        "--format", default="auto", choices=("coco", "voc", "yolo", "list"), help="of both (default: told by content)"
    )
    sub.add_argument("--detector", choices=("atss", "retinanet", "fcos"), help="default: atss")
    sub.add_argument("--init", type=Path, metavar="BEST.pt", help="start from this checkpoint, trained or imported")
    sub.add_argument("--size", type=int, metavar="PX", help="longest input side (default: chosen from the data)")


def _part(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1, such as 0.2, got {text!r}")
    return value


def new(arguments: argparse.Namespace) -> int:
    """Run `trainer new`; returns the exit status."""
    from trainer.new.config import RECIPES, new_config, new_recipe

    given = [arguments.train, arguments.val]
    if arguments.what in RECIPES:
        if any([*given, arguments.val_share, arguments.format != "auto", arguments.train_images, arguments.val_images]):
            arguments.parser.error(f"the recipe {arguments.what!r} makes its own data: no --train and --val")
        with tqdm(unit="image", disable=arguments.quiet) as bar:
            path = new_recipe(arguments.what, arguments.out or Path(arguments.what), progress=moves(bar))
    else:
        if arguments.val_share and (arguments.val or arguments.val_images):
            arguments.parser.error("--val-share takes the validation pictures from --train: no --val and --val-images")
        if arguments.train is None or not (arguments.val or arguments.val_share):
            arguments.parser.error(
                f"{arguments.what!r} is not a recipe ({', '.join(RECIPES)}); for your own data name a new FILE.yaml "
                "and give --train and --val (with --train-images and --val-images where the format has none), "
                "or --train and --val-share 0.2 where the data set has no split"
            )
        if arguments.init is not None and arguments.detector is not None:
            arguments.parser.error("--init brings its detector with it: no --detector")
        if arguments.out is not None:
            arguments.parser.error("--out is for recipes; a config is written to the FILE.yaml that you name")
        path = new_config(
            Path(arguments.what), arguments.train, arguments.train_images, arguments.val, arguments.val_images,
            arguments.detector or "atss", arguments.size, init=arguments.init, format=arguments.format,
            val_share=arguments.val_share,
        )  # fmt: skip
    print(f"wrote {path}\nnext: trainer check-data {path}\n      trainer fit {path}")
    return 0


def convert_arguments(sub: argparse.ArgumentParser) -> None:
    """What `trainer convert` takes."""
    kinds = ("coco", "voc", "yolo", "list")
    sub.add_argument("source", type=Path, metavar="SOURCE", help="annotation file or folder")
    sub.add_argument("--to", required=True, choices=kinds, help="format to write")
    sub.add_argument("--out", required=True, type=Path, metavar="PATH", help="FILE.json (coco, list) or a new folder")
    sub.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures (default: the format's own)")
    sub.add_argument("--classes", type=Path, metavar="FILE", help="only these classes, one a line, in this order")
    sub.add_argument("--from", dest="source_format", default="auto", choices=kinds, help="default: told by content")
    sub.add_argument("--split", default="train", choices=("train", "val", "test"), help="of a data.yaml; and its name")
    sub.add_argument(
        "--voc-origin", type=int, choices=(0, 1), help="what VOC coordinates count from (default: told by them)"
    )
    how = sub.add_mutually_exclusive_group()
    how.add_argument(
        "--copy", dest="pictures", action="store_const", const="copy", default="leave",
        help="copy the pictures, too (default: they stay where they are)",
    )  # fmt: skip
    how.add_argument("--symlink", dest="pictures", action="store_const", const="link", help="link to the pictures")


def convert_data(arguments: argparse.Namespace) -> int:
    """Run `trainer convert`; returns the exit status."""
    from runtime.datasets.annotations import read_class_names
    from trainer.prepare.convert import convert

    classes = None if arguments.classes is None else read_class_names(arguments.classes)
    with tqdm(unit="image", disable=arguments.quiet) as bar:
        done = convert(
            arguments.source, arguments.to, arguments.out, arguments.images, classes, arguments.pictures,
            arguments.source_format,
            arguments.split, progress=moves(bar),
            voc_origin="auto" if arguments.voc_origin is None else arguments.voc_origin,
        )  # fmt: skip
    boxes = sum(len(record.labels) for record in done.dataset.records)
    print(f"{len(done.dataset)} images, {boxes} boxes, {len(done.dataset.class_names)} classes")
    for note in done.notes:
        print(f"note: {note}")
    print("wrote " + ", ".join(str(path) for path in done.written))
    images = f" --train-images {done.images}" if arguments.pictures == "leave" else ""  # else where the format has them
    print(f"to train on it: trainer new my.yaml --train {done.annotations}{images} --val ...")
    return 0


def import_arguments(sub: argparse.ArgumentParser) -> None:
    """What `trainer import` takes."""
    sub.add_argument("file", type=Path, metavar="FILE", help="their .pth")
    sub.add_argument("--out", type=Path, default=Path("best.pt"), help="checkpoint to write (default: best.pt)")
    sub.add_argument("--from", dest="source", choices=("torchvision", "mmdet"), help="whose it is (default: its names)")
    sub.add_argument("--classes", type=Path, metavar="FILE", help="names, one a line (default: the file's, COCO's)")
    sub.add_argument(
        "--input-size", type=int, nargs=2, metavar=("H", "W"), help="of graphs, multiples of 32 (default: 800 1344)"
    )
    sub.add_argument(
        "--resize", type=int, nargs=2, metavar=("SHORT", "LONG"),
        help="sides it was trained with (default: the file's, or 800 1333)",
    )  # fmt: skip
    sub.add_argument(
        "--style", choices=("pytorch", "caffe"), help="mmdet: where ResNets stride (default: as published)"
    )
    sub.add_argument("--norm-eps", type=float, metavar="EPS", help="of the backbone's norms (default: as published)")


def import_theirs(arguments: argparse.Namespace) -> int:
    """Run `trainer import`; returns the exit status."""
    from runtime.datasets.annotations import read_class_names
    from trainer.import_checkpoint import import_detector

    classes = None if arguments.classes is None else read_class_names(arguments.classes)
    size = tuple(arguments.input_size) if arguments.input_size else None
    rule = tuple(arguments.resize) if arguments.resize else None
    imported = import_detector(
        arguments.file, arguments.out, arguments.source, classes, size, arguments.style, arguments.norm_eps, rule
    )
    resize, (height, width) = imported.config.resize, imported.config.input_size_hw
    print(f"{imported.source} {imported.architecture}, {len(imported.config.classes)} classes, "
          f"{imported.config.backbone.name}\n"
          f"  pictures: short side {resize.short}, long side at most {resize.long}, as its authors have it; "
          f"an exported graph letterboxes into {height}x{width}")  # fmt: skip
    for note in imported.notes:
        print(f"  taken as {note}")
    print(f"wrote {arguments.out}\nnext: trainer eval {arguments.out} --annotations FILE.json --images FOLDER\n"
          f"      exporter onnx {arguments.out} --simplify --annotations FILE.json --images FOLDER")  # fmt: skip
    return 0
