"""The `augment` section of a training configuration: what may happen to a picture, in the order of the fields.

docs/augmentation.md says what each is for; `trainer check-data CONFIG --augment` draws it on your pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from isodet.strict import require
from trainer.config.augment_sections import (
    AutoConfig,
    BlurConfig,
    CopyPasteConfig,
    CropConfig,
    DistortConfig,
    HardNegativesConfig,
    JpegConfig,
    MixupConfig,
    MosaicConfig,
    MultiScaleConfig,
    NoiseConfig,
    Range,
    TrivialConfig,
)
from trainer.config.custom import OwnAugmentConfig


@dataclass(frozen=True)
class AugmentConfig:
    """In the order in which it happens: on the picture, with the one resize, on the input's pixels."""

    own: tuple[OwnAugmentConfig, ...] = ()
    """Your own, in this order, on the picture as it was read."""
    hard_negatives: HardNegativesConfig = field(default_factory=HardNegativesConfig)
    copy_paste: CopyPasteConfig = field(default_factory=CopyPasteConfig)
    flip: float = 0.5
    """Probability of mirroring left and right; 0 where left and right matter (digits, text, signs)."""
    flip_vertical: float = 0.0
    """Probability of mirroring top and bottom; for pictures from above."""
    trivial: TrivialConfig = field(default_factory=TrivialConfig)
    auto: AutoConfig = field(default_factory=AutoConfig)
    torchvision: tuple[dict, ...] = ()
    """Transforms of torchvision.transforms.v2, each `Name: {its arguments}`."""
    albumentations: tuple[dict, ...] = ()
    """Transforms of albumentations (an extra), each `Name: {its arguments}`."""
    crop: CropConfig = field(default_factory=CropConfig)
    multi_scale: MultiScaleConfig = field(default_factory=MultiScaleConfig)
    mosaic: MosaicConfig = field(default_factory=MosaicConfig)
    scale_probability: float = 1.0
    """Probability of resizing by a factor from `scale` and cropping or placing at random."""
    scale: Range = (0.6, 1.6)
    """Smallest and largest factor on top of the letterbox's own; [0.1, 2] is large-scale jitter (Ghiasi 2021)."""
    color_probability: float = 0.8
    brightness: float = 0.2
    contrast: float = 0.25
    saturation: float = 0.3
    hue: float = 0.02
    """Largest relative change each (hue: share of the colour circle)."""
    distort: DistortConfig = field(default_factory=DistortConfig)
    blur: BlurConfig = field(default_factory=BlurConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    jpeg: JpegConfig = field(default_factory=JpegConfig)
    mixup: MixupConfig = field(default_factory=MixupConfig)
    min_visible: float = 0.3
    """A box cut by a crop, or covered by a paste, is kept while at least this share of its area can be seen."""

    def __post_init__(self) -> None:
        for key in ("flip", "flip_vertical", "scale_probability", "color_probability", "min_visible"):
            require(0 <= getattr(self, key) <= 1, key, "a number from 0 to 1", getattr(self, key))
        for key in ("brightness", "contrast", "saturation"):
            require(0 <= getattr(self, key) < 1, key, "0 up to 1", getattr(self, key))
        require(0 <= self.hue <= 0.5, "hue", "0 to 0.5", self.hue)
        require(0.1 <= self.scale[0] <= self.scale[1] <= 4, "scale", "[low, high] within 0.1..4", self.scale)
        for key in ("torchvision", "albumentations"):
            for step in getattr(self, key):
                require(_names_a_transform(step), key, "a list of `Name: {arguments}`, one name each", step)

    @property
    def closing(self) -> dict[str, int]:
        """Sections that are on and end before training does, and how many epochs before."""
        ends = {
            "mosaic": (self.mosaic.probability, self.mosaic.close_epochs),
            "mixup": (self.mixup.probability, self.mixup.close_epochs),
            "copy_paste": (self.copy_paste.probability, self.copy_paste.close_epochs),
        }
        return {name: last for name, (probability, last) in ends.items() if probability}


def _names_a_transform(step: dict[Any, Any]) -> bool:
    if len(step) != 1:
        return False
    ((name, arguments),) = step.items()
    return isinstance(name, str) and name.isidentifier() and isinstance(arguments, dict | None)
