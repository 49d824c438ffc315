"""One training view of a picture: all augmentations, in the order of the fields of `AugmentConfig`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from runtime.images.image import FixedSize, Image, Resize
from trainer.augment.color import distort, jitter_color
from trainer.augment.crop import random_crop
from trainer.augment.degrade import blur, jpeg, noise
from trainer.augment.geometry import (
    Boxes,
    Labels,
    Picture,
    Placement,
    boxes_in_window,
    flip_horizontal,
    flip_vertical,
    least_visible,
    random_placement,
    random_size,
    resized_placement,
    visible_boxes,
)
from trainer.augment.mixing import mixup, mosaic
from trainer.augment.paste import paste_all
from trainer.augment.policy import Effect, apply_to_picture, auto_steps, trivial_steps
from trainer.augment.sources import Sources
from trainer.config.augment import AugmentConfig
from trainer.custom import custom_augmentations


def augment(
    image: Image,
    boxes_xyxy: Boxes,
    labels: Labels,
    resize: Resize,
    config: AugmentConfig,
    rng: np.random.Generator,
    sources: Sources | None = None,
) -> tuple[Image, Boxes, Labels]:
    """One training view of a picture: (input uint8 [H,W,3], boxes [G,4] in input pixels, labels [G]).

    Where no augmentation happens, the pixels are those of the letterbox. G may change: `visible_boxes` says which boxes
    stay, and ignore regions (negative labels) always stay; mosaic, mixup and copy_paste add objects of other pictures.
    These, hard_negatives and the transforms of other libraries need `sources`, and raise ValueError without. A step
    that finds no place or no readable picture is skipped.
    """
    if sources is None:
        if needed := needs_sources(config):
            raise ValueError(f"augment: {', '.join(needed)} need `sources` to draw from")
        sources = Sources()
    run = _Run(config, sources, rng)
    if run.fires(config.multi_scale.probability):
        resize = random_size(resize, config.multi_scale, rng)
    view = run.view(Picture(image, boxes_xyxy, labels), resize)
    if run.fires(config.mixup.probability) and (second := sources.picture(rng)) is not None:
        fill_bgr = resize.fit((image.shape[0], image.shape[1])).fill_bgr
        view = mixup(view, run.view(second, FixedSize(view.size_hw, fill_bgr)), config.mixup, rng)
    return view


def needs_sources(config: AugmentConfig) -> list[str]:
    """The sections of `config` that are on and draw from more than the picture itself."""
    sections = ("hard_negatives", "copy_paste", "mosaic", "mixup")
    needed = [name for name in sections if getattr(config, name).probability]
    return needed + [name for name in ("torchvision", "albumentations") if getattr(config, name)]


def closed(config: AugmentConfig, epochs_left: int) -> AugmentConfig:
    """`config` for an epoch with `epochs_left` to go, itself included: without the sections that have ended."""
    ended = [name for name, last in config.closing.items() if epochs_left <= last]
    return replace(config, **{name: replace(getattr(config, name), probability=0.0) for name in ended})


@dataclass(frozen=True)
class _Run:
    config: AugmentConfig
    sources: Sources
    rng: np.random.Generator

    def fires(self, probability: float) -> bool:
        """Whether an augmentation happens. One that is off draws nothing, so that the others' numbers stay the same."""
        return probability > 0 and self.rng.random() < probability

    def view(self, picture: Picture, resize: Resize) -> Picture:
        """`picture` in its input, alone or as one of four; boxes clipped."""
        config, rng = self.config, self.rng
        fitted = resize.fit(picture.size_hw)
        if self.fires(config.mosaic.probability):
            pictures = [picture, *(self.sources.picture(rng) for _ in range(3))]
            return mosaic(pictures, fitted.size_hw, fitted.fill_bgr, config.mosaic, rng, self.tile)
        picture, effects = self.prepared(picture, fitted.fill_bgr)
        placement = resized_placement(picture.size_hw, resize)
        if rng.random() < config.scale_probability:
            placement = random_placement(placement.source_hw, placement.size_hw, config.scale, rng, placement.fill_bgr)
        return self.placed(picture, placement, effects)

    def tile(self, picture: Picture, placement: Placement) -> Picture:
        """A part of a mosaic. A crop is enlarged to the area that the whole picture would have had there."""
        source_hw, size_hw = placement.source_hw, placement.size_hw
        picture, effects = self.prepared(picture, placement.fill_bgr)
        h, w = picture.size_hw
        if (h, w) != source_hw:
            scale = placement.resized_hw[0] / source_hw[0] * np.sqrt(source_hw[0] * source_hw[1] / (h * w))
            factor = scale / min(size_hw[0] / h, size_hw[1] / w)
            placement = random_placement((h, w), size_hw, (factor, factor), self.rng, placement.fill_bgr)
        return self.placed(picture, placement, effects)

    def prepared(self, picture: Picture, fill_bgr: tuple[int, int, int]) -> tuple[Picture, list[Effect]]:
        """The picture after all steps before the resize, and the effects that were drawn for the input's pixels."""
        config, rng = self.config, self.rng
        if config.own:
            picture = Picture(*custom_augmentations(config.own, *picture, rng))
        picture = self.pasted(picture)
        if rng.random() < config.flip:  # before the letterbox, so that its border stays right and below
            picture = Picture(*flip_horizontal(picture.image, picture.boxes_xyxy), picture.labels)
        if self.fires(config.flip_vertical):
            picture = Picture(*flip_vertical(picture.image, picture.boxes_xyxy), picture.labels)
        steps = trivial_steps(config.trivial, rng) if self.fires(config.trivial.probability) else []
        steps += auto_steps(config.auto, rng) if self.fires(config.auto.probability) else []
        picture, effects = apply_to_picture(picture, steps, fill_bgr, rng)
        for transform in self.sources.transforms:
            picture = transform(self.clipped(picture), rng)
        if self.fires(config.crop.probability):
            picture = random_crop(self.clipped(picture), config.crop, rng)
        return picture, effects

    def pasted(self, picture: Picture) -> Picture:
        config, rng = self.config, self.rng
        negatives, objects = config.hard_negatives, config.copy_paste
        if self.fires(negatives.probability) and not (negatives.empty_only and (picture.labels >= 0).any()):
            count = int(rng.integers(negatives.count[0], negatives.count[1] + 1))
            patches = [self.sources.negative_patch(negatives, rng) for _ in range(count)]
            picture = paste_all(picture, patches, negatives, config.min_visible, rng)
        if self.fires(objects.probability):
            picture = paste_all(picture, self.sources.object_patches(objects, rng), objects, config.min_visible, rng)
        return picture

    def clipped(self, picture: Picture) -> Picture:
        """`picture` with its boxes clipped: shears and turns may have moved a part of one, or all of it, outside."""
        image, boxes, labels = picture
        height, width = picture.size_hw
        if not len(boxes) or not ((boxes[:, :2] < 0).any() or (boxes[:, 2:] > (width, height)).any()):
            return picture
        boxes, keep = visible_boxes(boxes, (height, width), least_visible(labels, self.config.min_visible))
        return Picture(image, boxes[keep], labels[keep])

    def placed(self, picture: Picture, placement: Placement, effects: list[Effect]) -> Picture:
        """The input: the picture resized, then the effects on the pixels that it covers; boxes clipped to those."""
        config, rng = self.config, self.rng
        view, window = placement.apply(picture.image), placement.window
        for effect in effects:
            view[window] = effect(view[window])
        if rng.random() < config.color_probability:
            view[window] = jitter_color(view[window], config, rng)
        if self.fires(config.distort.probability):
            view[window] = distort(view[window], config.distort, rng)
        if self.fires(config.blur.probability):
            view[window] = blur(view[window], config.blur, rng)
        if self.fires(config.noise.probability):
            view[window] = noise(view[window], config.noise, rng)
        if self.fires(config.jpeg.probability):
            view[window] = jpeg(view[window], config.jpeg, rng)
        least = least_visible(picture.labels, config.min_visible)
        boxes, keep = boxes_in_window(placement.boxes(picture.boxes_xyxy), window, least)
        return Picture(view, boxes[keep], picture.labels[keep])
