"""Paths as users write them, and as messages show them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cktf.errors import PathError


def expand_user_path(path: str | Path) -> Path:
    """Replace `~` or `~user` at the start of a path by the home folder.

    A shell does not expand `~` in `--out=~/runs`, nor does Python.

    Raises:
        PathError: there is no such user.

    >>> expand_user_path("runs/a").as_posix()
    'runs/a'
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise PathError(
            f"{path}: a path that begins with ~ is in a home folder, and there is none for "
            f"{Path(path).parts[0]}. Write the path out, or ./~… for a name that begins so."
        ) from error


def shorten_path(path: Path) -> Path:
    """Make a path relative if it is inside the working folder, for a message."""
    with suppress(ValueError, OSError):
        relative = path.relative_to(Path.cwd())
        return relative if relative.name else path
    return path


@contextmanager
def keep_working_folder() -> Iterator[None]:
    """Return to the working folder after a block that runs a user's code."""
    folder = Path.cwd()
    try:
        yield
    finally:
        os.chdir(folder)
