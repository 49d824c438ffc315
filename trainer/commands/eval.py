"""`trainer eval`: its options, and what it does."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from runtime.commands.eval import EXPLANATION, conclude, measurement_arguments, warn_of_problems
from runtime.commands.shared import moves


def evaluation(arguments: argparse.Namespace) -> int:
    """Measure a checkpoint as `arguments` say; returns the exit status."""
    from runtime.detector import Detector
    from runtime.evaluation.evaluate import evaluate, require_objects
    from runtime.runs import newest, validation_data
    from trainer.run.checkpoint_card import keep_thresholds
    from trainer.tta.tta import TtaDetector, View

    checkpoint = arguments.checkpoint
    if checkpoint is None:
        checkpoint = newest("best.pt", runs=arguments.runs)
        print(f"checkpoint: {checkpoint} (the newest run's)")
    title = Path(checkpoint).name
    if arguments.nms == "hard" and arguments.tta is None:
        detector = Detector(checkpoint, device=arguments.device)
    else:
        views = (View(),) if arguments.tta is None else arguments.tta
        detector = TtaDetector(checkpoint, arguments.nms, views, arguments.device)
        title += f", NMS {arguments.nms}, {len(views)} views of each image"
        print(f"merging: {arguments.nms} over {len(views)} views of each image")
    if arguments.save_thresholds and detector.card.kind != "checkpoint":
        raise ValueError(f"{checkpoint}: --save-thresholds writes into a checkpoint; export it again afterwards")
    dataset = validation_data(detector.card, checkpoint, arguments.annotations, arguments.images)
    warn_of_problems(dataset)
    require_objects(dataset)
    with tqdm(unit="image", disable=arguments.quiet) as bar:
        result = evaluate(detector, dataset, progress=moves(bar), max_dets=arguments.max_dets)
    measurement = conclude(arguments, result, dataset, title)
    if arguments.save_thresholds:
        keep_thresholds(checkpoint, measurement.thresholds)
        print(f"wrote {checkpoint}: thresholds of {len(measurement.thresholds)} classes; files exported from it before "
              "keep theirs")  # fmt: skip
    return 0


def evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `trainer eval`, but for those that all commands of the trainer have."""
    parser.epilog = f"""examples:
  trainer eval                                     the newest run's best.pt on its validation data
  trainer eval --report report/                    a page: curves, confusion matrix, worst images
  trainer eval --precision 0.9 --save-thresholds   the card then holds thresholds for 9 of 10 right
  trainer eval --tta flip,scales --nms wbf         what more time for each image would bring

{EXPLANATION}"""
    parser.add_argument("checkpoint", nargs="?", type=Path, help="default: the newest run's best.pt")
    parser.add_argument("--annotations", type=Path, metavar="DATA", help="of any format (default: the run's own)")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="folder of its pictures")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    measurement_arguments(parser)
    parser.add_argument(
        "--nms", choices=("hard", "soft", "soft-linear", "wbf"), default="hard",
        help="how boxes are merged: as deployed (hard, default), soft-NMS with a Gaussian or linearly, or weighted "
        "boxes fusion; checkpoints only: an exported graph has hard NMS inside",
    )  # fmt: skip
    parser.add_argument(
        "--tta", type=_views, metavar="flip,scales",
        help="test-time augmentation: mirrored views, views at 0.75 and 1.25 of the size, or at factors of your own as "
        "flip,0.5,1.5; checkpoints only",
    )  # fmt: skip
    parser.add_argument(
        "--save-thresholds", action="store_true", help="write the recommended thresholds into the checkpoint's card"
    )


def _views(text: str) -> object:
    from trainer.tta.tta import parse_views

    try:
        return parse_views(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("tta: ")) from None
