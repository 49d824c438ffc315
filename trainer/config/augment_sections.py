"""The sections of `augment`: each is one augmentation with its probability and its ranges.

A `probability` of 0, which is the default of all of them, is off and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isodet.strict import ConfigError, nearest, require

Range = tuple[float, float]

OPERATIONS = (
    "identity", "brightness", "contrast", "color", "sharpness", "autocontrast", "equalize", "posterize", "solarize",
    "solarize_add", "cutout", "shear_x", "shear_y", "translate_x", "translate_y", "rotate",
    "shear_x_boxes", "shear_y_boxes", "translate_x_boxes", "translate_y_boxes", "rotate_boxes", "equalize_boxes",
)  # fmt: skip
"""Steps of `auto`; those that end in _boxes act within each object's box, and leave the rest and the box alone."""


@dataclass(frozen=True)
class HardNegativesConfig:
    probability: float = 0.0
    file: str | None = None
    """What `trainer mine-negatives` wrote: false positives of an earlier training."""
    count: tuple[int, int] = (1, 2)
    scale: Range = (0.9, 1.1)
    """Factor on the size relative to the picture, which is that of the picture the crop comes from."""
    margin: float = 0.15
    """Surroundings taken along on each side, as a share of the crop's own sides; they fade out."""
    blend: Literal["feather", "poisson"] = "feather"
    """poisson: gradients only, by cv2.seamlessClone, so that light and colour are the new picture's (slower)."""
    place: Literal["same_height", "anywhere"] = "same_height"
    """same_height: as high in the picture as it was found, within 5 % of the height; anywhere along the width."""
    empty_only: bool = True
    """Only onto pictures without objects; false: also beside objects, never over one."""

    def __post_init__(self) -> None:
        _check_paste(self)
        require(self.probability == 0 or self.file is not None, "file",
                "the file that `trainer mine-negatives` wrote, where probability is above 0", self.file)  # fmt: skip


@dataclass(frozen=True)
class CopyPasteConfig:
    probability: float = 0.0
    count: tuple[int, int] = (1, 3)
    scale: Range = (0.8, 1.25)
    """Factor on the size relative to the picture, which is that of the picture the object comes from."""
    sides: Range = (0.0, 0.4)
    """Only objects whose side (root of the area) is in this share of their picture's: [0, 0.1] copies small ones. None
    is taken whose rectangle, surroundings included, shows a part of another object."""
    margin: float = 0.15
    blend: Literal["feather", "poisson"] = "feather"
    place: Literal["same_height", "anywhere"] = "anywhere"
    max_cover: float = 0.3
    """No other object may lose more than this share of its box to one paste."""
    close_epochs: int = 0
    """Off in this many epochs at the end."""

    def __post_init__(self) -> None:
        _check_paste(self)
        require(0 <= self.sides[0] < self.sides[1] <= 1, "sides", "[low, high] within 0..1", self.sides)
        require(0 <= self.max_cover < 1, "max_cover", "0 up to 1", self.max_cover)
        require(self.close_epochs >= 0, "close_epochs", "0 or more", self.close_epochs)


def _check_paste(config: HardNegativesConfig | CopyPasteConfig) -> None:
    _probability(config.probability)
    _span(config.scale, "scale", 0.1, 10)
    require(1 <= config.count[0] <= config.count[1] <= 50, "count", "[low, high] within 1..50", config.count)
    require(0 <= config.margin <= 1, "margin", "a share from 0 to 1", config.margin)


@dataclass(frozen=True)
class TrivialConfig:
    """TrivialAugment (Müller, Hutter 2021): one operation, drawn evenly, at a strength drawn evenly."""

    probability: float = 0.0
    strength: float = 1.0
    """1: up to shear 0.3, shift 0.3 of the side, turn 30 degrees, factors 0.1 to 1.9."""
    geometric: bool = True
    """false: operations on colour only."""

    def __post_init__(self) -> None:
        _probability(self.probability)
        require(0 < self.strength <= 1, "strength", "above 0, at most 1", self.strength)


@dataclass(frozen=True)
class AutoConfig:
    """AutoAugment for detection (Zoph et al. 2019): one sub-policy, drawn evenly, its steps each by its probability."""

    probability: float = 0.0
    policy: Literal["v0"] | tuple[tuple[tuple[str, float, float], ...], ...] = "v0"
    """v0: the paper's; or your own list of sub-policies of steps [operation, probability, level 0..10]."""

    def __post_init__(self) -> None:
        _probability(self.probability)
        if isinstance(self.policy, str):
            return
        require(bool(self.policy), "policy", "v0, or at least one sub-policy", self.policy)
        for name, probability, level in (step for steps in self.policy for step in steps):
            if name not in OPERATIONS:
                raise ConfigError(f"policy: unknown operation {name!r}{nearest(name, OPERATIONS)}")
            require(0 <= probability <= 1, f"policy: probability of {name}", "a number from 0 to 1", probability)
            require(0 <= level <= 10, f"policy: level of {name}", "a number from 0 to 10", level)


@dataclass(frozen=True)
class CropConfig:
    """A random crop around objects (after SSD, Liu et al. 2016, and RandomIoUCrop): small objects come out larger."""

    probability: float = 0.0
    sides: Range = (0.3, 1.0)
    """Height and width of the crop, as shares of the picture's."""
    aspect: Range = (0.5, 2.0)
    """Width over height of the crop, relative to the picture's own."""
    measure: Literal["share", "iou"] = "share"
    """share: every object in the crop keeps that share of its box, so that small and large ones count alike, and the
    crop holds one object, drawn evenly, whole where it fits. iou: the crop overlaps some object by that IoU (SSD),
    which a small object can never reach."""
    least: tuple[float, ...] = (0.5, 0.7, 0.9, 1.0)
    """One of these is drawn as the least share or IoU."""
    tries: int = 40
    """A crop that does not fulfil `least` is drawn again so many times; then the picture stays whole."""

    def __post_init__(self) -> None:
        _probability(self.probability)
        _span(self.sides, "sides", 0.05, 1)
        _span(self.aspect, "aspect", 0.1, 10)
        require(bool(self.least) and all(0 <= v <= 1 for v in self.least), "least", "numbers from 0 to 1", self.least)
        require(1 <= self.tries <= 1000, "tries", "1 to 1000", self.tries)


@dataclass(frozen=True)
class MultiScaleConfig:
    """Another input size; a batch is padded to its largest picture, so memory follows the upper end."""

    probability: float = 0.0
    factor: Range = (0.75, 1.25)
    """Of the input's sides; under the short-side rule of the short and the long side."""
    multiple: int = 32
    """Sides of the input are rounded to multiples of this."""

    def __post_init__(self) -> None:
        _probability(self.probability)
        _span(self.factor, "factor", 0.25, 4)
        require(self.multiple >= 32 and self.multiple % 32 == 0, "multiple", "a multiple of 32", self.multiple)


@dataclass(frozen=True)
class MosaicConfig:
    """Four pictures in one (YOLOv4, Bochkovskiy et al. 2020): small objects, and objects cut by edges."""

    probability: float = 0.0
    scale: Range = (0.5, 1.2)
    """Of each picture, on top of the letterbox's own; instead of augment.scale."""
    center: Range = (0.3, 0.7)
    """Where the four meet, as a share of the input's sides."""
    close_epochs: int = 10
    """Off in this many epochs at the end, so that training ends on pictures as they are (YOLOX)."""

    def __post_init__(self) -> None:
        _probability(self.probability)
        _span(self.scale, "scale", 0.1, 4)
        _span(self.center, "center", 0.1, 0.9)
        require(self.close_epochs >= 0, "close_epochs", "0 or more", self.close_epochs)


@dataclass(frozen=True)
class DistortConfig:
    """Photometric distortion beyond brightness, contrast, saturation and hue, which have keys of their own above."""

    probability: float = 0.0
    gamma: Range = (0.7, 1.5)
    grey: float = 0.1
    """Share of the distorted pictures that lose their colour."""
    shuffle: float = 0.1
    """Share of the distorted pictures whose channels change places."""

    def __post_init__(self) -> None:
        _probability(self.probability)
        _span(self.gamma, "gamma", 0.1, 10)
        for key in ("grey", "shuffle"):
            require(0 <= getattr(self, key) <= 1, key, "a share from 0 to 1", getattr(self, key))


@dataclass(frozen=True)
class BlurConfig:
    probability: float = 0.0
    sigma: Range = (0.4, 1.6)
    """Of the Gaussian, input pixels."""
    motion: float = 0.3
    """Share that is blurred along a line instead, as a moving camera does."""
    length: Range = (3.0, 9.0)
    """Of that line, input pixels."""

    def __post_init__(self) -> None:
        _probability(self.probability)
        _span(self.sigma, "sigma", 0.1, 20)
        _span(self.length, "length", 1, 99)
        require(0 <= self.motion <= 1, "motion", "a share from 0 to 1", self.motion)


@dataclass(frozen=True)
class NoiseConfig:
    probability: float = 0.0
    sigma: Range = (2.0, 15.0)
    """Standard deviation, grey levels of 0..255."""
    grey: float = 0.5
    """Share with the same noise in all three channels."""

    def __post_init__(self) -> None:
        _probability(self.probability)
        _span(self.sigma, "sigma", 0.1, 100)
        require(0 <= self.grey <= 1, "grey", "a share from 0 to 1", self.grey)


@dataclass(frozen=True)
class JpegConfig:
    probability: float = 0.0
    quality: tuple[int, int] = (30, 90)

    def __post_init__(self) -> None:
        _probability(self.probability)
        require(1 <= self.quality[0] <= self.quality[1] <= 100, "quality", "[low, high] within 1..100", self.quality)


@dataclass(frozen=True)
class MixupConfig:
    """Two views laid over each other (Zhang et al. 2019, for detection): the objects of both stay targets."""

    probability: float = 0.0
    alpha: float = 8.0
    """The weight is drawn from Beta(alpha, alpha): 1 anything, 8 mostly 0.3 to 0.7."""
    close_epochs: int = 10
    """Off in this many epochs at the end."""

    def __post_init__(self) -> None:
        _probability(self.probability)
        require(0.1 <= self.alpha <= 100, "alpha", "0.1 to 100", self.alpha)
        require(self.close_epochs >= 0, "close_epochs", "0 or more", self.close_epochs)


def _probability(value: float) -> None:
    require(0 <= value <= 1, "probability", "a number from 0 to 1", value)


def _span(value: tuple[float, float], key: str, low: float, high: float) -> None:
    require(low <= value[0] <= value[1] <= high, key, f"[low, high] within {low:g}..{high:g}", value)
