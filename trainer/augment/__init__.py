"""Augmentation: what may happen to a training picture and its boxes on the way into the network's input.

Every function is pure: it draws from the generator that it is given and changes none of its arguments.
Boxes are float32 pixels, and stay exact: a pixel edge at x in the source is at x * scale + offset after. They are
clipped once, at the end, so that every step sees how large an object really is.
"""

from trainer.augment.color import jitter_color
from trainer.augment.geometry import flip_horizontal, random_placement, resized_placement, visible_boxes
from trainer.augment.pipeline import augment

__all__ = ["augment", "flip_horizontal", "jitter_color", "random_placement", "resized_placement", "visible_boxes"]
