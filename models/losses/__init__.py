"""Losses, element by element and in float32 at least; who sums and divides is `models.loss`."""
