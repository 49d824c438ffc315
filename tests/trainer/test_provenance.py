"""What a checkpoint says it was made with, by what git and the packages say themselves."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from runtime.artifact import read_card
from tests.trainer.tiny import tiny_config
from trainer.loop import fit
from trainer.recipes.shapes import make_shapes
from trainer.run.provenance import git_state, package_versions


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_the_commit_and_whether_what_git_tracks_was_changed(repository):
    commit = git(repository, "rev-parse", "HEAD")
    below = repository / "runs" / "x"
    below.mkdir(parents=True)
    (below / "best.pt").write_text("not tracked")
    assert git_state(repository) == git_state(below) == {"git_commit": commit, "git_dirty": "no"}
    (repository / "file").write_text("two")
    assert git_state(repository) == {"git_commit": commit, "git_dirty": "yes"}
    git(repository, "add", "file")
    assert git_state(repository)["git_dirty"] == "yes"


def executable(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_no_program_that_the_repository_names_is_run(repository, tmp_path_factory):
    """A folder of a stranger: its configuration says what git is to run, for a look as for everything else."""
    ran = tmp_path_factory.mktemp("outside") / "ran"
    program = executable(repository / "program", f'echo "$0 $*" >> {ran}\ncat')
    hooks = repository / "hooks"
    hooks.mkdir()
    for name in ("post-index-change", "fsmonitor-watchman", "post-checkout"):
        shutil.copy(program, hooks / name)
    (repository / ".gitattributes").write_text("file filter=f.g\n")
    commit = git(repository, "rev-parse", "HEAD")
    for key, value in {
        "core.fsmonitor": str(program), "core.hooksPath": str(hooks), "filter.f.g.clean": f"{program} clean",
        "filter.f.g.process": f"{program} process", "filter.f.g.required": "true", "core.pager": str(program),
        "core.sshCommand": str(program), "diff.external": str(program), "alias.status": f"!{program}",
    }.items():  # fmt: skip
        git(repository, "config", key, value)
    (repository / "file").write_text("two")  # of another time and content: git has to look into it
    assert git_state(repository) == {"git_commit": commit, "git_dirty": "yes"}
    assert not ran.exists(), ran.read_text()
    subprocess.run(["git", "status"], cwd=repository, check=False, capture_output=True)
    assert ran.exists()  # a plain git does run them


def test_a_submodule_is_not_asked_by_its_own_configuration(repository, tmp_path_factory):
    outer = tmp_path_factory.mktemp("outer")
    git(outer, "init", "-q")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(repository), "inner")
    git(outer, "commit", "-qm", "with a submodule")
    ran = outer / "ran"
    program = executable(outer / "program", f"touch {ran}")
    git(outer / "inner", "config", "core.fsmonitor", str(program))
    (outer / "inner" / "file").write_text("two")
    assert git_state(outer)["git_dirty"] == "no"  # its commit is what it was
    assert not ran.exists()


def test_nothing_where_git_knows_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {}  # no repository
    assert git_state(tmp_path / "gone") == {}
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path) == {}  # no commit
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {}  # no git


def test_a_git_that_hangs_or_fails_at_status_does_not_stop_a_training(tmp_path, monkeypatch):
    executable(tmp_path / "git", 'case "$*" in *status*) exit 128;; esac\necho abc')
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert git_state(tmp_path) == {"git_commit": "abc"}
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: real(*a, **{**k, "timeout": 0.2}))
    executable(tmp_path / "git", "exec sleep 5")
    assert git_state(tmp_path) == {}


def test_versions_are_what_is_imported():
    versions = package_versions()
    assert versions["python"] == platform.python_version()
    assert (versions["numpy"], versions["opencv"]) == (np.__version__, cv2.__version__)
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert ("cuda" in versions) == (torch.version.cuda is not None)


def test_every_checkpoint_says_so(repository, monkeypatch):
    make_shapes(repository / "data", train_images=4, val_images=2, size_hw=(64, 64))
    monkeypatch.chdir(repository)
    run = fit(tiny_config(Path("data"), "schedule.epochs=1", "amp=bf16"), "runs", quiet=True).run
    for name in ("best.pt", "last.pt"):
        card = read_card(run / name)
        commit = {"git_commit": git(repository, "rev-parse", "HEAD"), "git_dirty": "no"}
        assert card.versions == package_versions() | commit
        assert set(card.hashes) == {"train_annotations", "val_annotations"}
        assert card.metrics["trained_in"] == "bfloat16"
