"""A user's own parts: what fits is read, made and trained."""

import random

import numpy as np
import pytest
import torch

from isodet.strict import ConfigError
from models.custom.find import AUGMENTATION, BACKBONE, custom_part
from models.detector import Detector
from tests.models.custom_folder import ALL, GOOD, read


def test_arguments_become_typed_and_complete(custom_folder):
    config = read(custom_folder, ALL)
    model, own = config.model, config.augment.own
    assert model.backbone.arguments == {"stem": {"width": 16, "kind": "patch"}, "names": ["x"], "scale": 2.0}
    assert (model.neck.arguments, model.assign.arguments) == ({"gain": 1.0}, {"count": 3})
    assert (model.box.arguments, model.loss.arguments) == ({"power": 2.0}, {})
    assert [(s.arguments, s.probability) for s in own] == [({"strength": 1.0}, 1.0), ({"strength": 1.0}, 0.5)]
    assert config.code == (str(custom_folder.resolve()),)
    part = custom_part(AUGMENTATION, own[0].name, own[0].arguments)
    image, boxes, labels = part(np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4)), np.zeros(1), None)
    assert image.mean() == 100
    import mine

    values = dict(custom_part(BACKBONE, model.backbone.name, model.backbone.arguments).values)
    assert type(values["stem"]).__name__ == "Stem" and isinstance(values["scale"], float)
    assert mine.Net(**{**values, "names": ("y",)}).channels == (16,) * 4


def test_reading_a_configuration_draws_no_random_number(custom_folder):
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    read(custom_folder, ALL)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_a_module_hidden_by_another_of_its_name_is_refused(custom_folder):
    (custom_folder / "onnx.py").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"onnx.py is hidden by another module called onnx .*; rename yours"):
        read(custom_folder, "model: {backbone: {name: onnx:Net}}")


def test_frozen_stages_norms_and_weights_of_an_own_backbone(custom_folder):
    source = (
        "class Net(mine.Net):\n"
        " def __init__(self):\n"
        "  super().__init__(); self.norm = nn.BatchNorm2d(16)\n"
        " def stem_and_stages(self): return [[c] for c in self.convs]\n"
    )
    text = "model: {backbone: {name: other:Net, frozen_stages: 2, norm: frozen, norm_eps: 0.5, weights: '%s'}}"
    config = read(custom_folder, text % (custom_folder / "net.pth"), source)  # the weights are not read yet
    import other

    trained = other.Net()
    torch.save(trained.state_dict(), custom_folder / "net.pth")
    network = Detector(config.model).backbone.train()
    learns = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learns == {f"network.convs.{i}.{what}" for i in (2, 3, 4) for what in ("weight", "bias")}
    assert not network.network.norm.training and network.network.norm.eps == 0.5
    assert torch.equal(network.network.convs[3].weight, trained.convs[3].weight)
