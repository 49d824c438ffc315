"""Training: from COCO annotations and one YAML file to a detector.

import trainer
result = trainer.fit(trainer.read_config("digits/digits.yaml", ["schedule.epochs=5"]))
result.best, result.best_map
"""

from typing import TYPE_CHECKING

from isodet.lazy import lazy_names
from isodet.rooms import find_rooms

find_rooms("models", "runtime")

if TYPE_CHECKING:
    from isodet.errors import IsodetError as IsodetError
    from isodet.strict import ConfigError as ConfigError
    from trainer.check.data import check_data as check_data
    from trainer.config.train import TrainConfig as TrainConfig
    from trainer.config_reader import read_config as read_config
    from trainer.import_checkpoint import import_detector as import_detector
    from trainer.loop import FitResult as FitResult
    from trainer.loop import TrainingError as TrainingError
    from trainer.loop import fit as fit
    from trainer.lr_find import find_lr as find_lr
    from trainer.new.config import new_config as new_config
    from trainer.new.config import new_recipe as new_recipe
    from trainer.prepare.convert import convert as convert
    from trainer.prepare.negatives import mine_negatives as mine_negatives
    from trainer.run.folder import find_resumable as find_resumable
    from trainer.run.list import list_runs as list_runs

lazy_names(__name__)
