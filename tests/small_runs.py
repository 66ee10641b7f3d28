"""A small network, runs of a few steps, and what tests read from them."""

import json
import os
import shlex
import signal

import torch
from torch import nn
from typer.testing import CliRunner

import cktf
from cktf.cli.main import app
from cktf.engine.callbacks import StepTimer

OPTIONS = {"cktf": {"negatives": 64}}
TIMES = {"seconds", "images_per_second"}


class SmallNet(nn.Module):
    """A user's network, which does not declare where its features are."""

    def __init__(self, classes=10, width=8, channels=3):
        super().__init__()
        self.a = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.b = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(inplace=True)
        )
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x):
        return self.fc(self.b(self.a(x)).mean((2, 3)))


class CustomNet(nn.Module):
    """Named modules and a forward function of the network and its images."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.compute = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.compute(self, x)


class TwoClassifiers(SmallNet):
    """A second linear layer reads the logits of the first."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(10, 10)

    def forward(self, x):
        return self.last(super().forward(x).relu())


def distill(
    data, out, *, teacher=None, student=None, method="cktf+kd", epochs=2, options=None, **more
):
    """Distill from a wider network; `data` is the pair (train, test)."""
    torch.manual_seed(0)
    default_teacher, default_student = SmallNet(width=16), SmallNet()
    if options is None and "cktf" in method:
        options = OPTIONS
    return cktf.distill(
        teacher or default_teacher, student or default_student, train=data[0], test=data[1],
        method=method, epochs=epochs, out=out, options=options, show=False, **more,
    )  # fmt: skip


def distill_few(data, out, *, overrides=None, **more):
    """Distill in batches of 40: five steps per epoch with `few_images`."""
    return distill(data, out, overrides={"data.batch_size": 40} | (overrides or {}), **more)


def copy_state(network):
    """A copy of parameters and buffers, those outside of the state dict among them."""
    return {k: v.clone() for k, v in (*network.state_dict().items(), *network.named_buffers())}


def student_weights(run):
    """A copy of the student's state dict."""
    return {name: value.clone() for name, value in run.student.state_dict().items()}


def equal_weights(state, other):
    """Compare two states bit for bit."""
    return state.keys() == other.keys() and all(torch.equal(state[k], other[k]) for k in state)


def assert_equal_runs(run, other):
    """Two runs have the same student and the same metrics, bit for bit."""
    assert equal_weights(student_weights(run), student_weights(other))
    assert read_untimed_metrics(run.folder) == read_untimed_metrics(other.folder)


def read_metrics(run_dir):
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def read_untimed_metrics(run_dir):
    """The rows of metrics.jsonl without the columns that measure time."""
    rows = read_metrics(run_dir)
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def after_each_step(monkeypatch, action):
    """Call `action(trainer)` after each step, before the run looks for signals and saves itself."""
    stop_timer = StepTimer.on_step_end

    def on_step_end(self, trainer):
        stop_timer(self, trainer)
        action(trainer)

    monkeypatch.setattr(StepTimer, "on_step_end", on_step_end)


def stop_after_steps(monkeypatch, steps):
    """Send SIGTERM to this process after `steps` training steps."""
    calls = []

    def count(trainer):
        calls.append(1)
        if len(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    after_each_step(monkeypatch, count)


def run_command(line, exit_code=0):
    """Run one `cktf` command line in this process; returns its output."""
    result = CliRunner().invoke(app, shlex.split(line), env={"COLUMNS": "160"})
    assert result.exit_code == exit_code, result.output
    return result.output
