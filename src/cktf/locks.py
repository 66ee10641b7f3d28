"""Locks between processes and machines that share a folder."""

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What file systems that know no locks answer.
_NONE = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Whether this process alone has a file for as long as this lasts; with waiting, it has.

    Where a file system knows no locks, every process is told that it has.
    """
    flags = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    with path.open("w") as file:
        mine = True
        try:
            fcntl.flock(file, flags)
        except BlockingIOError:
            mine = False
        except OSError as error:
            if error.errno not in _NONE:
                raise
        yield mine
