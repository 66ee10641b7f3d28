"""Handlers of SIGTERM and Ctrl-C: the first makes a run save itself and stop, a second ends it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class _StopRequest:
    """The stop signal that this process received, while at least one run catches such signals."""

    def __init__(self) -> None:
        self.num_runs, self.process_id = 0, 0
        self.signal: signal.Signals | None = None
        self.handlers = ExitStack()

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal; let the second end the process."""
        if os.getpid() != self.process_id:
            # DataLoader workers inherit this handler and should exit.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(self.process_id, number)
        self.signal = signal.Signals(number)


_stop_request = _StopRequest()


def stop_signal() -> str | None:
    """Return the name of the stop signal that was received; None if there was none."""
    return None if _stop_request.signal is None else _stop_request.signal.name


@contextmanager
def signal_handler(
    handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> Iterator[None]:
    """Handle signals inside the block; restore the previous handlers on exit.

    Only the main thread handles signals: in another thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous_handlers = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous_handler in previous_handlers.items():
            signal.signal(number, previous_handler)


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt, which names the signal, at SIGTERM and Ctrl-C.

    `catch_stop_signals` inside the block takes precedence.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(f"Stopped by {signal.Signals(number).name}.")

    with signal_handler(interrupt, *_STOP_SIGNALS):
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
        _stop_request.handlers.enter_context(signal_handler(_stop_request.handle, *_STOP_SIGNALS))
    _stop_request.num_runs += 1
    try:
        yield
    finally:
        _stop_request.num_runs -= 1
        if not _stop_request.num_runs:
            _stop_request.handlers.close()
            _stop_request.signal = None
