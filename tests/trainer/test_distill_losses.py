"""The two losses of distillation, against sums written out from their papers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.extras.distill import feature_loss, logit_loss


def alone(value: Tensor) -> Tensor:
    return value


def test_logits_are_compared_where_the_teacher_is_surest():
    torch.manual_seed(0)
    student, teacher, t = torch.randn(2, 10, 3) - 1, 3 * torch.randn(2, 10, 3), 2.0
    expected, weight = 0.0, 0.0
    for s, z in zip(student.double(), teacher.double(), strict=True):
        surest = sorted(range(10), key=lambda n: -float((z[n] / t).sigmoid().max()))[:3]
        for n in surest:
            weight += float((z[n] / t).sigmoid().max())
            for c in range(3):
                p, q = (1 / (1 + math.exp(-float(x[n, c]) / t)) for x in (s, z))
                expected += (p - q) ** 2 * -(q * math.log(p) + (1 - q) * math.log(1 - p))
    assert weight > 1
    assert float(logit_loss(student, teacher, 0.3, t, alone)) == pytest.approx(t**2 * expected / weight, rel=1e-5)
    # A teacher that sees nothing does not count for more than one prior.
    faint = logit_loss(student, teacher - 20, 0.3, 1.0, alone)
    probabilities = (teacher - 20).sigmoid()
    where = probabilities.amax(-1).topk(3).indices[..., None].expand(-1, -1, 3)
    p, q = student.sigmoid().gather(1, where), probabilities.gather(1, where)
    torch.testing.assert_close(faint, ((p - q) ** 2 * F.binary_cross_entropy(p, q, reduction="none")).sum())


def test_features_are_compared_by_channel_over_the_cells():
    torch.manual_seed(0)
    sizes, t = ((4, 6), (2, 3), (1, 1)), 3.0
    student, teacher = ([2 * torch.randn(2, 5, h, w) for h, w in sizes] for _ in range(2))
    expected = 0.0
    for s, z in zip(student, teacher, strict=True):
        for image in range(2):
            for channel in range(5):
                p, q = ((x[image, channel].flatten() / t).softmax(0) for x in (s, z))
                expected += t**2 / 5 * float((q * (q / p).log()).sum()) / 2
    assert float(feature_loss(student, teacher, t, alone)) == pytest.approx(expected, rel=1e-4)
    # Of one cell there is nothing to say, and activations in half precision are compared in float32.
    assert float(feature_loss(student[2:], teacher[2:], t, alone)) == 0
    half = [[x.bfloat16() for x in levels] for levels in (student, teacher)]
    assert feature_loss(*half, t, alone).dtype == torch.float32
