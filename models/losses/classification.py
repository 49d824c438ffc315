"""Losses of class logits [...] against targets [...] in 0..1; each class has its own sigmoid."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses.precision import wide


def bce_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy per element."""
    return F.binary_cross_entropy_with_logits(wide(logits), targets, reduction="none")


def smoothed(targets: Tensor, smoothing: float | Tensor) -> Tensor:
    """Targets moved towards 1/2: t (1 - e) + e / 2 for a `smoothing` e, a number or one per element [...].

    Label smoothing (Szegedy et al., 2016, section 7) for two classes.
    """
    return targets * (1 - smoothing) + smoothing / 2


def focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sigmoid focal loss of logits [...] against 0/1 targets [...], per element (RetinaNet, equation 5)."""
    logits = wide(logits)
    p = logits.sigmoid()
    wrong = p * (1 - targets) + (1 - p) * targets  # 1 - p_t
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return alpha_t * _power(wrong, gamma) * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def quality_focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """|t - p|^gamma BCE(p, t) per element (Li et al., Generalized Focal Loss, 2020, equation 2; its beta is gamma).

    targets: the IoU of the prediction at the object's class, 0 elsewhere.
    """
    logits = wide(logits)
    error = (targets - logits.sigmoid()).abs()
    return _power(error, gamma) * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def joint_logits(logits: Tensor, quality: Tensor) -> Tensor:
    """Logits [...] of the product of two probabilities, given by their logits [...], which broadcast.

    Generalized Focal Loss V2 (Li et al., CVPR 2021) teaches such a product. Its authors' code takes the cross entropy
    of the probability, whose logarithm is cut off where it rounds to 0 or 1. The logit of p(x) p(y) is
    -ln(e^-x + e^-y + e^-(x + y)), written here so that nothing overflows.
    """
    logits, quality = wide(logits), wide(quality)
    return -torch.logaddexp(F.softplus(-quality) - logits, -quality)


def varifocal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """t BCE(p, t) where t > 0 and alpha p^gamma BCE(p, 0) elsewhere (Zhang et al., VarifocalNet, 2021, equation 2).

    targets: as for `quality_focal_loss`. Only negatives are damped. Positives are few, and count by their IoU.
    """
    logits = wide(logits)
    weight = torch.where(targets > 0, targets, alpha * _power(logits.sigmoid(), gamma))
    return weight * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def _power(x: Tensor, gamma: float) -> Tensor:
    """x^gamma for x in 0..1. For gamma below 1, whose slope at 0 is infinite, x is at least 1e-12."""
    return (x.clamp(min=1e-12) if 0 < gamma < 1 else x) ** gamma


def ghm_loss(
    logits: Tensor, targets: Tensor, counted: Tensor, bins: int = 10, total: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Cross entropy per element, weighted by `ghm_weights`: the sum is the loss of the batch."""
    return ghm_weights(logits, targets, counted, bins, total) * bce_loss(logits, targets)


@torch.no_grad()
def ghm_weights(
    logits: Tensor, targets: Tensor, counted: Tensor, bins: int = 10, total: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Weight of each element's cross entropy in GHM-C [...]; 0 where `counted` (bool, broadcasts) is False.

    Gradient Harmonized Single-stage Detector (Li et al., AAAI 2019), equations 5 to 9: g = |p - t| is the size of an
    element's gradient, and its weight is 1 / (elements in its bin of g), so that all bins with elements count equally.
    The sum of weight * cross entropy is the loss: the mean over bins of each bin's mean. It is not divided by the
    positives again. As in the authors' code, bins without elements are left out.

    The bins are counted in this batch alone. The paper's running mean (momentum 0.75) would make the loss depend on
    earlier batches; it would have to be in checkpoints and would differ between processes. The 10^5 elements of a dense
    detector's batch are enough for ten bins, and mmdetection's default momentum is 0 too. total: sums the counts over
    the processes that share a batch.
    """
    gradient = (wide(logits).sigmoid() - targets).abs()
    counted = counted.expand(gradient.shape)
    index = (gradient * bins).long().clamp(max=bins - 1).masked_fill(~counted, bins)
    count = torch.bincount(index.flatten(), minlength=bins + 1)
    count = count if total is None else total(count)
    filled = (count[:bins] > 0).sum().clamp(min=1)
    weights = 1 / (count.clamp(min=1) * filled).to(gradient.dtype)
    weights[bins] = 0
    return weights[index]


@torch.no_grad()
def hardest(losses: Tensor, positive: Tensor, negative: Tensor, ratio: float) -> Tensor:
    """Online hard example mining: which priors count, bool [B, N], chosen by their losses [B, N].

    These are all `positive` [B, N] and, of the `negative` [B, N] of each image, those with the highest losses: at most
    `ratio` times the image's positives (SSD, Liu et al., 2016, section 2.2: 3), or `ratio` in an image without
    positives, which would otherwise teach nothing.
    """
    most = (ratio * positive.sum(dim=1, keepdim=True).clamp(min=1)).ceil()  # [B, 1]
    order = losses.masked_fill(~negative, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(losses.shape[1], device=losses.device).expand_as(order) < most
    return positive | (negative & torch.zeros_like(negative).scatter(1, order, chosen))
