"""Locks between processes and machines that share a folder."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Errors of file systems that have no locks.
_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock; yields False if it is busy and `wait` is False.

    On a file system without locks it yields True to every process.
    """
    # Not "w": the holder of a run folder's lock writes its name into the file.
    with path.open("a") as file:
        acquired = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            acquired = False
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        try:
            yield acquired
        finally:
            # Processes that were forked meanwhile, as DataLoader workers are, inherit the lock.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)
