"""Standard output and standard error that a process outlives."""

import errno
import io
import os
import sys
from typing import Any


class _LossyFile(io.FileIO):
    """A file whose failed writes are lost.

    Attributes:
        failure: the first error; None without any.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write bytes, or lose them."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            return len(data)


def protect_standard_streams() -> None:
    """Let no write to standard output or standard error fail.

    What cannot be written, since a reader has ended, a terminal or stream was closed or a disk is
    full, is lost. Characters that the encoding lacks are written as escapes.
    """
    # No file that is opened later may become the standard output.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        raw = _LossyFile(number, "w", closefd=False)
        protected = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=getattr(stream, "encoding", "utf-8"),
            errors="backslashreplace",
            line_buffering=name == "stderr" or raw.isatty(),
            write_through=getattr(stream, "write_through", False),
        )
        setattr(sys, name, protected)


def raise_if_output_was_lost() -> None:
    """Raise OSError if protected standard output could not be written; a reader may end early."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, _LossyFile) else None
    if failure is not None and failure.errno != errno.EPIPE:
        raise OSError(failure.errno, failure.strerror, "standard output")
