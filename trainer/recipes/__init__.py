"""Data sets made on the spot, with nothing to download: real handwritten digits, and plain shapes."""

from trainer.recipes.digits import make_digits
from trainer.recipes.digits_video import digits_video
from trainer.recipes.shapes import make_shapes
from trainer.recipes.writer import RecipeError

__all__ = ["RecipeError", "digits_video", "make_digits", "make_shapes"]
