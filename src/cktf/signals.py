"""Signals that make a run save itself and stop: SIGTERM, Ctrl-C, and those that announce an end.

SIGHUP comes when a terminal closes, and SIGUSR1, SIGUSR2 or SIGXCPU when a time limit is near.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

# A second one of these ends the process at once; the others may come repeatedly.
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOP_SIGNALS = (*_END_SIGNALS, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class _StopRequest:
    """The stop signal that this process received, while at least one run catches such signals."""

    def __init__(self) -> None:
        self.num_runs, self.process_id = 0, 0
        self.signal: signal.Signals | None = None
        self.handlers = ExitStack()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal; let a second SIGTERM or Ctrl-C end the process."""
        if os.getpid() != self.process_id:
            # DataLoader workers inherit this handler and should exit.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.signal in _END_SIGNALS and number in _END_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self.process_id, number)
        if self.signal is None or number in _END_SIGNALS:
            self.signal = signal.Signals(number)


_stop_request = _StopRequest()
# The handlers of this module that are installed.
_handlers: list[Callable[[int, FrameType | None], None]] = []


def stop_signal() -> str | None:
    """Return the name of the stop signal that was received; None if there was none."""
    return None if _stop_request.signal is None else _stop_request.signal.name


@contextmanager
def signal_handler(
    handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> Iterator[None]:
    """Handle signals inside the block; restore the previous handlers on exit.

    SIGTERM and Ctrl-C are always handled. Another signal that is ignored, as SIGHUP is under nohup,
    stays so, and one that has a user's own handler keeps it. Only the main thread handles signals:
    in another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handlers = {n: signal.signal(n, handler) for n in numbers if _can_be_handled(n)}
    _handlers.append(handler)
    try:
        yield
    finally:
        _handlers.remove(handler)
        for number, previous_handler in previous_handlers.items():
            signal.signal(number, previous_handler)


def _can_be_handled(number: signal.Signals) -> bool:
    current = signal.getsignal(number)
    return number in _END_SIGNALS or current is signal.SIG_DFL or current in _handlers


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt, which names the signal, at a stop signal.

    `catch_stop_signals` inside the block takes precedence.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(f"Stopped by {signal.Signals(number).name}.")

    with signal_handler(interrupt, *STOP_SIGNALS):
        yield


@contextmanager
def catch_stop_signals() -> Iterator[None]:
    """Record stop signals for `stop_signal` instead of ending the process.

    Several runs of one process may do so at once, and leave their blocks in any order.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _stop_request.num_runs:
        _stop_request.signal, _stop_request.process_id = None, os.getpid()
        _stop_request.handlers.enter_context(signal_handler(_stop_request.handle, *STOP_SIGNALS))
    _stop_request.num_runs += 1
    try:
        yield
    finally:
        _stop_request.num_runs -= 1
        if not _stop_request.num_runs:
            _stop_request.handlers.close()
            _stop_request.signal = None
