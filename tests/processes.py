"""Programs in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def python(
    *words: object, cwd: Path = ROOT, timeout: float = 200, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a fresh Python with these words (`"-c", code` or `"-m", "runtime"`) in the folder `cwd`.

    env: its whole environment (default: this one's, with this project on the path). What it prints is in the result.
    """
    command = [sys.executable, *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)} if env is None else env
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout, env=env, check=False)
