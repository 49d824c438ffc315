"""Every legal crossing of assigner, box code and quality branch, trained on the shapes recipe.

    python benchmarks/crossings.py [--epochs 8] [--seed 0]

The ATSS paper's question, asked of all combinations: what does each decision contribute when the others stay? The
network, data, schedule and seed are the same for all; illegal crossings are listed with the reason they are refused
for. One seed on a small set: differences of a few points are noise.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from isodet.strict import ConfigError
from trainer.config_reader import read_config
from trainer.loop import fit
from trainer.recipes.shapes import make_shapes

ASSIGNERS = ("atss", "topk", "iou", "center")
CODES = ("delta", "ltrb")
QUALITIES = ("centerness", "iou", "none")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    crossings = list(itertools.product(ASSIGNERS, CODES, QUALITIES))
    rows, refused = [], []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_shapes(data)
        for assigner, code, quality in tqdm(crossings, unit="training"):
            overrides = [
                f"model.assign.kind={assigner}", f"model.box.code={code}", f"model.quality={quality}",
                f"seed={arguments.seed}", f"schedule.epochs={arguments.epochs}", f"val_interval={arguments.epochs}",
            ]  # fmt: skip
            try:
                config = read_config(data / "shapes.yaml", overrides)
            except ConfigError as error:
                refused.append((assigner, code, quality, str(error).partition(": ")[2]))
                continue
            result = fit(config, Path(folder) / "runs", quiet=True)
            rows.append((assigner, code, quality, result.last))
    print(f"\n{'assigner':<10}{'box':<8}{'quality':<12}{'mAP':>7}{'AP50':>7}{'AP75':>7}")
    for assigner, code, quality, scores in rows:
        print(f"{assigner:<10}{code:<8}{quality:<12}{scores.map:>7.1f}{scores.ap50:>7.1f}{scores.ap75:>7.1f}")
    for assigner, code, quality, reason in refused:
        print(f"{assigner:<10}{code:<8}{quality:<12}refused: {reason}")
    print(f"\n{arguments.epochs} epochs of the shapes recipe, seed {arguments.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
