"""The operations of `trainer.augment` against those of the same name in torchvision.transforms.v2.functional.

    python benchmarks/augment_torchvision.py [--rounds 15]

Pixels and time, on a photograph at 320x320 and at 1280x720, with one thread. Both sides take and give uint8 [h, w, 3]
BGR arrays, as the augmentation pipeline does, so that torchvision's time includes its view as a tensor [3, h, w] and,
where an operation weighs the channels, the reversal to RGB and back. Torchvision's operation replaces ours where all
pixels are equal and its time is at most 1.3 times ours at both sizes. Noise is random: its pixels are not compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torchvision
from torchvision.transforms.v2 import functional

from runtime.images.image import Image
from trainer.augment import color
from trainer.augment.color import distort, jitter_color
from trainer.augment.degrade import blur, jpeg, noise
from trainer.augment.geometry import Boxes, flip_horizontal, flip_vertical
from trainer.config.augment import AugmentConfig
from trainer.config.augment_sections import BlurConfig, DistortConfig, JpegConfig, NoiseConfig
from trainer.recipes.glyphs import VAL_SAMPLES, load_material

SIZES_HW = ((320, 320), (720, 1280))
SLOWER = 1.3
Operation = Callable[[Image], Image]


def as_array(operation: Callable[[torch.Tensor], torch.Tensor], rgb: bool = False) -> Operation:
    """`operation` of uint8 tensors [3, h, w] as one of BGR arrays; `rgb`: it needs the channels in that order."""

    def apply(image: Image) -> Image:
        tensor = torch.from_numpy(image).permute(2, 0, 1)
        result = operation(tensor.flip(0)).flip(0) if rgb else operation(tensor)
        return np.ascontiguousarray(result.permute(1, 2, 0).numpy())

    return apply


def operations() -> dict[str, tuple[Operation, Operation]]:
    """(ours, torchvision's) by name, at a fixed strength."""
    rng, f, no_boxes = np.random.default_rng(0), functional, np.zeros((0, 4), np.float32)
    hue = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0.1)
    gamma = DistortConfig(gamma=(1.5, 1.5), gray=0, shuffle=0)
    gray = DistortConfig(gamma=(1, 1), gray=1, shuffle=0)

    def flipped(flip: Callable[[Image, Boxes], tuple[Image, Boxes]]) -> Operation:
        return lambda image: flip(image, no_boxes)[0]

    return {
        "brightness 1.4": (lambda i: color.brightness(i, 1.4), as_array(lambda t: f.adjust_brightness(t, 1.4))),
        "contrast 1.4": (lambda i: color.contrast(i, 1.4), as_array(lambda t: f.adjust_contrast(t, 1.4), rgb=True)),
        "color 1.4": (lambda i: color.color(i, 1.4), as_array(lambda t: f.adjust_saturation(t, 1.4), rgb=True)),
        "sharpness 1.4": (lambda i: color.sharpness(i, 1.4), as_array(lambda t: f.adjust_sharpness(t, 1.4))),
        "autocontrast": (color.autocontrast, as_array(f.autocontrast)),
        "equalize": (color.equalize, as_array(f.equalize)),
        "posterize, 4 bits": (lambda i: color.posterize(i, 4), as_array(lambda t: f.posterize(t, 4))),
        "solarize 128": (lambda i: color.solarize(i, 128), as_array(lambda t: f.solarize(t, 128))),
        "hue 0.1": (lambda i: jitter_color(i, hue, _UpperEnd()),
                    as_array(lambda t: f.adjust_hue(t, 0.1), rgb=True)),
        "gamma 1.5": (lambda i: distort(i, gamma, rng), as_array(lambda t: f.adjust_gamma(t, 1.5))),
        "gray": (lambda i: distort(i, gray, rng), as_array(lambda t: f.rgb_to_grayscale(t, 3), rgb=True)),
        "Gaussian blur, sigma 1": (lambda i: blur(i, BlurConfig(sigma=(1, 1), motion=0), rng),
                                   as_array(lambda t: f.gaussian_blur(t, [7, 7], [1.0, 1.0]))),
        "Gaussian noise, sigma 10": (lambda i: noise(i, NoiseConfig(sigma=(10, 10), gray=0), rng),
                                     as_array(lambda t: f.gaussian_noise(t, 0, 10 / 255))),
        "JPEG, quality 60": (lambda i: jpeg(i, JpegConfig(quality=(60, 60)), rng),
                             as_array(lambda t: f.jpeg(t.contiguous(), 60), rgb=True)),
        "flip": (flipped(flip_horizontal), as_array(f.horizontal_flip)),
        "flip_vertical": (flipped(flip_vertical), as_array(f.vertical_flip)),
    }  # fmt: skip


class _UpperEnd(np.random.Generator):
    """A generator whose `uniform` gives the upper end, for operations that draw their strength."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        return high


def milliseconds(operation: Operation, image: Image) -> float:
    started = time.perf_counter()
    operation(image)
    return 1000 * (time.perf_counter() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    photograph = load_material(VAL_SAMPLES).photographs[0]
    images = [np.asarray(cv2.resize(photograph, (w, h)), np.uint8) for h, w in SIZES_HW]
    print(f"OpenCV {cv2.__version__}, torchvision {torchvision.__version__}, one thread, medians of {rounds}\n")
    print("| operation | pixels | 320x320, ms: ours / torchvision | 1280x720, ms: ours / torchvision | decision |\n"
          "|---|---|---|---|---|")  # fmt: skip
    for name, (ours, reference) in operations().items():
        largest, cells, fast = 0, [], True
        for image in images:
            difference = np.abs(ours(image).astype(int) - reference(image))
            largest = max(largest, int(difference.max()))
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                for operation, kept in zip((ours, reference), times, strict=True):
                    kept.append(milliseconds(operation, image))
            own, other = (statistics.median(kept) for kept in times)
            cells.append(f"{own:.2f} / {other:.2f}")
            fast &= other <= SLOWER * own
        random = "noise" in name
        pixels = "random" if random else f"differ by up to {largest}" if largest else "equal"
        decision = "torchvision's" if fast and not largest and not random else "ours"
        print(f"| {name} | {pixels} | {' | '.join(cells)} | {decision} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
