"""Losses of single elements, in float32 at least; `models.loss` sums and divides them."""
