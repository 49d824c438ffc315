"""`trainer eval`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tqdm import tqdm

from runtime.commands.arguments import flag
from runtime.commands.eval import Measuring, warn_of_problems
from runtime.commands.shared import InTiles, OfRun, Quiet, say_tiles, updates


def _views(text: str) -> object:
    from trainer.tta.tta import parse_views

    return parse_views(text)


@dataclass(frozen=True, kw_only=True)
class Eval(OfRun, Measuring, InTiles, Quiet):
    """Measure a checkpoint on its validation data, or on yours: mAP, thresholds, confusions.

    device: auto, cpu, cuda or cuda:N
    nms: how boxes are merged: as deployed (hard, default), soft-NMS with a Gaussian or linearly, or weighted boxes
        fusion; checkpoints only: an exported graph has hard NMS inside
    tta: test-time augmentation: mirrored views, views at 0.75 and 1.25 of the size, or at factors of your own as
        flip,0.5,1.5; checkpoints only
    save_thresholds: write the recommended thresholds into the checkpoint's card

    examples:
      trainer eval                                     the newest run's best.pt on its validation data
      trainer eval --report report/                    a page: curves, confusion matrix, worst images
      trainer eval --precision 0.9 --save-thresholds   the card then holds thresholds for 9 of 10 right
      trainer eval --tiles 640 --tile-overlap 0.3      small objects, tile by tile
      trainer eval --tta flip,scales --nms wbf         what more time for each image would bring
    """

    device: str = "auto"
    nms: Literal["hard", "soft", "soft-linear", "wbf"] = "hard"
    tta: Annotated[Any, flag(metavar="flip,scales", type=_views)] = None
    save_thresholds: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        InTiles.__post_init__(self)

    def run(self) -> int:
        from runtime.detector import Detector
        from runtime.evaluation.evaluate import evaluate, require_objects
        from runtime.runs import validation_data
        from trainer.run.checkpoint_card import keep_thresholds
        from trainer.tta.tta import TtaDetector, View

        checkpoint = self.chosen()
        title = checkpoint.name
        if self.nms == "hard" and self.tta is None:
            detector = Detector(checkpoint, device=self.device, tiles=self.tiling)
        else:
            views = self.tta or (View(),)
            detector = TtaDetector(checkpoint, self.nms, views, self.device, self.tiling)
            title += f", NMS {self.nms}, {len(views)} views of each image"
            print(f"merging: {self.nms} over {len(views)} views of each image")
        title += ", in tiles" * (detector.tiles is not None)
        say_tiles(detector.tiles)
        if self.save_thresholds and detector.card.kind != "checkpoint":
            raise ValueError(f"{checkpoint}: --save-thresholds writes into a checkpoint; export it again afterwards")
        dataset = validation_data(detector.card, checkpoint, self.annotations, self.images)
        warn_of_problems(dataset)
        require_objects(dataset)
        with tqdm(unit="image", disable=self.quiet) as bar:
            result = evaluate(detector, dataset, progress=updates(bar), max_dets=self.max_dets)
        measurement = self.conclude(result, dataset, title)
        if self.save_thresholds:
            keep_thresholds(checkpoint, measurement.thresholds)
            print(
                f"wrote {checkpoint}: thresholds of {len(measurement.thresholds)} classes; files exported from it "
                "before keep theirs"
            )
        return 0
