"""SIGTERM and Ctrl-C to `cktf` itself: a real process, which is told to stop and goes on."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from small_runs import after_each_step

from cktf.errors import Interrupted
from cktf.signals import STOP_SIGNALS, catch_stop_signals, interrupt_on_signals, stop_signal

SHOP = "cktf train --model resnet8 --data fashion-mini --set data.per_class=13 --epochs 400"


def start(line, folder):
    # A group of its own, which a terminal's Ctrl-C would reach as a whole.
    return subprocess.Popen(
        [sys.executable, "-m", *shlex.split(line)], cwd=folder, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(path, process):
    until = time.monotonic() + 120
    while not path.exists() or not path.read_text():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_says_how_to_continue(tmp_path, number):
    process = start(f"{SHOP} --out run", tmp_path)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    asked = time.monotonic()
    os.killpg(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert process.returncode == 75
    assert f"Stopped by {signal.Signals(number).name} after step" in said
    assert "saved. Continue with: cktf train --resume run" in said
    assert "Traceback" not in said
    assert list((tmp_path / "run" / "checkpoints").glob("*.pt"))
    assert not list((tmp_path / "run").rglob("*.partial"))
    if number == signal.SIGTERM:
        _continues_and_ends_at_once(said, tmp_path)


def _continues_and_ends_at_once(said, folder):
    """The command that was printed; then two signals, of which the second does not wait."""
    log = folder / "run" / "log.txt"
    command = said.strip().splitlines()[-1].partition("Continue with: ")[2]
    process = start(command, folder)
    until = time.monotonic() + 120
    while "continued after" not in log.read_text() and time.monotonic() < until:
        time.sleep(0.02)
    # Stopped, it can act on nothing until both are there.
    os.kill(process.pid, signal.SIGSTOP)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGCONT)
    process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGTERM, -signal.SIGINT)


@pytest.mark.parametrize("number", STOP_SIGNALS[2:])
def test_signals_that_announce_an_end_save_a_run(small_run, monkeypatch, tmp_path, number):
    """They may come repeatedly, and SIGTERM after them."""
    stopped = []

    def send(trainer):
        if not stopped:
            stopped.append(number)
            for n in (number, number, signal.SIGTERM):
                os.kill(os.getpid(), n)

    after_each_step(monkeypatch, send)
    with pytest.raises(Interrupted, match=r"Stopped by SIG\w+ after step 1 of epoch 1; saved"):
        small_run()
    assert list((tmp_path / "run" / "checkpoints").glob("*.pt"))


def test_an_ignored_signal_and_a_users_handler_stay(monkeypatch):
    """SIGHUP is ignored under nohup; SIGUSR1 may be another library's."""
    received = []
    handlers = {signal.SIGHUP: signal.SIG_IGN, signal.SIGUSR1: lambda *_: received.append(1)}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with interrupt_on_signals(), catch_stop_signals():
            for number in handlers:
                os.kill(os.getpid(), number)
            assert stop_signal() is None
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop_signal() == "SIGUSR2"
        assert all(signal.getsignal(n) is handler for n, handler in handlers.items())
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
        assert received == [1]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.slow
def test_a_signal_before_training_ends_without_a_traceback(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from cktf.cli.main import app\n"
        "import cktf.workflows.train as train\n"
        "def prepare(*args, **named):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "train.prepare = prepare\n"
        "sys.argv = ['cktf', 'train', '--model', 'resnet8', '--out', 'run']\n"
        "app()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr == "cktf: Stopped before anything was trained.\n"
    assert not list(tmp_path.iterdir())
