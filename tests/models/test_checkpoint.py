"""Checkpoints: atomic, plain tensors, and clear about everything that is not one."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from isodet.strict import to_mapping
from models.checkpoint import CheckpointError, build_detector, load_detector, read_checkpoint, save_checkpoint
from models.config.model import model_config
from models.detector import Detector
from tests.at_fault import raises

CONFIG = model_config({
    "classes": ["a", "b"], "input_size_hw": [64, 64], "backbone": {"name": "resnet18", "width": 0.125},
    "neck": {"channels": 16, "levels": [3, 5]}, "head": {"depth": 1},
    "postprocess": {"candidates": 50, "detections": 10},
})  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "best.pt"
    save_checkpoint(path, Detector(CONFIG).state_dict(), {"model": to_mapping(CONFIG)})
    return path


def test_round_trip(saved):
    detector, card = build_detector(saved)
    assert card == {"model": to_mapping(CONFIG)}
    assert not detector.training
    content = read_checkpoint(saved)
    assert all(torch.equal(v, content["model"][k]) for k, v in detector.state_dict().items())
    deploy, _ = load_detector(saved)
    with torch.inference_mode():
        assert [tuple(t.shape) for t in deploy(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))] == [
            (1, 1), (1, 10, 4), (1, 10), (1, 10),
        ]  # fmt: skip


def test_what_is_not_a_checkpoint(saved, tmp_path):
    for name in ("nowhere.pt", "a\0b.pt", "x" * 300 + ".pt"):  # the last two are names that no file can have
        with raises(CheckpointError, path=tmp_path / name):
            read_checkpoint(tmp_path / name)
    bad = tmp_path / "bad.pt"
    for content in (b"", b"hello", saved.read_bytes()[:1000], saved.read_bytes()[:-100]):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"bad\.pt: cannot read this checkpoint: not a file of tensors"):
            read_checkpoint(bad)
    torch.save({"state_dict": {}}, bad)
    with pytest.raises(CheckpointError, match=r"not an isodet checkpoint \(it holds: state_dict\)"):
        read_checkpoint(bad)
    torch.save({"format": 99, "card": {}, "model": {}}, bad)
    with pytest.raises(CheckpointError, match="checkpoint format 99, this isodet reads 1"):
        read_checkpoint(bad)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pickled-code-ran",)


def test_pickled_code_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "torch.pt")
    Path("plain.pt").write_bytes(pickle.dumps(Evil()))
    for name in ("torch.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match="not a file of tensors"):
            read_checkpoint(name)
    assert not Path("pickled-code-ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("head.cls.bias"), r"1 missing: head.cls.bias \[2\]"),
        (lambda w: w.update({"head.extra": torch.zeros(1)}), r"1 not expected: head.extra \[1\]"),
        (lambda w: w.update({"head.cls.bias": torch.zeros(7)}), r"1 of another .* head.cls.bias \[7\] .* \[2\]"),
    ],
)
def test_weights_that_do_not_fit_the_card(saved, change, message):
    content = read_checkpoint(saved)
    change(content["model"])
    save_checkpoint(saved, content["model"], content["card"])
    with pytest.raises(CheckpointError, match=f"do not fit its own card: {message}"):
        build_detector(saved)


@pytest.mark.parametrize("card", [{}, {"model": None}, {"model": {"classes": ["a"], "neckk": {}}}])
def test_a_card_without_a_usable_model(saved, card):
    save_checkpoint(saved, {}, card)
    with pytest.raises(CheckpointError, match=r"best\.pt: .*card\.model"):
        build_detector(saved)


def test_a_failed_write_keeps_the_old_file_and_leaves_no_litter(saved):
    before = saved.read_bytes()
    with pytest.raises(AttributeError):
        save_checkpoint(saved, {"model": lambda: None}, {})  # cannot be pickled
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["best.pt"]


def test_a_process_killed_while_writing_leaves_a_readable_file(tmp_path):
    program = (
        "import sys, torch\n"
        "from models.checkpoint import save_checkpoint\n"
        "while True:\n"
        "    save_checkpoint(sys.argv[1], {'w': torch.zeros(2_000_000)}, {}); print('written', flush=True)\n"
    )
    path = tmp_path / "last.pt"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for pause in (0.0, 0.004, 0.011):
        command = [sys.executable, "-c", program, str(path)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert read_checkpoint(path)["model"]["w"].numel() == 2_000_000
