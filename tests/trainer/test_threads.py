"""The number of CPU threads of a training, on a machine that is made up: others come and go."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from isodet.strict import ConfigError
from models.checkpoint import read_checkpoint
from tests.trainer.tiny import tiny_config
from trainer.devices.threads import PATIENCE_S, TRIAL_STEPS, WINDOW_S, Machine, Threads, training_threads
from trainer.loop import fit

PICTURES = 16, 2


class MadeUp:
    """`cores`, of which `busy` are other programs'. Threads that have no core to themselves make a step ten times as
    slow, where there are several of them."""

    def __init__(self, cores: int = 2, busy: int = 0, gain: float = 0.9):
        self.cores, self.busy, self.gain = cores, busy, gain
        self.now, self.threads = 0.0, 0
        self.steps: Counter[int] = Counter()
        """By the number of threads."""
        self.said: list[str] = []
        self.machine = Machine(lambda: self.now, lambda: float(self.busy + self.threads), self.use)

    def use(self, threads: int) -> None:
        self.threads = threads

    def step(self) -> float:
        seconds = 0.7 / self.threads**self.gain
        if self.threads + self.busy > self.cores:
            seconds *= 10 if self.threads > 1 else 1 + self.busy / (2 * self.cores)
        return seconds

    def run(self, threads: Threads, seconds: float) -> float:
        """Steps per second of a training that lasts so long."""
        end, steps = self.now + seconds, 0
        while self.now < end:
            self.now += self.step()
            self.steps[self.threads] += 1
            steps += 1
            threads.after_step()
        return steps / seconds

    def threads_of(self, chosen: int = 0) -> Threads:
        return Threads(self.cores, self.said.append, chosen, self.machine)


@pytest.mark.parametrize(
    ("cores", "busy", "best"),
    [(2, 0, 2), (2, 1, 1), (8, 0, 8), (8, 4, 4), (8, 7, 1), (16, 1, 8), (3, 0, 3), (64, 40, 16)],
)
def test_the_fastest_number_is_taken_in_the_first_steps_and_told(cores: int, busy: int, best: int) -> None:
    place = MadeUp(cores, busy)
    threads = place.threads_of()
    place.run(threads, 60)
    assert threads.chosen == place.threads == best
    assert len(place.said) == 1 and place.said[0].startswith(f"{best} of {cores} CPU threads, the fastest in the trial")


def test_a_hopeless_number_is_left_after_its_first_step() -> None:
    place = MadeUp(64, gain=0.9)
    threads = place.threads_of()
    place.run(threads, 2.0)
    # 32 threads are 1.9 times as slow as 64, 16 are 3.5 times, and one is 42 times.
    assert threads.chosen == 64 and (place.steps[32], place.steps[16], place.steps[1]) == (1 + TRIAL_STEPS, 1, 1)


def test_others_come_and_go() -> None:
    place = MadeUp()
    threads = place.threads_of()
    free = place.run(threads, 200)
    assert threads.chosen == 2
    place.busy = 1
    beside = place.run(threads, 600)
    assert threads.chosen == 1 and re.match(r"steps fell to [1-4]\d% of", place.said[1])
    assert beside > 0.4 * free  # without the watch it would be a tenth
    place.busy = 0
    place.run(threads, PATIENCE_S + 2 * WINDOW_S)
    assert threads.chosen == 2 and "a core has become free" in place.said[3] and len(place.said) == 5
    place.run(threads, 3600)
    assert len(place.said) == 5


def test_beside_others_that_stay_nothing_is_tried_over_and_over() -> None:
    place = MadeUp(busy=1)
    threads = place.threads_of()
    place.run(threads, 3600)
    assert threads.chosen == 1 and len(place.said) == 1


def test_a_validation_between_two_steps_is_no_slow_step() -> None:
    place = MadeUp()
    threads = place.threads_of()
    place.run(threads, 100)
    for _ in range(20):
        place.now += 500
        threads.pause()
        place.run(threads, 70)
    assert threads.chosen == 2 and len(place.said) == 1


def test_a_resumed_run_starts_with_its_number_and_tries_nothing() -> None:
    place = MadeUp()
    threads = place.threads_of(chosen=1)
    assert place.threads == threads.chosen == 1
    place.busy = 1
    place.run(threads, 600)
    assert threads.chosen == 1 and not place.said
    assert MadeUp(2).threads_of(chosen=8).chosen == 2  # the run was begun on a larger machine


def test_where_there_is_nothing_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    used: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cpu = torch.device("cpu")
    assert isinstance(training_threads("auto", cpu, False, 1, 0, said.append), Threads) and used == [4]
    assert training_threads(3, cpu, False, 1, 0, said.append) is None and used == [4, 3]
    assert training_threads("auto", torch.device("cuda"), False, 1, 0, said.append) is None
    assert training_threads("auto", cpu, True, 1, 0, said.append) is None
    assert training_threads("auto", cpu, False, 2, 0, said.append) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert training_threads("auto", cpu, False, 1, 0, said.append) is None
    assert used == [4, 3] and not said


def test_a_training_keeps_its_number_in_the_checkpoint_and_leaves_the_process_as_it_was(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run = fit(tiny_config(data, "schedule.epochs=3", "val_interval=3"), tmp_path).run
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    printed = capsys.readouterr()
    (line,) = [line for line in (printed.out + printed.err).splitlines() if "CPU threads" in line]
    chosen = read_checkpoint(run / "last.pt")["resume"]["threads"]
    assert chosen in (1, 2) and f"{chosen} of 2 CPU threads, the fastest in the trial (2: " in line


def test_threads_that_are_no_number(data: Path) -> None:
    assert tiny_config(data, "threads=2").threads == 2
    for wrong in ("0", "-1", "all"):
        with pytest.raises(ConfigError, match="threads: expected "):
            tiny_config(data, f"threads={wrong}")
