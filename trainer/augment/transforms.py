"""Transforms of torchvision.transforms.v2 and of albumentations, by name, between our pictures and theirs.

Both work in RGB and draw from generators of their own, which are seeded from ours before each call. albumentations
keeps boxes as shares of the picture, exact to about 1e-4 pixels.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from isodet.strict import ConfigError, nearest
from runtime.images.image import Image
from trainer.augment.geometry import Picture
from trainer.config.augment import AugmentConfig

Transform = Callable[[Picture, np.random.Generator], Picture]


def make_transforms(config: AugmentConfig) -> tuple[Transform, ...]:
    """The transforms that `config` names. Raises `ConfigError` for unknown ones, wrong arguments, a missing library."""
    libraries = ((TorchvisionTransforms, config.torchvision), (AlbumentationsTransforms, config.albumentations))
    return tuple(make(steps) for make, steps in libraries if steps)


class TorchvisionTransforms:
    """`steps` in a row. Raises `ConfigError` for a name or argument that torchvision does not know."""

    def __init__(self, steps: tuple[dict[str, Any], ...]) -> None:
        from torchvision.transforms import v2

        self._compose = v2.Compose(_built("torchvision", v2, v2.Transform, steps))

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        import torch
        from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat
        from torchvision.tv_tensors import Image as TvImage

        boxes = torch.from_numpy(picture.boxes_xyxy)
        sample = {
            "image": TvImage(torch.from_numpy(np.ascontiguousarray(picture.image[:, :, ::-1].transpose(2, 0, 1)))),
            "boxes": BoundingBoxes(boxes, format=BoundingBoxFormat.XYXY, canvas_size=picture.size_hw),
            "labels": torch.arange(len(picture.labels)),
        }
        state = torch.get_rng_state()
        torch.default_generator.manual_seed(int(rng.integers(2**63)))  # the CPU's only: torch.manual_seed takes all
        try:
            out = self._compose(sample)
        finally:
            torch.set_rng_state(state)
        image = out["image"]
        _require_picture("torchvision", "[3,h,w]", image, image.dtype == torch.uint8, image.shape[:1])
        pixels = np.ascontiguousarray(image.numpy().transpose(1, 2, 0)[:, :, ::-1])
        return _returned(picture, pixels, out["boxes"].numpy(), out["labels"].numpy(), "torchvision")


class AlbumentationsTransforms:
    """`steps` in a row. Raises `ConfigError` where albumentations is not installed, or does not know a step."""

    def __init__(self, steps: tuple[dict[str, Any], ...]) -> None:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else its import asks the network for a newer version
        try:
            import albumentations
        except ImportError as error:
            raise ConfigError(
                "augment.albumentations: albumentations is not installed; pip install "
                f"'isodet[albumentations]', or take these steps out ({error})"
            ) from None
        if not hasattr(albumentations.Compose, "set_random_seed"):
            raise ConfigError(f"augment.albumentations: version 2 is needed, {albumentations.__version__} is installed")
        built = _built("albumentations", albumentations, albumentations.BasicTransform, steps)
        with warnings.catch_warnings():  # it warns where no step moves boxes, which is as good
            warnings.filterwarnings("ignore", message="Got processor for bboxes")
            self._compose = albumentations.Compose(
                built, bbox_params=albumentations.BboxParams("pascal_voc", label_fields=["rows"])
            )

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        self._compose.set_random_seed(int(rng.integers(2**32)))
        rows = np.arange(len(picture.labels))
        rgb = np.ascontiguousarray(picture.image[:, :, ::-1])
        out = self._compose(image=rgb, bboxes=picture.boxes_xyxy.astype(np.float64), rows=rows)
        image = out["image"]
        _require_picture("albumentations", "[h,w,3]", image, image.dtype == np.uint8, image.shape[2:])
        bgr = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), np.uint8)
        kept = np.array(out["rows"], np.float64).astype(np.int64)
        return _returned(picture, bgr, np.array(out["bboxes"], np.float32).reshape(-1, 4), kept, "albumentations")


def _require_picture(key: str, shape: str, image: Any, is_uint8: bool, channels: tuple[int, ...]) -> None:
    if not is_uint8 or image.ndim != 3 or tuple(channels) != (3,):
        raise ConfigError(
            f"augment.{key}: expected a uint8 picture {shape} after it, got {image.dtype} {list(image.shape)}; leave "
            "out what changes the type"
        )


def _returned(picture: Picture, image: Image, boxes: Any, rows: Any, key: str) -> Picture:
    """The transformed picture, without boxes that have lost their area."""
    if len(boxes) != len(rows):
        raise ConfigError(
            f"augment.{key}: {len(boxes)} boxes came back with {len(rows)} labels; a transform that "
            "leaves boxes out must leave out their labels, too"
        )
    boxes = np.asarray(boxes, np.float32)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return Picture(image, boxes[kept], picture.labels[rows[kept]])


def _built(key: str, module: Any, kind: type, steps: tuple[dict[str, Any], ...]) -> list[Any]:
    """One object for each step. Lists become tuples, as both libraries have them."""
    known = [name for name, value in vars(module).items() if inspect.isclass(value) and issubclass(value, kind)]
    built = []
    for ((name, values),) in (step.items() for step in steps):
        if name not in known:
            hint = nearest(name, known)
            hint = hint if "did you mean" in hint else ""  # all names would be too many
            raise ConfigError(f"augment.{key}: {module.__name__} has no transform {name!r}{hint}")
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in (values or {}).items()}
        try:
            with warnings.catch_warnings():  # albumentations takes unknown arguments with a warning only
                warnings.filterwarnings("error", message=".*not valid for transform.*")
                built.append(getattr(module, name)(**arguments))
        except (TypeError, ValueError, UserWarning) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"augment.{key}: {name} does not take {arguments}: {reason}") from None
    return built
