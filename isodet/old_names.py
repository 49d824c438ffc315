"""Modules that moved: names of an earlier isodet, such as `runtime.image`, still work, with a warning."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from typing import Any

MOVED: dict[str, tuple[str, ...]] = {
    "export.drift": ("export.verification.detection_diff",),
    "export.gate": ("export.verification.gate",),
    "export.trt": ("export.engine_export",),
    "models.config": ("models.config.model", "models.config.network", "models.config.losses"),
    "models.config.parse": ("isodet.strict",),
    "models.criterion": ("models.loss",),
    "models.deploy": ("models.deploy.graph",),
    "models.fuse": ("models.layers.fuse",),
    "models.layers": ("models.layers.blocks",),
    "models.nms": ("models.deploy.nms",),
    "models.points": ("models.priors",),
    "models.typed": ("isodet.strict",),
    "runtime.backends": ("runtime.backends.protocol", "runtime.backends.load"),
    "runtime.batcher": ("runtime.batcher.batcher", "runtime.batcher.admission", "runtime.batcher.metrics"),
    "runtime.card": ("runtime.card.card", "runtime.artifact"),
    "runtime.coco": ("runtime.datasets.coco",),
    "runtime.draw": ("runtime.images.draw",),
    "runtime.evaluate": ("runtime.evaluation.evaluate",),
    "runtime.frames": ("runtime.images.frames",),
    "runtime.header": ("runtime.images.encoded", "runtime.datasets.orientation", "runtime.images.image_header"),
    "runtime.image": ("runtime.images.image",),
    "runtime.judge": ("runtime.evaluation.coco_eval",),
    "runtime.records": ("runtime.datasets.annotations",),
    "runtime.region": ("runtime.images.region",),
    "runtime.stream": ("runtime.streams.open",),
    "runtime.stream_options": ("runtime.streams.options",),
    "runtime.streams": ("runtime.streams.streams", "runtime.streams.source"),
    "trainer.config": ("trainer.config.train", "trainer.config_reader"),
    "trainer.convert": ("trainer.prepare.convert",),
    "trainer.runs": ("trainer.run.folder",),
}
"""Old name of a module -> the modules that hold its content today. Where a package has the old name today, it calls
`keep_old_names` itself; for the other names `isodet.rooms` makes a module that calls it."""

RENAMED = {"upright": "oriented"}
"""Names that moved and are others today."""


def keep_old_names(module: str) -> None:
    """Let `module`, which has the name of an earlier module, also give the names of that one, each with a
    DeprecationWarning."""

    def get(name: str) -> Any:
        submodule = "__path__" in vars(here) and importlib.util.find_spec(f"{module}.{name}") is not None
        if not (name.startswith("__") or submodule):
            today = RENAMED.get(name, name)
            for home in map(importlib.import_module, MOVED[module]):
                if hasattr(home, today):
                    room = module.partition(".")[0]
                    public = today in getattr(sys.modules[room], "__all__", ())
                    moved(f"{module}.{name}", f"{room if public else home.__name__}.{today}")
                    return getattr(home, today)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    here = sys.modules[module]
    vars(here)["__getattr__"] = get


def moved(old: str, new: str) -> None:
    """Warn the caller's caller, who uses the name `old`."""
    warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=3)
