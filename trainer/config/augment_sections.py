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
class Section:
    """What every augmentation has.

    probability: Probability for each picture.
    """

    probability: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.probability <= 1, "probability", "a number from 0 to 1", self.probability)


@dataclass(frozen=True)
class HardNegativesConfig(Section):
    """False positives of an earlier training, pasted as background.

    file: The file that `trainer mine-negatives` wrote.
    count: Fewest and most pastes in one picture.
    scale: Factor on the size relative to the picture that the crop comes from.
    margin: Surroundings taken along on each side, as a share of the crop's own sides. They fade out.
    blend: poisson: gradients only, by cv2.seamlessClone, so that light and color are the new picture's. It is slower.
    place: same_height: as high in the picture as it was found, within 5 % of the height, and anywhere along the width.
    empty_only: Paste only onto pictures without objects. Otherwise also beside objects, never over one.
    """

    file: str | None = None
    count: tuple[int, int] = (1, 2)
    scale: Range = (0.9, 1.1)
    margin: float = 0.15
    blend: Literal["feather", "poisson"] = "feather"
    place: Literal["same_height", "anywhere"] = "same_height"
    empty_only: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_paste(self)
        require(self.probability == 0 or self.file is not None, "file",
                "the file that `trainer mine-negatives` wrote, where probability is above 0", self.file)  # fmt: skip


@dataclass(frozen=True)
class CopyPasteConfig(Section):
    """Objects of other training pictures, pasted as objects.

    count: Fewest and most pastes in one picture.
    scale: Factor on the size relative to the picture that the object comes from.
    sides: Take only objects whose side (root of the area) is in this share of their picture's: [0, 0.1] copies small
        ones. An object is left out where its rectangle, with the surroundings, shows a part of another object.
    margin: Surroundings taken along on each side, as a share of the object's own sides. They fade out.
    blend: poisson: gradients only, by cv2.seamlessClone, so that light and color are the new picture's. It is slower.
    place: same_height: as high in the picture as it was found, within 5 % of the height, and anywhere along the width.
    max_cover: No other object may lose more than this share of its box to one paste.
    close_epochs: Off in this many epochs at the end.
    """

    count: tuple[int, int] = (1, 3)
    scale: Range = (0.8, 1.25)
    sides: Range = (0.0, 0.4)
    margin: float = 0.15
    blend: Literal["feather", "poisson"] = "feather"
    place: Literal["same_height", "anywhere"] = "anywhere"
    max_cover: float = 0.3
    close_epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_paste(self)
        require(0 <= self.sides[0] < self.sides[1] <= 1, "sides", "[low, high] within 0..1", self.sides)
        require(0 <= self.max_cover < 1, "max_cover", "0 up to 1", self.max_cover)
        require(self.close_epochs >= 0, "close_epochs", "0 or more", self.close_epochs)


def _check_paste(config: HardNegativesConfig | CopyPasteConfig) -> None:
    _span(config.scale, "scale", 0.1, 10)
    require(1 <= config.count[0] <= config.count[1] <= 50, "count", "[low, high] within 1..50", config.count)
    require(0 <= config.margin <= 1, "margin", "a share from 0 to 1", config.margin)


@dataclass(frozen=True)
class TrivialConfig(Section):
    """TrivialAugment (Müller, Hutter 2021): one operation, drawn evenly, at a strength drawn evenly.

    strength: 1 reaches up to shear 0.3, shift 0.3 of the side, 30 degrees, and factors from 0.1 to 1.9.
    geometric: Also use operations that move pixels; false: only those on color.
    """

    strength: float = 1.0
    geometric: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.strength <= 1, "strength", "above 0, at most 1", self.strength)


@dataclass(frozen=True)
class AutoConfig(Section):
    """AutoAugment for detection (Zoph et al. 2019): one sub-policy, drawn evenly, its steps each by its probability.

    policy: v0: the paper's policy. Or your own list of sub-policies, each a list of steps [operation, probability,
        level 0..10].
    """

    policy: Literal["v0"] | tuple[tuple[tuple[str, float, float], ...], ...] = "v0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.policy, str):
            return
        require(bool(self.policy), "policy", "v0, or at least one sub-policy", self.policy)
        for name, probability, level in (step for steps in self.policy for step in steps):
            if name not in OPERATIONS:
                raise ConfigError(f"policy: unknown operation {name!r}{nearest(name, OPERATIONS)}")
            require(0 <= probability <= 1, f"policy: probability of {name}", "a number from 0 to 1", probability)
            require(0 <= level <= 10, f"policy: level of {name}", "a number from 0 to 10", level)


@dataclass(frozen=True)
class CropConfig(Section):
    """A random crop around objects (after SSD, Liu et al. 2016, and RandomIoUCrop): small objects come out larger.

    sides: Height and width of the crop, as shares of the picture's.
    aspect: Width over height of the crop, relative to the picture's own.
    measure: share: every object in the crop keeps that share of its box, so that small and large ones count alike; the
        crop holds one object, drawn evenly, whole where it fits. iou: the crop overlaps some object by that IoU (SSD),
        which a small object can never reach.
    least: The least share or IoU is drawn from these.
    tries: A crop that does not reach `least` is drawn again this many times. Then the picture stays whole.
    """

    sides: Range = (0.3, 1.0)
    aspect: Range = (0.5, 2.0)
    measure: Literal["share", "iou"] = "share"
    least: tuple[float, ...] = (0.5, 0.7, 0.9, 1.0)
    tries: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        _span(self.sides, "sides", 0.05, 1)
        _span(self.aspect, "aspect", 0.1, 10)
        require(bool(self.least) and all(0 <= v <= 1 for v in self.least), "least", "numbers from 0 to 1", self.least)
        require(1 <= self.tries <= 1000, "tries", "1 to 1000", self.tries)


@dataclass(frozen=True)
class MultiScaleConfig(Section):
    """Another input size. A batch is padded to its largest picture, so memory follows the upper end.

    factor: Factor on the input's sides; under the short-side rule on the short and the long side.
    multiple: Sides of the input are rounded to multiples of this.
    """

    factor: Range = (0.75, 1.25)
    multiple: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _span(self.factor, "factor", 0.25, 4)
        require(self.multiple >= 32 and self.multiple % 32 == 0, "multiple", "a multiple of 32", self.multiple)


@dataclass(frozen=True)
class MosaicConfig(Section):
    """Four pictures in one (YOLOv4, Bochkovskiy et al. 2020): small objects, and objects cut by edges.

    scale: Factor on each picture, on top of the letterbox's own; it replaces augment.scale.
    center: Where the four meet, as a share of the input's sides.
    close_epochs: Off in this many epochs at the end, so that training ends on pictures as they are (YOLOX).
    """

    scale: Range = (0.5, 1.2)
    center: Range = (0.3, 0.7)
    close_epochs: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        _span(self.scale, "scale", 0.1, 4)
        _span(self.center, "center", 0.1, 0.9)
        require(self.close_epochs >= 0, "close_epochs", "0 or more", self.close_epochs)


@dataclass(frozen=True)
class DistortConfig(Section):
    """Photometric distortion beyond brightness, contrast, saturation and hue, which are keys of `augment` itself.

    gamma: Smallest and largest exponent of the pixels.
    gray: Share of the distorted pictures that lose their color.
    shuffle: Share of the distorted pictures whose channels change places.
    """

    gamma: Range = (0.7, 1.5)
    gray: float = 0.1
    shuffle: float = 0.1

    OLD_NAMES = {"grey": "gray"}

    def __post_init__(self) -> None:
        super().__post_init__()
        _span(self.gamma, "gamma", 0.1, 10)
        for key in ("gray", "shuffle"):
            require(0 <= getattr(self, key) <= 1, key, "a share from 0 to 1", getattr(self, key))


@dataclass(frozen=True)
class BlurConfig(Section):
    """Blur, Gaussian or along a line.

    sigma: Standard deviation of the Gaussian, in input pixels.
    motion: Share of the blurred pictures that are blurred along a line, as by a moving camera.
    length: Length of that line, in input pixels.
    """

    sigma: Range = (0.4, 1.6)
    motion: float = 0.3
    length: Range = (3.0, 9.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        _span(self.sigma, "sigma", 0.1, 20)
        _span(self.length, "length", 1, 99)
        require(0 <= self.motion <= 1, "motion", "a share from 0 to 1", self.motion)


@dataclass(frozen=True)
class NoiseConfig(Section):
    """Gaussian noise.

    sigma: Standard deviation, in gray levels of 0..255.
    gray: Share with the same noise in all three channels.
    """

    sigma: Range = (2.0, 15.0)
    gray: float = 0.5

    OLD_NAMES = {"grey": "gray"}

    def __post_init__(self) -> None:
        super().__post_init__()
        _span(self.sigma, "sigma", 0.1, 100)
        require(0 <= self.gray <= 1, "gray", "a share from 0 to 1", self.gray)


@dataclass(frozen=True)
class JpegConfig(Section):
    """Compression as JPEG and back.

    quality: Lowest and highest quality, 1 to 100.
    """

    quality: tuple[int, int] = (30, 90)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(1 <= self.quality[0] <= self.quality[1] <= 100, "quality", "[low, high] within 1..100", self.quality)


@dataclass(frozen=True)
class MixupConfig(Section):
    """Two views laid over each other (Zhang et al. 2019, for detection): the objects of both stay targets.

    alpha: The weight is drawn from Beta(alpha, alpha): 1 gives anything, 8 mostly 0.3 to 0.7.
    close_epochs: Off in this many epochs at the end.
    """

    alpha: float = 8.0
    close_epochs: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0.1 <= self.alpha <= 100, "alpha", "0.1 to 100", self.alpha)
        require(self.close_epochs >= 0, "close_epochs", "0 or more", self.close_epochs)


def _span(value: tuple[float, float], key: str, low: float, high: float) -> None:
    require(low <= value[0] <= value[1] <= high, key, f"[low, high] within {low:g}..{high:g}", value)
