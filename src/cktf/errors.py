"""What can go wrong, by whose word it can be mended.

Every message states the rule, what was given and what to try. The command line prints it alone and
exits with code 2; `--debug` shows the traceback as well.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class CktfError(Exception):
    """A mistake that the user can mend. Base of all errors raised on purpose."""


class ShapeError(CktfError, ValueError):
    """Tensors whose shapes do not fit the method or each other."""


class TapError(CktfError):
    """A network does not give the features that were asked of it."""


class ModelError(CktfError):
    """An unknown network, or one that cannot be built as asked."""


class CheckpointError(CktfError):
    """A file of weights that is missing, damaged, or belongs to another network."""


class DataError(CktfError):
    """A data set that is unknown, missing, damaged, or does not fit the networks."""


class PathError(CktfError, ValueError):
    """A path that leads nowhere on this machine."""


class MethodError(CktfError):
    """A method string that names nothing, or a method that cannot work with what it is given."""


class RecipeError(CktfError):
    """Everything that is wrong with a recipe or an option, reported at once."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        told = "\n".join(f"  - {problem}" for problem in self.problems)
        several = f"{len(self.problems)} problems in the recipe:\n{told}"
        super().__init__(self.problems[0] if len(self.problems) == 1 else several)


class RunFolderError(CktfError):
    """A run folder that cannot be written, read or continued."""


class TrainingError(CktfError):
    """Training cannot go on: numbers that are not finite, or too little memory."""


class Interrupted(KeyboardInterrupt):
    """A signal asked a run to stop; it can be continued.

    Attributes:
        folder: of the run.
    """

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a name that is not known.

    >>> nearest("resnet9", ["resnet8", "wrn_16_2"])
    "Did you mean 'resnet8'?"
    """
    known = sorted(known)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Known: {', '.join(known)}." if known else "None is known."
