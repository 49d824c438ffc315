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

    Dirty means that tracked files have changes; untracked files, such as the runs themselves, do not count. The result
    is {} outside of a repository, before its first commit, and where git is missing or takes longer than seconds.
    """
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return {}
    # Of a submodule only its commit counts: to look into it, git would use the submodule's own configuration.
    changes = _git(
        folder, *_without_filters(folder), "status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty"
    )
    return {"git_commit": commit} | ({} if changes is None else {"git_dirty": "yes" if changes else "no"})


def _without_filters(folder: str | Path) -> list[str]:
    """Options that keep git from running filters that the repository itself brings; the user's own (LFS) stay."""
    names = _git(folder, "config", "--list", "--name-only", "--show-scope", "-z") or ""
    fields = names.rstrip("\0").split("\0")
    settings = zip(fields[::2], fields[1::2], strict=False)
    local = {name for scope, name in settings if scope in ("local", "worktree")}
    filters = {name.rpartition(".")[0] for name in local if name.startswith("filter.")}
    options = [f"{name}.{key}=" for name in sorted(filters) for key in ("clean", "smudge", "process")]
    options += [f"{name}.required=false" for name in sorted(filters)]
    return [word for option in options for word in ("-c", option)]


_HARMLESS = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")


def _git(folder: str | Path, *arguments: str) -> str | None:
    """What git prints; None where git fails.

    Somebody else may have written the folder's .git/config, which names programs: a monitor, hooks, filters, ways to
    fetch. None of them runs.
    """
    environment = os.environ | {
        "GIT_OPTIONAL_LOCKS": "0",  # a look must not stand in the way of the user's own git
        "GIT_ALLOW_PROTOCOL": "none",
        "GIT_NO_LAZY_FETCH": "1",  # nor fetch what a partial clone lacks
    }
    try:
        done = subprocess.run(
            ["git", *_HARMLESS, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
            errors="replace", timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
