"""The tables of parts agree with the code that they name and with the configuration that asks them."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any

import pytest

from models.backbones import Backbone
from models.config.choices import ASSIGNERS, BACKBONES, BOX_LOSSES, CLASS_LOSSES, NECKS, Part
from models.config.losses import AssignConfig, BoxConfig, LossConfig
from models.config.network import BackboneConfig, NeckConfig
from models.losses import boxes, classification
from tests.processes import python

TABLES: dict[str, tuple[Any, Any, str]] = {
    "assign.kind": (ASSIGNERS, AssignConfig, "kind"),
    "box.loss": (BOX_LOSSES, BoxConfig, "loss"),
    "loss.cls": (CLASS_LOSSES, LossConfig, "cls"),
    "neck.kind": (NECKS, NeckConfig, "kind"),
    "backbone.name": (BACKBONES, BackboneConfig, "name"),
}
PARTS = [(key, name) for key, (table, _, _) in TABLES.items() for name in table]


@pytest.mark.parametrize("key, name", PARTS)
def test_a_part_is_there_and_takes_what_its_line_says(key, name):
    table, section, choice = TABLES[key]
    part: Part = table[name]
    parameters = inspect.signature(part.load()).parameters
    assert set(part.reads) <= set(parameters)
    assert set(part.reads) <= {f.name for f in dataclasses.fields(section)}
    for limit in getattr(part, "limits", ()):
        assert limit.key in part.reads and limit.fits(getattr(section(), limit.key))
    for keyword in ("grown", "shrunk"):
        assert set(getattr(part, keyword, ())) <= set(part.reads)
    if key == "backbone.name":
        assert issubclass(typing.cast(type, part.load()), Backbone)
    if key == "box.loss":
        assert dataclasses.replace(BoxConfig(), loss=name).part is part


def test_every_loss_that_there_is_can_be_chosen():
    for module, table in ((boxes, BOX_LOSSES), (classification, CLASS_LOSSES)):
        written = {name for name in vars(module) if name.endswith("_loss")}
        assert written == {part.where.partition(":")[2] for part in table.values() if module.__name__ in part.where}


@pytest.mark.parametrize("key", [key for key in TABLES if key != "backbone.name"])
def test_type_hints_list_the_names_of_the_table(key):
    """What the reader's messages and a schema are made of."""
    table, section, choice = TABLES[key]
    hint = typing.get_type_hints(section)[choice]
    assert [typing.get_args(option) for option in typing.get_args(hint)][0] == tuple(table)


def test_a_key_reaches_the_part_and_null_leaves_its_default():
    assert BOX_LOSSES["smooth_l1"].configured(BoxConfig(beta=0.25)).keywords == {"beta": 0.25}
    assert CLASS_LOSSES["vfl"].configured(LossConfig(gamma=1.5)).keywords == {"gamma": 1.5}


def test_a_configuration_is_read_without_torch():
    code = ("import sys; from models.config.model import model_config; "
            "model_config({'classes': ['a'], 'box': {'loss': 'ciou'}}); print('torch' in sys.modules)")  # fmt: skip
    done = python("-c", code)
    assert done.stdout.strip() == "False", done.stderr
