"""Distillation: a trained detector teaches a smaller one. The teacher is never validated, saved or exported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isodet.strict import ConfigError
from models.checkpoint import CheckpointError, build_detector, read_checkpoint
from models.config.model import ModelConfig, model_config
from models.detector import Detector as Network
from models.detector import Raw
from models.loss import score_logits
from models.losses.classification import quality_focal_loss
from models.losses.precision import wide
from runtime.card.card import sha256_file
from trainer.config.extras import DistillConfig, require_comparable
from trainer.config.train import TrainConfig


@dataclass(frozen=True)
class Distillation:
    config: DistillConfig
    student: ModelConfig
    teacher: Network
    """In eval mode, without gradients."""
    teacher_sha256: str

    def loss(
        self, images: Tensor, raw: Raw, levels: Sequence[Tensor], amp: torch.dtype | None,
        total: Callable[[Tensor], Tensor],
    ) -> Tensor:  # fmt: skip
        """The weighted loss of the student's `raw` and `levels` against the teacher's, on uint8 images [B, H, W, 3].

        The teacher runs under the student's precision `amp`; the loss is float32. `total` sums a tensor over the
        processes that share the batch, and the loss is the part of this process.
        """
        config = self.config
        with torch.no_grad(), torch.autocast(images.device.type, amp, enabled=amp is not None):
            if config.features:
                teacher, teacher_levels = self.teacher.with_levels(images)
            else:
                teacher, teacher_levels = self.teacher(images), []
        loss = raw.logits.new_zeros(())
        if config.logits:
            ours, theirs = score_logits(self.student, raw), score_logits(self.teacher.config, teacher)
            part = logit_loss(ours, theirs, config.region, config.temperature, total)
            loss = loss + config.logits * part
        if config.features:
            part = feature_loss(levels, teacher_levels, config.temperature, total)
            loss = loss + config.features * part
        return loss


def logit_loss(
    student: Tensor, teacher: Tensor, region: float, temperature: float, total: Callable[[Tensor], Tensor]
) -> Tensor:
    """Quality focal loss of the student's class logits [B, N, C] against the teacher's probabilities, a scalar.

    Dense Teacher (Zhou et al., ECCV 2022, and its code): the sum of |t - s|^2 BCE(s, t) over the priors of which the
    teacher's largest probability is the highest, a share `region` (the paper's: 0.01), divided by the sum of those
    probabilities. Two things differ: the share is taken in each image, so that a batch may be split over processes, and
    the divisor is at least 1, as in the detection loss. Where both agree the loss and its gradient are 0.
    Logits are divided by `temperature` and the loss multiplied by its square (Hinton et al., 2015, section 2).
    """
    targets = (wide(teacher) / temperature).sigmoid()
    surest = targets.amax(dim=-1)  # [B, N]
    chosen = max(1, round(region * surest.shape[1]))
    scores, where = surest.topk(chosen, dim=1)  # [B, chosen]
    divisor = total(scores.sum()).clamp(min=1)
    pick = where[..., None].expand(-1, -1, student.shape[-1])
    each = quality_focal_loss(wide(student).gather(1, pick) / temperature, targets.gather(1, pick))
    return temperature**2 * each.sum() / divisor


def feature_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], temperature: float, total: Callable[[Tensor], Tensor]
) -> Tensor:
    """Channel-wise distillation between L levels [B, c, h, w], a scalar.

    Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021, equations 4 and 5: each channel
    is a distribution over its cells, by a softmax of its values / temperature, and the loss is temperature^2 times
    the KL divergence of the student's from the teacher's, averaged over channels and images, summed over levels.
    """
    loss = student[0].new_zeros((), dtype=torch.float32)
    for levels in zip(student, teacher, strict=True):
        log_s, log_t = ((wide(level).flatten(2) / temperature).log_softmax(dim=-1) for level in levels)
        loss = loss + (log_t.exp() * (log_t - log_s)).sum() / log_s.shape[1]
    return temperature**2 * loss / total(loss.new_tensor(float(len(student[0]))))


def require_teacher(config: TrainConfig) -> None:
    """Raise `ConfigError` where `distill.teacher` is not a checkpoint that can teach `config`'s model."""
    assert config.distill is not None
    path = config.distill.teacher
    try:
        card = read_checkpoint(path)["card"]
        teacher = model_config(card.get("model"), "card.model")
    except CheckpointError as error:
        raise ConfigError(f"distill.teacher: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"distill.teacher: {path}: {error}") from None
    if card.get("quantization"):
        raise ConfigError(f"distill.teacher: {path} is 8-bit; name the float checkpoint that it came from")
    require_comparable(config.distill, config.model, teacher)


def build_distillation(config: TrainConfig, model: Network) -> Distillation | None:
    """The teacher of `config` beside `model`, on its device, or None without one.

    Raises `ConfigError` for a teacher that does not fit, `CheckpointError` for one that cannot be built.
    """
    if config.distill is None:
        return None
    require_teacher(config)
    distill = config.distill
    device = next(model.parameters()).device
    teacher, _ = build_detector(distill.teacher)
    teacher = teacher.to(device).requires_grad_(False)
    if config.channels_last:
        teacher = teacher.to(memory_format=torch.channels_last)
    return Distillation(distill, model.config, teacher, sha256_file(distill.teacher))


def build_adapters(distillation: Distillation | None, model: Network) -> nn.ModuleList:
    """1x1 convolutions, one for each level of `model`, where its pyramid is compared with one of another width."""
    adapters = nn.ModuleList()
    if distillation is not None and distillation.config.features:
        channels, teacher_channels = model.config.neck.channels, distillation.teacher.config.neck.channels
        first, last = model.config.neck.levels
        if channels != teacher_channels:
            adapters.extend(nn.Conv2d(channels, teacher_channels, 1) for _ in range(first, last + 1))
    return adapters


def describe(distillation: Distillation | None) -> str:
    """A sentence on the teacher for the start of a run; '' without a teacher."""
    if distillation is None:
        return ""
    config, model = distillation.config, distillation.teacher.config
    parameters = sum(p.numel() for p in distillation.teacher.parameters())
    return (
        f"taught by {config.teacher}: {model.detector} on {model.backbone.name} x{model.backbone.width:g}, "
        f"{parameters / 1e6:.1f} M parameters; logits x{config.logits:g}, features x{config.features:g}"
    )
