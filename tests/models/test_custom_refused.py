"""A user's own parts: what does not fit is refused while the configuration is read, and says why."""

from __future__ import annotations

import pytest

from isodet.strict import ConfigError
from tests.models.custom_folder import read

NET = "model: {backbone: {name: other:Net}}"
NECK = "model: {neck: {kind: other:Neck}}"
ASSIGN = "model: {assign: {kind: other:f}}"
BOX = "model: {box: {loss: other:f}}"
CLS = "model: {loss: {cls: other:f}}"
OWN = "class Net(mine.Net):\n def __init__(self):\n  super().__init__()\n"
FORWARD = OWN + " def forward(self, x): return "
AUGMENT = "augment: {own: [{name: mine:gray}, {name: other:f}]}"

REFUSED: dict[str, tuple[str, str, str]] = {
    # names
    "no module": ("model: {backbone: {name: mien:Net}}", "",
                  r"model.backbone.name: mien:Net: there is no module mien in .*; did you mean 'mine'\?"),
    "no submodule": ("model: {neck: {kind: 'models.layers.nekcs:FPN'}}", "", 
                     r"no module models.layers.nekcs in .*mean 'necks'\?"),
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
    "a generator": (CLS, "def f(logits, targets): yield 1", r"expected \[B, N, C\] float32, .*; got generator"),
    "built in": ("model: {assign: {kind: 'torch:randn'}}", "", "of type builtin_function_or_method"),
    # signatures
    "too few": (BOX, "def f(pred): return pred", r"expected f\(pred_xyxy, target_xyxy, \*, .*; got f\(pred\)"),
    "not keyword": (BOX, "def f(p, t, scale: float = 1.0): return p",
                    r"expected f\(.*, \*, your arguments\), .*got f\(p, t, scale: f"),
    "stars": (BOX, "def f(p, t, **more): return p",
              r"no \*args or \*\*kwargs, which hide a typo; got f\(p, t, \*\*more"),
    "no __init__": (NET, "class Net(nn.Module): pass", r"expected Net\(\*, your arguments\)"),
    "positional": (NET, "class Net(nn.Module):\n def __init__(self, width: int = 3): pass",
                   r"expected Net\(\*, your arguments\), .*got Net\(width: int = 3"),
    "no annotation": (BOX, "def f(p, t, *, scale=1.0): return p",
                      r"each of your arguments annotated, .*got f\(p, t, scale=1.0\)"),
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
    "imagenet": ("model: {backbone: {name: mine:Net, weights: imagenet}}", "", "imagenet weights for mine:Net"),
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
    "no channels": (NET, OWN + "  del self.channels", r"expected .channels, four widths of C2, C3, C4, C5; got None"),
    "wrong widths": (NET, OWN + "  self.channels = (16, 16, 16, 8)",
                     r"in train mode: expected features at .*\[2, 8, 3, 5\]; got .*\[2, 16, 3, 5\]"),
    "wrong strides": (NET, FORWARD + "super().forward(x[..., ::2, ::2])", r"got \[2, 16, 12, 20\]"),
    "a tensor": (NET, FORWARD + "super().forward(x)[0]", "expected a list of features .*, got Tensor"),
    "only in training": (NET, FORWARD + "super().forward(x)[: 4 if self.training else 3]",
                         "other:Net in eval mode: expected"),
    "double": (NET, FORWARD + "[f.double() for f in super().forward(x)]", "float32, got torch.float64"),
    "not finite": (NET, FORWARD + "[f / 0 for f in super().forward(x)]", "numbers that are not finite"),
    "wrong fuse": (NET, "class Twice(nn.Conv2d):\n def fuse(self): return nn.Conv2d(3, 16, 3, 2, 1)\n" + OWN +
                   "  self.convs[0] = Twice(3, 16, 3, 2, 1)",
                   r"other:Net: fuse\(\) changes what it computes, by"),
    "broken fuse": (NET, "class Bad(nn.Conv2d):\n def fuse(self): raise RuntimeError('not yet')\n" + OWN +
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
                 "other:f: IndexError"),
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
    "no backward": (NET, OWN + " def forward(self, x):\n  y = [f.exp() for f in super().forward(x)]\n"
                    "  return [f.mul_(2) for f in y]", "model backwards: RuntimeError: .*inplace operation"),
    "detached": (BOX, "def f(p, t): return (p - t).abs().sum(1).detach()",
                 "it has no gradient with .* was it detached"),
    "log of sigmoid": (CLS, "def f(x, t): return -t * x.sigmoid().log() - (1 - t) * (1 - x.sigmoid()).log()",
                       "for a logit of 20 and the target 0 it is inf"),
    "log": (CLS, "def f(x, t): return x.log()", "loss.cls: other:f: for a logit of -50 and the target 0 it is nan"),
    "summed": (CLS, "def f(x, t): return (x - t).sum(-1)", r"expected \[B, N, C\] float32, .*got \[2, \d+\] float32"),
    # augmentations
    "no tuple": (AUGMENT, "def f(i, b, l, r): return i",
                 r"augment.own\[1\].name: other:f: expected \(image uint8 .*; got ndarray"),
    "float picture": (AUGMENT, "def f(i, b, l, r): return i / 255, b, l",
                      r"\(image uint8 \[h, w, 3\], .*; got tuple: float64 \[96"),
    "lost labels": (AUGMENT, "def f(i, b, l, r): return i, b[:1], l",
                    r"got tuple: uint8 .*, float32 \[1, 4\], int64 \[3\]"),
    "new labels": (AUGMENT, "def f(i, b, l, r): return i, b, l + 7", r"it gave labels \[7, 8, 9\] that were not"),
    "raises": (AUGMENT, "def f(i, b, l, r): return i, b, l[b.argmax()]", r"other:f: IndexError: .*other.py:4\)"),
    "never": ("augment: {own: [{name: mine:gray, probability: 0}]}", "", r"augment.own\[0\].probability: expected ab"),
    "ours": ("augment: {own: [{name: flip}]}", "", r"augment.own\[0\].name: your own part is named"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_reason(custom_folder, case):
    text, source, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        read(custom_folder, text, source)
