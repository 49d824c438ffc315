"""Holes in encoded pictures: zeros where a file system lost blocks. Decoders show other pixels in their place.

Compressed pixels have no long runs of zeros, with one exception: a code whose all-zero word means "nothing more here",
as in flat pictures. There, zeros are not reported.
"""

from __future__ import annotations

ZEROS = bytes(512)
"""The smallest block that a disk loses."""
HOLE = "zeros stand where its pixels were, as after a loss of power; copy or make it again"
