"""SIGTERM and Ctrl-C: the first asks a run to save itself and stop, a second ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _Listening:
    """What the process was asked, while at least one run listens."""

    def __init__(self) -> None:
        self.runs, self.owner = 0, 0
        self.asked: signal.Signals | None = None
        self.before: dict[signal.Signals, Any] = {}

    def hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.owner:
            # A process that loads data inherited this; it is not what was asked.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.asked is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self.owner, number)
        self.asked = signal.Signals(number)


_listening = _Listening()


def stop_signal() -> str | None:
    """The signal that asked, by name; None if none did."""
    return None if _listening.asked is None else _listening.asked.name


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C raise KeyboardInterrupt, which says so, where no run inside listens.

    Signals reach the main thread only: in another nothing is changed.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(f"Stopped by {signal.Signals(number).name}.")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def catch_stop_signals() -> Iterator[None]:
    """Take note of signals in place of ending; several runs that take turns listen together.

    Signals reach the main thread only: in another nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _listening.runs:
        _listening.asked, _listening.owner = None, os.getpid()
        _listening.before = {s: signal.signal(s, _listening.hear) for s in _SIGNALS}
    _listening.runs += 1
    try:
        yield
    finally:
        _listening.runs -= 1
        if not _listening.runs:
            for number, handler in _listening.before.items():
                signal.signal(number, handler)
            _listening.asked = None
