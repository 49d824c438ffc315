"""isodet, for programs that have a `models` or a `runtime` of their own. It imports its rooms only when asked.

from isodet import Detector  # every name that `runtime` offers
from isodet.trainer import fit  # isodet.models, .runtime, .trainer and .export are the packages of those names
"""

import importlib
import importlib.util
from typing import Any

from isodet.errors import IsodetError as IsodetError
from isodet.rooms import ROOMS, install
from isodet.telemetry import silence

install()
silence()  # before a library is imported that would send usage data


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'isodet' has no attribute {name!r}")
    if importlib.util.find_spec(f"isodet.{name}") is not None:
        return importlib.import_module(f"isodet.{name}")
    offered = getattr(importlib.import_module("isodet.runtime"), name)
    return sorted({*offered, "IsodetError"}) if name == "__all__" else offered


def __dir__() -> list[str]:
    return sorted([*__getattr__("__all__"), *ROOMS])
