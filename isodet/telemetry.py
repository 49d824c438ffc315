"""Libraries that send usage data to their makers by default: isodet switches that off.

Each reads an environment variable when it is imported. So they are set when `isodet` is imported, which every room does
first. A variable that is already set stays: set it to send usage data (`ORT_DISABLE_TELEMETRY=0`).
"""

from __future__ import annotations

import os

SILENT = {
    # ONNX Runtime from 1.29 on: a device id in the home folder, and events to Microsoft. Its function
    # disable_telemetry_events comes too late: identifier, queue and first event exist after the import.
    "ORT_DISABLE_TELEMETRY": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # albumentations asks a package index for a newer version at every import
    # A training that logs to MLflow or W&B sends its metrics there, but no other data to their makers.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",  # of timm's downloads of weights
}
"""Environment variable -> the value that keeps its library silent."""


def silence() -> None:
    """Set the variables of `SILENT` that are not set. Child processes inherit them."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
