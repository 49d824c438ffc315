"""The loss of distances that are predicted as distributions (`box.code: dfl`)."""

from __future__ import annotations

from torch import Tensor

from models.losses.precision import wide


def distribution_focal_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Cross entropy [...] of logits [..., bins] with the two whole numbers around each of distances [...].

    Li et al., Generalized Focal Loss, NeurIPS 2020, equation 6: -((i + 1 - y) log p_i + (y - i) log p_(i + 1)) for a
    distance y between i and i + 1. Distances outside 0..bins - 1, which no distribution has, count as the nearest end.
    """
    log_p = wide(logits).log_softmax(dim=-1)
    last = log_p.shape[-1] - 1
    distances = distances.clamp(0, last)
    below = distances.long().clamp(max=last - 1)  # [...]
    part = distances - below
    near = log_p.gather(-1, below[..., None]).squeeze(-1)
    far = log_p.gather(-1, below[..., None] + 1).squeeze(-1)
    return -((1 - part) * near + part * far)
