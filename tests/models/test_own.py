"""A user's own parts: what does not fit is refused while the configuration is read, and says why."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.checkpoint import CheckpointError, build_detector, save_checkpoint
from models.config import ModelConfig, model_config
from models.detector import Detector
from models.own import AUGMENTATION, own_part
from models.typed import ConfigError, to_mapping
from trainer.config import TrainConfig, read_config

BASE = """
data: {train: {annotations: a.json, images: a}, val: {annotations: a.json, images: a}}
model: {classes: [a, b], input_size_hw: [64, 64], backbone: {name: resnet18}, neck: {channels: 16}}
"""

GOOD = """
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class Stem:
    width: int = 16
    kind: Literal["plain", "patch"] = "plain"


class Net(nn.Module):
    def __init__(self, *, stem: Stem = Stem(), names: tuple[str, ...] = ("x",), scale: float | None = None):
        super().__init__()
        self.channels = (stem.width,) * 4
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else stem.width, stem.width, 3, 2, 1) for i in range(5))

    def forward(self, x):
        features = []
        for conv in self.convs:
            x = conv(x)
            features.append(x)
        return features[1:]


class Neck(nn.Module):
    def __init__(self, c_in, channels, levels, *, gain: float = 1.0):
        super().__init__()
        self.pool, self.levels = nn.MaxPool2d(3, 2, 1), levels
        self.conv = nn.Conv2d(c_in[1], channels, 1)

    def forward(self, features):
        levels = [self.conv(features[1])]
        while len(levels) <= self.levels[1] - self.levels[0]:
            levels.append(self.pool(levels[-1]))
        return levels


def first(priors, boxes, valid, *, count: int = 1):
    matched = torch.full((len(valid), len(priors.strides)), -1)
    if boxes.shape[1]:
        matched[:, :count] = 0
    return matched


def l1(pred, target, *, power: float):
    return (pred - target).abs().mean(dim=1) ** power


def square(logits, targets):
    return (logits - targets) ** 2


def grey(image, boxes, labels, rng, *, strength: float = 1.0):
    return np.full_like(image, 100), boxes, labels


class NotAModule:
    def __init__(self, *, width: int = 1):
        raise AssertionError("must never be made")


TABLE = {}
"""


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that Python forgets afterwards, with all modules imported from it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.py").write_text(GOOD)
    (tmp_path / "base.yaml").write_text(BASE)
    yield tmp_path
    forget(tmp_path)


def forget(folder: Path) -> None:
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


def read(folder: Path, text: str, source: str = "") -> TrainConfig:
    """The configuration `text` on top of `BASE`, with `source` in the module `other` beside it."""
    (folder / "other.py").write_text("import torch\nfrom torch import nn\nimport mine\n" + source)
    (folder / "own.yaml").write_text("_base_: base.yaml\n" + text)
    return read_config(folder / "own.yaml")


ALL = """
model:
  backbone: {name: mine:Net, arguments: {stem: {kind: patch}, scale: 2}}
  neck: {kind: mine:Neck, levels: [3, 6]}
  assign: {kind: mine:first, arguments: {count: 3}}
  box: {loss: mine:l1, arguments: {power: 2}}
  loss: {cls: mine:square, hard_negatives: 3}
augment:
  own: [{name: mine:grey, arguments: {strength: 1}}, {name: mine:grey, probability: 0.5}]
"""


def test_arguments_become_typed_and_complete(folder: Path) -> None:
    config = read(folder, ALL)
    model, own = config.model, config.augment.own
    assert model.backbone.arguments == {"stem": {"width": 16, "kind": "patch"}, "names": ["x"], "scale": 2.0}
    assert (model.neck.arguments, model.assign.arguments) == ({"gain": 1.0}, {"count": 3})
    assert (model.box.arguments, model.loss.arguments) == ({"power": 2.0}, {})
    assert [(s.arguments, s.probability) for s in own] == [({"strength": 1.0}, 1.0), ({"strength": 1.0}, 0.5)]
    assert config.code == (str(folder.resolve()),)
    part = own_part(AUGMENTATION, own[0].name, own[0].arguments)
    image, boxes, labels = part(np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4)), np.zeros(1), None)
    assert image.mean() == 100
    import mine  # type: ignore[import-not-found]

    made = mine.Net(**{**own_part_values(model), "names": ("y",)})
    assert made.channels == (16,) * 4


def own_part_values(model: ModelConfig) -> dict[str, object]:
    from models.own import BACKBONE

    values = dict(own_part(BACKBONE, model.backbone.name, model.backbone.arguments).values)
    assert type(values["stem"]).__name__ == "Stem" and isinstance(values["scale"], float)
    return values


def test_reading_a_configuration_draws_no_random_number(folder: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    read(folder, ALL)
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


NET = "model: {backbone: {name: other:Net}}"
NECK = "model: {neck: {kind: other:Neck}}"
ASSIGN = "model: {assign: {kind: other:f}}"
BOX = "model: {box: {loss: other:f}}"
CLS = "model: {loss: {cls: other:f}}"
AUGMENT = "augment: {own: [{name: mine:grey}, {name: other:f}]}"

REFUSED: dict[str, tuple[str, str, str]] = {
    # names
    "no module": ("model: {backbone: {name: mien:Net}}", "",
                  r"model.backbone.name: mien:Net: there is no module mien in .*; did you mean 'mine'\?"),
    "no submodule": ("model: {neck: {kind: 'models.nekcs:FPN'}}", "", r"no module models.nekcs in .*mean 'necks'\?"),
    "no attribute": ("model: {assign: {kind: mine:frist}}", "",
                     r"mine:frist: the module mine .*mine.py.* has no frist; did you mean 'first'\?"),
    "no name": ("model: {box: {loss: 'mine:'}}", "", r"model.box.loss: your own part is named package.module:Name"),
    "a path": ("model: {backbone: {name: 'my/file.py:Net'}}", "", r"model.backbone.name: your own part is named"),
    "neither": ("model: {backbone: {name: resnet19}}", "", r"expected a backbone or timm:NAME, or .*'resnet18'\?"),
    "Python's": ("model: {assign: {kind: 'os:system'}}", "", "model.assign.kind: os:system: os is Python's own"),
    "__main__": ("model: {backbone: {name: '__main__:Net'}}", "", "__main__ is Python's own module"),
    # kinds
    "a function": ("model: {backbone: {name: mine:l1}}", "", "expected a class of torch.nn.Module .*of type func"),
    "no module class": ("model: {backbone: {name: mine:NotAModule}}", "", "this is the class NotAModule"),
    "a class": ("model: {assign: {kind: mine:Net}}", "", "a plain Python function for the assigner, .*class Net"),
    "a table": ("model: {loss: {cls: mine:TABLE}}", "", "plain Python function for the class loss, .*type dict"),
    "a generator": (CLS, "def f(logits, targets): yield 1", "but this is a generator"),
    "built in": ("model: {assign: {kind: 'torch:randn'}}", "", "of type builtin_function_or_method"),
    # signatures
    "too few": (BOX, "def f(pred): return pred", r"gives the box loss 2 \(pred_xyxy, .* takes 1 \(pred\)"),
    "not keyword": (BOX, "def f(p, t, scale: float = 1.0): return p", r"takes 3 \(p, t, scale\); .*stand behind a \*"),
    "stars": (BOX, "def f(p, t, **more): return p", r"\*args and \*\*kwargs hide a typo; expected f\(pred_xyxy, "),
    "no __init__": (NET, "class Net(nn.Module): pass", r"expected Net\(\*, your arguments\)"),
    "positional": (NET, "class Net(nn.Module):\n def __init__(self, width: int = 3): pass", "the backbone nothing"),
    "no annotation": (BOX, "def f(p, t, *, scale=1.0): return p", "annotate its argument scale, as in scale: float"),
    "unreadable": (BOX, "def f(p, t, *, s: torch.Tensor): return p", "s has the type .*Tensor.*no configuration can"),
    "a list": (BOX, "def f(p, t, *, s: list[int]): return p", r"type list\[int\], which no .* use .*tuple"),
    "unknown type": (BOX, "def f(p, t, *, s: 'Later'): return p", "annotations of its arguments cannot be read: name"),
    "bad default": (BOX, "def f(p, t, *, s: int = 0.5): return p",
                    "model.box.arguments.s: expected a whole number, got 0.5 .*this is the default in other:f"),
    # arguments
    "unknown key": ("model: {assign: {kind: mine:first, arguments: {cuont: 1}}}", "",
                    r"unknown key 'model.assign.arguments.cuont'; did you mean 'count'\?"),
    "wrong type": ("model: {backbone: {name: mine:Net, arguments: {stem: {kind: round}}}}", "",
                   r"model.backbone.arguments.stem.kind: expected one of plain, patch, got 'round'"),
    "missing": ("model: {box: {loss: mine:l1}}", "", "missing key 'model.box.arguments.power' .expected a number"),
    "takes none": ("model: {loss: {cls: mine:square, arguments: {a: 1}}}", "", "mine:square takes no arguments, got a"),
    "no mapping": ("model: {loss: {cls: mine:square, arguments: 3}}", "", "model.loss.arguments: expected a mapping"),
    "ours, backbone": ("model: {backbone: {arguments: {a: 1}}}", "", "model.backbone.arguments: they are for your own"),
    "ours, neck": ("model: {neck: {arguments: {}}}", "", "model.neck.arguments: .* kind is fpn; set arguments: null"),
    "ours, assign": ("model: {assign: {arguments: {}}}", "", "model.assign.arguments: .* but kind is atss"),
    "ours, box": ("model: {box: {arguments: {}}}", "", "model.box.arguments: .* but loss is giou"),
    "ours, loss": ("model: {loss: {arguments: {}}}", "", "model.loss.arguments: .* but cls is focal"),
    # keys that only isodet's own parts read
    "width": ("model: {backbone: {name: mine:Net, width: 0.5}}", "", "backbone.width: your own part .*leave it at 1.0"),
    "norm": ("model: {backbone: {name: mine:Net, norm: gn}}", "", "model.backbone.norm: your own backbone has"),
    "imagenet": ("model: {backbone: {name: mine:Net, weights: imagenet}}", "", "no ImageNet weights for mine:Net"),
    "p7_relu": ("model: {neck: {kind: mine:Neck, p7_relu: false}}", "", "model.neck.p7_relu: your own part does not"),
    "topk": ("model: {assign: {kind: mine:first, topk: 3}}", "", "model.assign.topk: your own part does not read"),
    "beta": ("model: {box: {loss: mine:l1, beta: 2}}", "", "model.box.beta: your own part does not read"),
    "gamma": ("model: {loss: {cls: mine:square, gamma: 3}}", "", "model.loss.gamma: your own part does not read"),
    "frozen": ("model: {backbone: {name: mine:Net, frozen_stages: 2}}", "", "frozen_stages: mine:Net needs a method"),
    # importing and making
    "import fails": (CLS, "1 / 0", r"other:f: its module could not be imported: ZeroDivisionError: .*other.py:4\)"),
    "import exits": (CLS, "raise SystemExit(3)", "its module could not be imported: SystemExit: 3"),
    "import misses": (CLS, "import not_there_at_all", "could not be imported: ModuleNotFoundError: .*not_there_at_all"),
    "constructor": (NET, "class Net(nn.Module):\n def __init__(self): raise ValueError('no luck')",
                    r"model.backbone.name: other:Net: ValueError: no luck \(.*other.py:5\)"),
    # networks
    "no channels": (NET, "class Net(mine.Net):\n def __init__(self):\n  super().__init__(); del self.channels",
                    r"expected .channels, four widths of C2, C3, C4, C5; got None"),
    "wrong widths": (NET, "class Net(mine.Net):\n def __init__(self):\n  super().__init__()\n"
                     "  self.channels = (16, 16, 16, 8)",
                     r"in train mode: expected features at .*\[2, 8, 3, 5\]; got .*\[2, 16, 3, 5\]"),
    "wrong strides": (NET, "class Net(mine.Net):\n def __init__(self):\n  super().__init__()\n"
                      " def forward(self, x): return super().forward(x[..., ::2, ::2])", r"got \[2, 16, 12, 20\]"),
    "a tensor": (NET, "class Net(mine.Net):\n def __init__(self):\n  super().__init__()\n"
                 " def forward(self, x): return super().forward(x)[0]", "expected a list of features .*, got Tensor"),
    "only in training": (NET, "class Net(mine.Net):\n def __init__(self):\n  super().__init__()\n"
                         " def forward(self, x): return super().forward(x)[: 4 if self.training else 3]",
                         "other:Net in eval mode: expected"),
    "double": (NET, "class Net(mine.Net):\n def __init__(self):\n  super().__init__()\n"
               " def forward(self, x): return [f.double() for f in super().forward(x)]", "float32, got torch.float64"),
    "not finite": (NET, "class Net(mine.Net):\n def __init__(self):\n  super().__init__()\n"
                   " def forward(self, x): return [f / 0 for f in super().forward(x)]", "numbers that are not finite"),
    "wrong fuse": (NET, "class Twice(nn.Conv2d):\n def fuse(self): return nn.Conv2d(3, 16, 3, 2, 1)\n"
                   "class Net(mine.Net):\n def __init__(self):\n  super().__init__()\n"
                   "  self.convs[0] = Twice(3, 16, 3, 2, 1)",
                   r"other:Net: fuse\(\) changes what it computes, by"),
    "broken fuse": (NET, "class Bad(nn.Conv2d):\n def fuse(self): raise RuntimeError('not yet')\n"
                    "class Net(mine.Net):\n def __init__(self):\n  super().__init__()\n"
                    "  self.convs[0] = Bad(3, 16, 3, 2, 1)",
                    r"after fuse\(\): RuntimeError: not yet \(.*other.py:5\)"),
    "rounding down": (NECK, "class Neck(mine.Neck):\n def __init__(self, c_in, channels, levels):\n"
                      "  super().__init__(c_in, channels, levels); self.pool = nn.MaxPool2d(2)",
                      r"in train mode: RuntimeError: .*Output size is too small .*mine.py"),
    "too few levels": (NECK, "class Neck(mine.Neck):\n def __init__(self, c_in, channels, levels):\n"
                       "  super().__init__(c_in, channels, (3, 5))", "expected levels 3 to 7 of 16 channels"),
    # assigners
    "a float": (ASSIGN, "def f(p, b, v): return torch.zeros(len(v), len(p.strides))",
                r"\[B, N\] int64, .*; got \[2, \d+\] float32"),
    "wrong shape": (ASSIGN, "def f(p, b, v): return torch.zeros(len(p.strides)).long()", r"expected \[B, N\] int64"),
    "no boxes": (ASSIGN, "def f(p, b, v): return mine.first(p, b, v) + b.amax(dim=(1, 2)).long()[:, None] * 0",
                 "other:f without boxes: IndexError"),
    "out of range": (ASSIGN, "def f(p, b, v): return mine.first(p, b, v) + 3 * (b.shape[1] > 0)",
                     r"index of a valid one of 3 boxes; got 3 at prior 0 of image 0"),
    "padding": (ASSIGN, "def f(p, b, v):\n m = mine.first(p, b, v)\n m[1:, :1] += b.shape[1] > 0\n return m",
                r"got 1 at prior 0 of image 1"),
    "no area": (ASSIGN, "def f(p, b, v):\n m = mine.first(p, b, v)\n m[:1, :1] += 2 * (b.shape[1] > 0)\n return m",
                "gave a point to a box without area"),
    "nothing": (ASSIGN, "def f(p, b, v): return torch.full((len(v), len(p.strides)), -1)",
                r"gave no point to any of the boxes of 30x40, 90x70, 5x4 px"),
    # losses
    "one number": (BOX, "def f(p, t): return (p - t).abs().mean()", r"expected \[P\] float32, .*; got \[\] float32"),
    "box of four": (BOX, "def f(p, t): return (p - t).abs()", r"expected \[P\] float32, .*here \[0\]; got \[0, 4\]"),
    "root": (BOX, "def f(p, t): return ((p - t) ** 2).sum(1).sqrt()", "for identical boxes its gradient is .*nan"),
    "area": (BOX, "def f(p, t): return (p[:, 2:] - p[:, :2]).prod(1).log()", "a prediction without area it is -inf"),
    "detached": (BOX, "def f(p, t): return (p - t).abs().sum(1).detach()", "it has no gradient, .* was it detached"),
    "log of sigmoid": (CLS, "def f(x, t): return -t * x.sigmoid().log() - (1 - t) * (1 - x.sigmoid()).log()",
                       "for a logit of 20 and the target 0 it is inf"),
    "summed": (CLS, "def f(x, t): return (x - t).sum(-1)", r"expected \[B, N, C\] float32, .*got \[2, 2\] float32"),
    # augmentations
    "no tuple": (AUGMENT, "def f(i, b, l, r): return i", r"augment.own\[1\].name: other:f: expected \(image, b"),
    "float picture": (AUGMENT, "def f(i, b, l, r): return i / 255, b, l", r"a picture uint8 \[h, w, 3\]; got float64"),
    "lost labels": (AUGMENT, "def f(i, b, l, r): return i, b[:1], l", r"of one length; got \[1, 4\] and \[3\]"),
    "new labels": (AUGMENT, "def f(i, b, l, r): return i, b, l + 7", r"it gave labels \[7, 8, 9\] that were not"),
    "raises": (AUGMENT, "def f(i, b, l, r): return i, b, l[b.argmax()]", r"other:f: IndexError: .*other.py:4\)"),
    "never": ("augment: {own: [{name: mine:grey, probability: 0}]}", "", r"augment.own\[0\].probability: expected ab"),
    "ours": ("augment: {own: [{name: flip}]}", "", r"augment.own\[0\].name: your own part is named"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(folder: Path, case: str) -> None:
    text, source, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        read(folder, text, source)


def test_a_module_hidden_by_another_of_its_name_is_refused(folder: Path) -> None:
    (folder / "onnx.py").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"onnx.py is hidden by another module called onnx .*; rename yours"):
        read(folder, "model: {backbone: {name: onnx:Net}}")


def test_frozen_stages_norms_and_weights_of_an_own_backbone(folder: Path) -> None:
    source = (
        "class Net(mine.Net):\n"
        " def __init__(self):\n"
        "  super().__init__(); self.norm = nn.BatchNorm2d(16)\n"
        " def stem_and_stages(self): return [[c] for c in self.convs]\n"
    )
    text = "model: {backbone: {name: other:Net, frozen_stages: 2, norm: frozen, norm_eps: 0.5, weights: '%s'}}"
    config = read(folder, text % (folder / "net.pth"), source)  # the weights are not read yet
    import other  # type: ignore[import-not-found]

    trained = other.Net()
    torch.save(trained.state_dict(), folder / "net.pth")
    network = Detector(config.model).backbone.train()
    learns = {name for name, p in network.named_parameters() if p.requires_grad}
    assert learns == {f"network.convs.{i}.{what}" for i in (2, 3, 4) for what in ("weight", "bias")}
    assert not network.network.norm.training and network.network.norm.eps == 0.5  # type: ignore[union-attr]
    assert torch.equal(network.network.convs[3].weight, trained.convs[3].weight)  # type: ignore[union-attr,index]


# ---------------------------------------------------------------------------------------------
# checkpoints


def checkpoint(folder: Path, model: dict[str, object], weights: ModelConfig | None = None) -> Path:
    state = {} if weights is None else Detector(weights, load_weights=False).state_dict()
    path = folder / "best.pt"
    save_checkpoint(path, state, {"model": model, "training": {"code": ["/home/maker/parts"]}})
    return path


def test_a_checkpoint_needs_the_code_of_its_network_and_no_other(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read(folder, ALL).model
    mapping = to_mapping(config)
    for section, key in (("assign", "kind"), ("box", "loss"), ("loss", "cls")):
        mapping[section][key] = "not_there:part"  # what only training calls is not looked for
    path = checkpoint(tmp_path_factory.mktemp("elsewhere"), mapping, config)
    clean = [entry for entry in sys.path if entry != str(folder.resolve())]
    forget(folder)

    monkeypatch.setattr(sys, "path", clean)
    message = r"the module mine of mine:Net is not imported.*PYTHONPATH \(.*/home/maker/parts.*ONNX file .* needs none"
    with pytest.raises(CheckpointError, match=message):
        build_detector(path)

    # In the current folder, which Python puts first by itself: not installed, so not taken.
    monkeypatch.chdir(folder)
    for implicit in ("", str(folder)):
        monkeypatch.setattr(sys, "path", [implicit, *clean])
        with pytest.raises(CheckpointError, match="the module mine of mine:Net is not imported"):
            build_detector(path)
        assert "mine" not in sys.modules

    monkeypatch.setattr(sys, "path", ["", str(folder), *clean])  # as PYTHONPATH=. does
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
        ("trap:Lazy", "gives the backbone nothing by position, but it takes 1"),
        ("torch.nn:Sequential", "hide a typo"),
        ("torch:load", "but this is of type function"),
        ("torch.hub:load", "but this is of type function"),
    ],
)
def test_a_checkpoint_cannot_call_what_it_likes(folder: Path, name: str, message: str) -> None:
    (folder / "trap.py").write_text(
        "from pathlib import Path\nfrom torch import nn\n"
        "def launch(*, target: str = ''): Path(__file__).with_name('fired').write_text('')\n"
        "class Launch:\n def __init__(self, *, target: str = ''): launch()\n"
        "class Lazy(nn.Module):\n def __init__(self, target: str = ''): launch()\n"
    )
    sys.path.append(str(folder))
    loaded = "antigravity" in sys.modules
    mapping = to_mapping(model_config({"classes": ["a"]}))
    mapping["backbone"] |= {"name": name, "arguments": {"target": "x"}}
    with pytest.raises(CheckpointError, match=message):
        build_detector(checkpoint(folder, mapping))
    assert not (folder / "fired").exists()
    assert loaded or "antigravity" not in sys.modules
