"""Batches of loader processes: whatever keeps one from coming ends the wait, says why, and saves what there is."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import trainer.data.cache
from models.checkpoint import read_checkpoint
from runtime.images.image import ShortSide
from tests.trainer.tiny import TINY, tiny_config
from trainer.config.train import TrainConfig
from trainer.data import batch_wait, loader
from trainer.data.batch_memory import PREFETCH, SentBatch, collate_for
from trainer.data.datasets import train_data
from trainer.data.loader import Batches, training_batches
from trainer.data.shared_memory import SharedMemory
from trainer.data.train_set import TrainSet, resize_rule
from trainer.devices.distributed import Group
from trainer.failures import Interrupted, TrainingError
from trainer.loop import fit
from trainer.run.checkpoints import Checkpoints

PICTURES = (14, 3)
CPU = torch.device("cpu")


def batches(config: TrainConfig) -> Batches:
    dataset = TrainSet(train_data(config), resize_rule(config.model), config.augment, config.seed)
    return training_batches(config, dataset, CPU, Group())


@pytest.mark.parametrize("rule", ["letterbox", "short-side"])
def test_batches_kept_by_their_reader_are_those_of_no_process(data, rule):
    """More batches than slots, two epochs, and nobody writes into one that was handed on."""
    config = tiny_config(data, "batch_size=1", "data.workers=0")
    if rule == "short-side":
        resize = replace(config.model.resize, rule="short-side", short=64, long=96, multiple=32)
        config = replace(config, model=replace(config.model, resize=resize))
    alone = [batch for epoch in range(2) for batch in batches(config).begin(epoch)]
    assert len(alone) == 28 > 2 * (PREFETCH + 1)
    two = batches(replace(config, data=replace(config.data, workers=2)))
    sent = [batch for epoch in range(2) for batch in two.begin(epoch)]
    for a, b in zip(alone, sent, strict=True):
        assert a.image_ids == b.image_ids
        assert all(torch.equal(x, y) for x, y in zip(a[:3], b[:3], strict=True)) and torch.equal(a[4], b[4])


def test_a_batch_larger_than_its_slot_comes_through_the_pipe(data):
    config = tiny_config(data, "batch_size=4", "data.workers=0")
    alone = [*batches(config).begin(0)]
    two = batches(replace(config, data=replace(config.data, workers=1)))
    two.loader.collate_fn.memory.slot_bytes = 100
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, two.begin(0), strict=True))


def test_shared_memory_is_seen_by_who_unpickles_it():
    memory = SharedMemory(16)
    copy = pickle.loads(pickle.dumps(memory))
    memory.array(2, "int64")[:] = 3, 4
    assert copy.array(1, "int64", offset=8)[0] == 4 and copy.array(0, "bool", 16).size == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"),
         r"shared memory is full: .*--shm-size"),
        (OSError(24, "Too many open files"), r"too many files are open: .*ulimit -n"),
        (MemoryError(), r"memory is short: lower data\.workers"),
        (ValueError("something else"), r"ValueError: something else"),
    ],
)  # fmt: skip
def test_a_batch_that_cannot_be_sent_ends_the_training_with_the_reason(data, tmp_path, monkeypatch, error, said):
    """Raised where the queue's own thread pickles the batch: multiprocessing prints that and drops the batch."""

    def broken(self: SentBatch) -> object:
        raise error

    monkeypatch.setattr(SentBatch, "__reduce__", broken)
    with pytest.raises(TrainingError, match=rf"could not send a batch: {said}.*data\.workers=0\. no checkpoint was "):
        fit(tiny_config(data, "data.workers=1"), tmp_path, quiet=True)


def hang_from(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loader processes never answer from picture `number` (from 1) of theirs on."""
    real, parent, read = trainer.data.cache.read_image, os.getpid(), []

    def hanging(path: Path) -> object:
        read.append(path)
        if os.getpid() != parent and len(read) >= number:
            time.sleep(30)  # for ever, as far as the test is concerned
        return real(path)

    monkeypatch.setattr(trainer.data.cache, "read_image", hanging)
    monkeypatch.setattr(loader, "TICK_S", 1)


def ask_in_the_wait_for(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SIGTERM comes in the wait for batch `number` (from 0): after a given time, a slow machine would still start."""
    real = Checkpoints.on_wait

    def waiting(self: Checkpoints, seconds: float, batch: int) -> None:
        if batch == number:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, seconds, batch)

    monkeypatch.setattr(Checkpoints, "on_wait", waiting)


def test_a_signal_ends_a_wait_that_nothing_else_would(data, tmp_path, monkeypatch):
    hang_from(5, monkeypatch)
    ask_in_the_wait_for(2, monkeypatch)
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM in epoch 1, after batch 2; all of it is saved"):
        fit(tiny_config(data, "data.workers=1", "batch_size=2"), tmp_path, quiet=True)
    assert read_checkpoint(tmp_path / "shapes" / "last.pt")["resume"]["batch"] == 2


def test_half_an_accumulated_step_is_not_saved(data, tmp_path, monkeypatch):
    hang_from(3, monkeypatch)
    ask_in_the_wait_for(1, monkeypatch)
    with pytest.raises(Interrupted, match=r"while pictures did not come for \d+ s; no checkpoint was written before"):
        fit(tiny_config(data, "data.workers=1", "batch_size=2", "optim.accumulate=2"), tmp_path, quiet=True)
    assert not (tmp_path / "shapes" / "last.pt").exists()


def test_no_wait_is_endless(data, tmp_path, monkeypatch):
    hang_from(1, monkeypatch)
    monkeypatch.setattr(batch_wait, "LONGEST_S", 1.5)
    with pytest.raises(TrainingError, match=r"no batch of pictures came for \d+ s, .*does the disk"):
        fit(tiny_config(data, "data.workers=1"), tmp_path, quiet=True)


def test_processes_that_cannot_start_say_which_limit_to_raise(data):
    made = batches(tiny_config(data, "data.workers=2"))
    limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                taken.append(os.dup(0))
        os.close(taken.pop())
        with pytest.raises(TrainingError, match=r"data\.workers: 2 loader processes cannot be started .*ulimit -n"):
            next(made.begin(0))
    finally:
        for file in taken:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _own_shm(size: str, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run in a mount namespace of its own whose /dev/shm is `size`; skips where that may not be made."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("needs root and unshare for a /dev/shm of its own")
    mount = f"mount --make-rprivate / && mount -t tmpfs -o {size} tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "bash", "-c", mount], capture_output=True).returncode:
        pytest.skip("this root may not mount")
    script = f'{mount} && exec "$@"'
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", script, "x", *command], cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("size", "workers", "status"), [("size=256k", "2", 0), ("ro", "0", 0), ("ro", "2", 1)], ids=str
)
def test_training_does_not_need_dev_shm(data, tmp_path, size, workers, status):
    """64 MB, as docker gives, were too little for two processes and pictures of 1344x800."""
    keys = [*TINY, "schedule.epochs=1", "model.input_size_hw=[256,256]", f"data.workers={workers}"]
    command = [sys.executable, "-m", "trainer", "fit", str(data / "shapes.yaml"), *keys, "--quiet"]
    done = _own_shm(size, command, tmp_path)
    assert done.returncode == status, done.stderr
    if status:
        assert "data.workers: 2 loader processes cannot be started" in done.stderr and "/dev/shm" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_slot_holds_a_picture_that_lies_and_one_that_stands():
    memory = collate_for(ShortSide(48, 80, 32, False, (0, 0, 0)), 2, 1).memory
    assert memory is not None and memory.slot_bytes == 2 * 96 * 96 * 3
