"""Timing of steps on a GPU, which computes them later than they are queued."""

import time
from types import SimpleNamespace

import pytest
import torch

from cktf.engine.callbacks import StepTimer


class QueuedGPU:
    """A GPU whose events happen when its queued work is done, in seconds of its own clock."""

    def __init__(self, monkeypatch):
        self.queued_until = self.now = 0.0
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self, stream):
                self.time = gpu.queued_until

            def query(self):
                return self.time <= gpu.now

            def synchronize(self):
                gpu.now = max(gpu.now, self.time)

            def elapsed_time(self, end):
                assert end.query()
                return 1000 * (end.time - self.time)

        monkeypatch.setattr("torch.cuda.Event", Event)
        monkeypatch.setattr("torch.cuda.current_stream", lambda device: None)

    def take_step(self, timer, trainer, seconds):
        timer.on_step_start(trainer)
        self.queued_until += seconds
        trainer.position.step += 1
        timer.on_step_end(trainer)


def run(device, steps):
    return SimpleNamespace(
        device=torch.device(device),
        position=SimpleNamespace(step=0),
        train=range(steps),
        metrics=SimpleNamespace(seconds=0.0),
    )


def test_each_of_two_interleaved_runs_counts_its_own_steps(monkeypatch):
    """Waiting for numbers at the end of an epoch waits for the other run's queued steps too."""
    gpu, runs = QueuedGPU(monkeypatch), [run("cuda", 4), run("cuda", 4)]
    timers = [StepTimer(), StepTimer()]
    for _ in range(4):
        for trainer, timer, seconds in zip(runs, timers, (1.0, 10.0), strict=True):
            gpu.take_step(timer, trainer, seconds)
    assert [trainer.metrics.seconds for trainer in runs] == [pytest.approx(4), pytest.approx(40)]


def test_steps_are_counted_when_they_are_done_and_no_step_waits(monkeypatch):
    gpu, trainer, timer = QueuedGPU(monkeypatch), run("cuda", 3), StepTimer()
    gpu.take_step(timer, trainer, 1.0)
    assert (trainer.metrics.seconds, gpu.now) == (0, 0)
    gpu.now = 1.0
    gpu.take_step(timer, trainer, 1.0)
    assert (trainer.metrics.seconds, gpu.now) == (1, 1)
    gpu.take_step(timer, trainer, 1.0)
    assert trainer.metrics.seconds == 3


def test_a_step_on_the_device_takes_the_time_of_the_clock(device):
    trainer, timer = run(device, 2), StepTimer()
    for _ in range(2):
        timer.on_step_start(trainer)
        torch.rand(64, 64, device=device) @ torch.rand(64, 64, device=device)
        time.sleep(0.02)
        torch.rand(64, 64, device=device).sum()
        trainer.position.step += 1
        timer.on_step_end(trainer)
    assert 0.03 < trainer.metrics.seconds < 5
