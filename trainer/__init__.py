"""How weights come to be: from COCO annotations and one YAML file to a detector.

import trainer
result = trainer.fit(trainer.read_config("digits/digits.yaml", ["schedule.epochs=5"]))
result.best, result.best_map
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from isodet.errors import IsodetError

try:
    from runtime.lazy import lazy_names
    from runtime.rooms import find_models
except ImportError as error:
    import runtime as found  # of this name, but without what isodet's has

    ours = Path(__file__).resolve().parents[1] / "runtime"
    raise ImportError(
        f"{found.__file__ or list(found.__path__)} hides isodet's package {ours}, which {__name__} needs; rename "
        f"yours, or take its folder off the path ({error})"
    ) from None

find_models()

if TYPE_CHECKING:
    from trainer.check.data import check_data
    from trainer.config.train import TrainConfig
    from trainer.config_reader import read_config
    from trainer.loop import FitResult, TrainingError, fit
    from trainer.new.config import new_config, new_recipe
    from trainer.prepare.negatives import mine_negatives
    from trainer.run.folder import find_resumable

_HOME = {
    "check_data": "check.data",
    "TrainConfig": "config.train", "read_config": "config_reader",
    "FitResult": "loop", "TrainingError": "loop", "fit": "loop",
    "mine_negatives": "prepare.negatives",
    "new_config": "new.config", "new_recipe": "new.config",
    "find_resumable": "run.folder",
}  # fmt: skip

__all__ = [
    "FitResult", "IsodetError", "TrainConfig", "TrainingError", "check_data", "find_resumable", "fit", "mine_negatives",
    "new_config", "new_recipe", "read_config",
]  # fmt: skip

__getattr__, __dir__ = lazy_names(__name__, _HOME)
