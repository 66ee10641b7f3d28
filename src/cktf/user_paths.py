"""Paths as users write them."""

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
