"""Bias correction gives every channel of an 8-bit network the mean it had in float, in the order of the calls."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.config.model import model_config
from models.detector import Detector
from models.quant import QuantConv2d, QuantDetector, correct_biases, cpu_form, quantize


def network(backbone: str = "efficientnet_lite0", norm: str = "sepbn") -> Detector:
    torch.manual_seed(0)
    detector = Detector(model_config({
        "classes": ["a", "b"], "input_size_hw": [64, 96], "backbone": {"name": backbone, "width": 0.25},
        "neck": {"channels": 16, "levels": [3, 5]}, "head": {"depth": 1, "norm": norm},
    }))  # fmt: skip
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that channels differ, as after training
            nn.init.uniform_(module.weight, 0.2, 2.0)
            nn.init.normal_(module.bias, std=0.5)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.3, 3.0)
    return detector.eval()


def pictures(count: int = 4, seed: int = 0) -> Tensor:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(8, axis=1).repeat(8, axis=2))


def eight_bits(detector: Detector, cpu: bool = False) -> QuantDetector:
    form = quantize(detector)
    form = cpu_form(form) if cpu else form
    form.calibrate([pictures()])
    return form


def means(form: QuantDetector, images: Tensor, enabled: bool) -> dict[str, list[Tensor]]:
    """By layer, the mean of each output channel at each of its calls."""
    seen: dict[str, list[Tensor]] = {name: [] for name in form.layers}
    handles = [
        conv.register_forward_hook(lambda _, __, out, name=name: seen[name].append(out.mean((0, 2, 3))))
        for name, conv in form.layers.items()
    ]
    form.enable(None if enabled else [])
    with torch.no_grad():
        form(images)
    for handle in handles:
        handle.remove()
    form.enable()
    return seen


@pytest.mark.parametrize("cpu", [False, True])
def test_every_channel_has_its_float_mean_again(cpu):
    form, images = eight_bits(network(), cpu), pictures()
    wanted, before = means(form, images, enabled=False), means(form, images, enabled=True)
    count = correct_biases(form, images)
    after = means(form, images, enabled=True)
    once = [name for name, calls in wanted.items() if len(calls) == 1]
    assert count == len(once) > 40
    scale = {name: wanted[name][0].abs().max() for name in once}
    assert max(float((before[name][0] - wanted[name][0]).abs().max() / scale[name]) for name in once) > 0.004
    for name in once:
        torch.testing.assert_close(after[name][0], wanted[name][0], rtol=1e-4, atol=1e-4 * float(scale[name]))


def test_it_is_the_plain_loop_over_layers():
    """Layer by layer: run the whole network anew, compare, correct, and go on with the next."""
    images = pictures()
    form, looped = eight_bits(network()), eight_bits(network())
    wanted = means(looped, images, enabled=False)
    for name, conv in looped.layers.items():
        if len(wanted[name]) == 1:
            missing = wanted[name][0] - means(looped, images, enabled=True)[name][0]
            conv.bias = nn.Parameter(missing if conv.bias is None else conv.bias.detach() + missing)
    correct_biases(form, images)
    for name, conv in form.layers.items():
        if looped.layers[name].bias is not None:
            torch.testing.assert_close(conv.bias, looped.layers[name].bias, rtol=1e-4, atol=1e-5)


def test_layers_that_levels_share_stay_as_they_are():
    form = eight_bits(network())
    before = {name: copy.deepcopy(conv.bias) for name, conv in form.layers.items() if name.startswith("head")}
    assert before
    correct_biases(form, pictures())
    for name, bias in before.items():
        now = form.layers[name].bias
        assert (bias is None and now is None) or torch.equal(bias, now)


def test_weights_ranges_and_the_detector_it_came_from_stay_as_they_are():
    detector = network()
    state = copy.deepcopy(detector.state_dict())
    form = eight_bits(detector)
    before = copy.deepcopy(form.state_dict())
    correct_biases(form, pictures())
    assert all(torch.equal(value, detector.state_dict()[name]) for name, value in state.items())
    changed = {
        name for name, value in form.state_dict().items() if name in before and not torch.equal(value, before[name])
    }
    assert changed and all(name.endswith(".bias") for name in changed)
    assert all(conv.enabled for conv in form.layers.values() if isinstance(conv, QuantConv2d))


@torch.no_grad()
def test_pictures_it_has_not_seen_gain_too():
    """The error of the raw outputs on other pictures falls, not only that of the means it was fitted to."""
    form, unseen = eight_bits(network()), pictures(8, seed=1)
    form.enable([])
    exact = form(unseen).logits
    form.enable()
    before = (form(unseen).logits - exact).square().mean()
    correct_biases(form, pictures())
    after = (form(unseen).logits - exact).square().mean()
    assert after < before
