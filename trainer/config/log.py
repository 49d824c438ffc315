"""Where a run is recorded besides metrics.csv and TensorBoard."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Literal

from isodet.strict import ConfigError, require

Tracker = Literal["wandb", "mlflow"]


def require_trackers(log: Sequence[Tracker]) -> None:
    """Raise `ConfigError` for a tracker that is named twice or whose package is not installed."""
    require(len(set(log)) == len(log), "log", "each name once", list(log))
    for name in log:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # no origin: a folder of that name, such as the one wandb leaves behind
            raise ConfigError(f"log: {name} is not installed; pip install 'isodet[{name}]', or leave it out of log")
