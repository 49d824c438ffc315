"""What the rooms offer by name is there, is listed, and is loaded when it is asked for."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from isodet.errors import IsodetError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("room", ["runtime", "trainer", "export"])
def test_every_name_that_a_room_offers_is_there_and_listed(room: str) -> None:
    module = importlib.import_module(room)
    assert set(module.__all__) - {"IsodetError"} <= set(module._HOME) and set(module.__all__) <= set(dir(module))
    assert module.IsodetError is IsodetError  # which costs nothing to load
    for name in module._HOME:
        home = importlib.import_module(f"{room}.{module._HOME[name]}")
        assert getattr(module, name) is getattr(home, name) is vars(module)[name]
    with pytest.raises(AttributeError, match=f"module '{room}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize(("room", "name"), [("trainer", "fit"), ("export", "verify"), ("runtime", "Streams")])
def test_a_name_is_loaded_when_it_is_asked_for(room: str, name: str) -> None:
    code = (
        f"import sys, {room}\n"
        f"home = '{room}.' + {room}._HOME['{name}']\n"
        f"assert '{name}' in dir({room}) and home not in sys.modules and 'torch' not in sys.modules\n"
        f"{room}.{name}\n"
        "print(home in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr
