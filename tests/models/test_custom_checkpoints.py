"""Checkpoints of networks with a user's own parts: whose code they need, and what they cannot call."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from isodet.strict import to_mapping
from models.checkpoint import CheckpointError, build_detector, save_checkpoint
from models.config.model import ModelConfig, model_config
from models.detector import Detector
from tests.models.custom_folder import ALL, forget, read


def checkpoint(custom_folder: Path, model: dict[str, object], weights: ModelConfig | None = None) -> Path:
    state = {} if weights is None else Detector(weights, load_weights=False).state_dict()
    path = custom_folder / "best.pt"
    save_checkpoint(path, state, {"model": model, "training": {"code": ["/home/maker/parts"]}})
    return path


def test_a_checkpoint_needs_the_code_of_its_network_and_no_other(custom_folder, tmp_path_factory, monkeypatch):
    config = read(custom_folder, ALL).model
    mapping = to_mapping(config)
    for section, key in (("assign", "kind"), ("box", "loss"), ("loss", "cls")):
        mapping[section][key] = "not_there:part"  # what only training calls is not looked for
    path = checkpoint(tmp_path_factory.mktemp("elsewhere"), mapping, config)
    clean = [entry for entry in sys.path if entry != str(custom_folder.resolve())]
    forget(custom_folder)

    monkeypatch.setattr(sys, "path", clean)
    message = r"the module mine of mine:Net is not imported.*PYTHONPATH \(.*/home/maker/parts.*ONNX file .* needs none"
    with pytest.raises(CheckpointError, match=message):
        build_detector(path)

    # In the current custom_folder, which Python puts first by itself: not installed, so not taken.
    monkeypatch.chdir(custom_folder)
    for implicit in ("", str(custom_folder)):
        monkeypatch.setattr(sys, "path", [implicit, *clean])
        with pytest.raises(CheckpointError, match="the module mine of mine:Net is not imported"):
            build_detector(path)
        assert "mine" not in sys.modules

    monkeypatch.setattr(sys, "path", ["", str(custom_folder), *clean])  # as PYTHONPATH=. does
    detector, _ = build_detector(path)
    assert detector.backbone.channels == (16,) * 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("antigravity:geohash", "antigravity is Python's own module"),
        ("subprocess:Popen", "subprocess is Python's own module"),
        ("os.path:join", "os is Python's own module"),
        ("trap:launch", "expected a class of torch.nn.Module for the backbone, but this is of type function"),
        ("trap:Launch", "but this is the class Launch"),
        ("trap:Lazy", r"expected Lazy\(\*, your arguments\).*; got Lazy\(target"),
        ("torch.nn:Sequential", "hide a typo"),
        ("torch:load", "but this is of type function"),
        ("torch.hub:load", "but this is of type function"),
    ],
)
def test_a_checkpoint_cannot_call_what_it_likes(custom_folder, name, message):
    (custom_folder / "trap.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "def launch(*, target: str = ''): Path(__file__).with_name('fired').write_text('')\n"
        "class Launch:\n def __init__(self, *, target: str = ''): launch()\n"
        "class Lazy(nn.Module):\n def __init__(self, target: str = ''): launch()\n"
    )
    sys.path.append(str(custom_folder))
    loaded = "antigravity" in sys.modules
    mapping = to_mapping(model_config({"classes": ["a"]}))
    mapping["backbone"] |= {"name": name, "arguments": {"target": "x"}}
    with pytest.raises(CheckpointError, match=message):
        build_detector(checkpoint(custom_folder, mapping))
    assert not (custom_folder / "fired").exists()
    assert loaded or "antigravity" not in sys.modules
