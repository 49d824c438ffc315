"""The ResNet that a state dict belongs to, found by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torchvision.models.resnet import Bottleneck

from models.backbones.resnet import RESNETS
from models.importers.weights import ImportRefused


def backbone_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, object]:
    """`name` and `width` of the ResNet or ResNeXt whose weights stand under `prefix`. Raises `ImportRefused`."""
    depths = tuple(len({key.split(".")[0] for key in _under(state, f"{prefix}layer{stage}.")}) for stage in range(1, 5))
    first = {key: value for key, value in _under(state, f"{prefix}layer1.0.").items() if value.ndim == 4}
    if 0 in depths or not {"conv1.weight", "conv2.weight"} <= first.keys():
        names = ", ".join(list(_under(state, prefix))[:3]) or "nothing"
        raise ImportRefused(
            f"the backbone is not a ResNet (under {prefix} stand {names}); of backbones, those of "
            f"torchvision's and mmdetection's ResNets are imported: {', '.join(RESNETS)}"
        )
    bottleneck = "conv3.weight" in first
    planes = first["conv3.weight"].shape[0] // 4 if bottleneck else first["conv1.weight"].shape[0]
    middle = first["conv2.weight"]  # [groups * w, w, 3, 3]
    groups = middle.shape[0] // middle.shape[1] if bottleneck else 1
    group_width = middle.shape[1] * 64 // planes if bottleneck else 64
    distances: dict[str, int] = {}
    for name, (block, its_depths, its_groups, its_width) in RESNETS.items():
        if (block is Bottleneck) != bottleneck:
            continue
        if (its_depths, its_groups, its_width) == (depths, groups, group_width):
            return {"name": name, "width": planes / 64}
        distances[name] = sum(abs(a - b) for a, b in zip(depths, its_depths, strict=True)) + 100 * (
            its_groups != groups
        )
    nearest = min(distances, key=lambda name: distances[name])
    kind = "bottlenecks" if bottleneck else "basic blocks"
    raise ImportRefused(
        f"the backbone has {kind} {list(depths)} in {groups} groups of width {group_width}, which is "
        f"no network that isodet has; the nearest is {nearest}"
    )


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
