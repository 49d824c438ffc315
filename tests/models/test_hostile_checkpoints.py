"""Files that PyTorch reads and that are no checkpoints: each is told in one line that names the file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from isodet.strict import to_mapping
from models.checkpoint import CheckpointError, save_checkpoint
from models.detector import Detector as Network
from runtime import Card, CardError, Detector
from tests.models.small import small

Content = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Content:
    config = small()
    card = Card(
        kind="checkpoint", classes=config.classes, input_size_hw=config.input_size_hw, score_threshold=0.05,
        nms={"kind": "portable", "iou": 0.6, "candidates": 10, "detections": 5}, model=to_mapping(config),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("good") / "best.pt"
    save_checkpoint(path, Network(config).state_dict(), card.to_json())
    Detector(path, device="cpu")
    content: Content = torch.load(path, weights_only=True)
    return content


KEY = "backbone.conv1.weight"


def _weight(change: Callable[[torch.Tensor], object]) -> Callable[[Content], None]:
    def apply(content: Content) -> None:
        content["model"][KEY] = change(content["model"][KEY])

    return apply


def _card(**values: Any) -> Callable[[Content], None]:
    return lambda content: content["card"].update(values)


WRONG: dict[str, tuple[Callable[[Content], None], str]] = {
    "no model": (lambda c: c.update(model=None), "model: expected tensors by name, got NoneType"),
    "no card": (lambda c: c.update(card=None), "card: expected keys and values, got NoneType"),
    "format": (lambda c: c.update(format=torch.ones(2)), "checkpoint format"),
    "name": (lambda c: c["model"].update({5: torch.ones(1)}), "model: 5: expected text as the name of a tensor, got"),
    "number": (_weight(lambda t: 3), f"model: '{KEY}': expected a dense tensor, got int"),
    "sparse": (_weight(lambda t: t.to_sparse()), f"'{KEY}': expected a dense tensor, got one of the layout sparse_coo"),
    "meta": (_weight(lambda t: t.to("meta")), f"'{KEY}': expected a dense tensor, got one on the device meta"),
    "whole numbers": (_weight(lambda t: t.int()), f"model: {KEY}: expected torch.float32, got torch.int32"),
    "complex": (_weight(lambda t: t.to(torch.complex64)), "expected torch.float32, got torch.complex64"),
    "nan": (_weight(lambda t: t * float("nan")), f"1 of its tensors hold NaN or infinite numbers, the first: {KEY}"),
    "infinite": (_weight(lambda t: t - float("inf")), f"NaN or infinite numbers, the first: {KEY}"),
    "quantization": (_card(quantization="x"), "quantization: expected"),
    "float layers": (_card(quantization={"float_layers": 5}), "quantization.float_layers: expected names of layers"),
    "unknown layer": (_card(quantization={"float_layers": ["nope"]}), "quantization: nope is no convolution"),
    "resize": (_card(resize={"short": "a", "long": 1, "multiple": 0, "floor": True, "fill_bgr": [1]}), "resize.short"),
    "input": (_card(input=[]), "input: expected"),
    "iou": (_card(nms={"kind": "auto", "iou": float("nan"), "candidates": 9, "detections": 9}), "nms.iou: expected"),
    "batch": (_card(batch=10**400), "batch: expected dynamic or 1 to 65536"),
    "candidates": (
        _card(nms={"kind": "auto", "iou": 0.6, "candidates": 10**400, "detections": 9}), "nms.candidates: expected"
    ),
    "detections": (
        _card(nms={"kind": "auto", "iou": 0.6, "candidates": 9, "detections": 10**400}), "nms.detections: expected"
    ),
    "threshold": (_card(score_threshold=10**400), "score_threshold: expected"),
    "size": (_card(input_size_hw=[10**11, 64]), "input_size_hw: expected"),
    "model config": (_card(model=None), "card.model: expected a mapping"),
    "channels": (lambda c: c["card"]["model"]["neck"].update(channels=10**7), "channels: expected 8 to 8192"),
    "training": (_card(training=5), "training: expected a mapping"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(("change", "told"), WRONG.values(), ids=WRONG)
def test_a_file_of_the_wrong_content_is_told(change, told, good, tmp_path):
    content = copy.deepcopy(good)
    change(content)
    path = tmp_path / "made.pt"
    torch.save(content, path)
    with pytest.raises((CheckpointError, CardError)) as caught:
        Detector(path, device="cpu")
    assert str(path) in str(caught.value) and told in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_without_a_training_state_is_one(good, tmp_path):
    path = tmp_path / "made.pt"
    torch.save({key: value for key, value in good.items() if key != "resume"}, path)
    assert Detector(path, device="cpu").class_names == ("a", "b", "c")
