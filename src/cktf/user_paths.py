"""Paths as users give them."""

from pathlib import Path

from cktf.errors import PathError


def expanded(path: str | Path) -> Path:
    """A path in which `~`, or `~` and a user's name, has become a home folder, as in a shell.

    A shell leaves that to us in `--out=~/runs`, and so does Python.

    Raises:
        PathError: nobody is called so.

    >>> expanded("runs/a").as_posix()
    'runs/a'
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise PathError(
            f"{path}: a path that begins with ~ is in a home folder, and there is none for "
            f"{Path(path).parts[0]}. Write the path out, or ./~… for a name that begins so."
        ) from error
