"""Holes in encoded pictures: zeros where a file system lost blocks. Decoders show something in their place.

Compressed pixels hold no long runs of zeros, with one exception: a code whose all-zero word means "nothing more here",
as flat pictures have it. There nothing is said.
"""

from __future__ import annotations

ZEROS = bytes(512)
"""The least that a disk loses."""
HOLE = "zeros stand where its pixels were, as after a loss of power; copy or make it again"
