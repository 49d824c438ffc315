"""The networks: tensors in, tensors out.

Dimensions have the same letters in all rooms: `B` images, `H W` pixels, `L` pyramid levels, `N` points
(anchors) over all levels, `C` classes, `G` ground-truth boxes, `K` candidates before NMS, `D` detections
kept. Boxes are float32 pixels `x1, y1, x2, y2` without +1; labels are 0..C-1.
"""

from typing import TYPE_CHECKING

from isodet.lazy import lazy_names

if TYPE_CHECKING:
    from isodet.errors import IsodetError as IsodetError
    from models.assigners.assignment import BACKGROUND as BACKGROUND
    from models.assigners.assignment import IGNORED as IGNORED
    from models.backbones import build_backbone as build_backbone
    from models.checkpoint import CheckpointError as CheckpointError
    from models.checkpoint import build_detector as build_detector
    from models.checkpoint import load_detector as load_detector
    from models.checkpoint import read_checkpoint as read_checkpoint
    from models.checkpoint import save_checkpoint as save_checkpoint
    from models.config.model import ModelConfig as ModelConfig
    from models.config.model import model_config as model_config
    from models.deploy.graph import Deploy as Deploy
    from models.detector import Detector as Detector
    from models.detector import Raw as Raw
    from models.importers import import_checkpoint as import_checkpoint
    from models.layers.blocks import ConvNorm as ConvNorm
    from models.layers.fuse import fuse as fuse
    from models.priors import Priors as Priors

lazy_names(__name__)
