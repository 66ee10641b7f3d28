"""Files that are either whole or absent, whenever a process or a machine stops."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replace_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; flush what was written there and rename it at the end.

    After an error the temporary file is removed and `path` is as it was. Of several processes that
    write `path` at once, the last one's file stays.
    """
    temp_path = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temp_path
        with temp_path.open("rb+") as file:
            os.fsync(file.fileno())
        temp_path.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            # Some network file systems refuse to flush a folder, and have nothing to flush.
            with suppress(OSError):
                os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        with suppress(OSError):
            temp_path.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new."""
    with replace_atomically(path) as temp_path:
        temp_path.write_bytes(content)
