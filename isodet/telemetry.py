"""Libraries that send usage data home unless they are told not to: isodet tells them.

Each reads an environment variable when it is imported, so these are set when `isodet` is, which every room imports
first. A variable that is set already stays: who wants to send usage data says so there (`ORT_DISABLE_TELEMETRY=0`).
"""

from __future__ import annotations

import os

SILENT = {
    # ONNX Runtime from 1.29 on: a device id in the home folder, and events to Microsoft. Its function
    # disable_telemetry_events comes too late: identifier, queue and first event are there after the import.
    "ORT_DISABLE_TELEMETRY": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # albumentations asks a package index for a newer version at every import
    # Where a training logs to MLflow or W&B, its metrics go there, and nothing goes to their makers beside it.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # of timm's downloads of weights
}
"""Environment variable -> the value that keeps its library silent."""


def silence() -> None:
    """Set what is not set of `SILENT`. Child processes inherit it."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
