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
from trainer.config.custom import CustomAugmentConfig


@dataclass(frozen=True)
class AugmentConfig:
    """What may happen to a training picture, in the order of the keys: on the picture, with the one resize, on the
    input's pixels.

    own: Your own augmentations, in this order, on the picture as it was read.
    hard_negatives: Pastes false positives of an earlier training.
    copy_paste: Pastes objects of other pictures.
    flip: Probability of mirroring left and right. Use 0 where left and right matter (digits, text, signs).
    flip_vertical: Probability of mirroring top and bottom, for pictures from above.
    trivial: One random operation (TrivialAugment).
    auto: A learned policy (AutoAugment).
    torchvision: Transforms of torchvision.transforms.v2, each `Name: {its arguments}`.
    albumentations: Transforms of albumentations (an extra), each `Name: {its arguments}`.
    crop: A random crop around objects.
    multi_scale: Another input size.
    mosaic: Four pictures in one.
    scale_probability: Probability of resizing by a factor from `scale`, and cropping or placing at random.
    scale: Smallest and largest factor, on top of the letterbox's own. [0.1, 2] is large-scale jitter (Ghiasi 2021).
    color_probability: Probability of changing brightness, contrast, saturation and hue.
    brightness: Largest relative change of brightness.
    contrast: Largest relative change of contrast.
    saturation: Largest relative change of saturation.
    hue: Largest change of hue, as a share of the color circle.
    distort: Gamma, gray pictures, swapped channels.
    blur: Gaussian and motion blur.
    noise: Gaussian noise.
    jpeg: Artifacts of JPEG.
    mixup: Two pictures laid over each other.
    min_visible: A box that a crop cuts, or a paste covers, stays while at least this share of its area is visible.
    """

    own: tuple[CustomAugmentConfig, ...] = ()
    hard_negatives: HardNegativesConfig = field(default_factory=HardNegativesConfig)
    copy_paste: CopyPasteConfig = field(default_factory=CopyPasteConfig)
    flip: float = 0.5
    flip_vertical: float = 0.0
    trivial: TrivialConfig = field(default_factory=TrivialConfig)
    auto: AutoConfig = field(default_factory=AutoConfig)
    torchvision: tuple[dict, ...] = ()
    albumentations: tuple[dict, ...] = ()
    crop: CropConfig = field(default_factory=CropConfig)
    multi_scale: MultiScaleConfig = field(default_factory=MultiScaleConfig)
    mosaic: MosaicConfig = field(default_factory=MosaicConfig)
    scale_probability: float = 1.0
    scale: Range = (0.6, 1.6)
    color_probability: float = 0.8
    brightness: float = 0.2
    contrast: float = 0.25
    saturation: float = 0.3
    hue: float = 0.02
    distort: DistortConfig = field(default_factory=DistortConfig)
    blur: BlurConfig = field(default_factory=BlurConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    jpeg: JpegConfig = field(default_factory=JpegConfig)
    mixup: MixupConfig = field(default_factory=MixupConfig)
    min_visible: float = 0.3

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
        """`close_epochs` of the sections that are on: they end so many epochs before training does."""
        sections: dict[str, MosaicConfig | MixupConfig | CopyPasteConfig]
        sections = {"mosaic": self.mosaic, "mixup": self.mixup, "copy_paste": self.copy_paste}
        return {name: section.close_epochs for name, section in sections.items() if section.probability}


def _names_a_transform(step: dict[Any, Any]) -> bool:
    if len(step) != 1:
        return False
    ((name, arguments),) = step.items()
    return isinstance(name, str) and name.isidentifier() and isinstance(arguments, dict | None)
