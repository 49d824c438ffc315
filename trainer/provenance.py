"""What a checkpoint was made with: the versions of packages, and the git state of the folder that it was made in."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch


def package_versions() -> dict[str, str]:
    """Versions of isodet, torch, torchvision, Python, numpy and OpenCV, and of CUDA where torch was built with it."""
    versions = {name: version(name) for name in ("isodet", "torch", "torchvision")}
    versions |= {"python": platform.python_version(), "numpy": np.__version__, "opencv": cv2.__version__}
    cuda = torch.version.cuda
    return versions | ({"cuda": cuda} if cuda else {})


def git_state(folder: str | Path = ".") -> dict[str, str]:
    """`git_commit` of the repository that `folder` is in, and `git_dirty`, yes or no.

    Dirty: files that git tracks have changes; others, as the runs themselves, do not count. {} outside of a
    repository, before its first commit, and where there is no git, or none that answers within seconds.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return {}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit} | ({} if changes is None else {"git_dirty": "yes" if changes else "no"})


def _git(folder: str | Path, *arguments: str) -> str | None:
    """What git prints; None where it, or the folder, cannot."""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # a look must not stand in the way of the user's own git
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, errors="replace",
            timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
