"""Paths as users write them, and as messages show them."""

import os
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cktf.errors import PathError

_LIBRARIES = (str(Path(__file__).parent), sysconfig.get_path("stdlib"))


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


def locate_in_user_code(error: BaseException) -> str:
    """Say which line of a user's file raised an error, as `FILE, line N`; ``""`` if none did.

    Lines of installed packages, of Python's own library and of this one are left out.
    """
    lines = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename
        and not frame.filename.startswith(_LIBRARIES)
        and Path(frame.filename).is_file()
    ]
    return f"{lines[-1].filename}, line {lines[-1].lineno}" if lines else ""


@contextmanager
def keep_working_folder() -> Iterator[None]:
    """Return to the working folder after a block that runs a user's code."""
    folder = Path.cwd()
    try:
        yield
    finally:
        os.chdir(folder)
