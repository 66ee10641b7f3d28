"""Errors that users can fix.

Every message states the rule, what was given and what to try. The command line prints the message
alone and exits with code 2; `--debug` shows the traceback as well.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class CktfError(Exception):
    """A mistake that the user can fix. Base class of all errors raised on purpose."""


class ShapeError(CktfError, ValueError):
    """Tensors whose shapes do not fit the method or each other."""


class TapError(CktfError):
    """A network without the features that a method reads."""


class ModelError(CktfError):
    """An unknown network, or one that cannot be built with its arguments."""


class CheckpointError(CktfError):
    """A weights file that is missing, damaged, or belongs to another network."""


class DataError(CktfError):
    """A data set that is unknown, missing, damaged, or does not fit the networks."""


class PathError(CktfError, ValueError):
    """A path in the home folder of an unknown user."""


class MethodError(CktfError):
    """An unknown method, or one that does not fit the networks, data or options."""


class RecipeError(CktfError):
    """All problems with a recipe or with options, reported at once.

    Attributes:
        problems: one message each.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        message = self.problems[0] if self.problems else ""
        if len(self.problems) > 1:
            lines = "\n".join(f"  - {problem}" for problem in self.problems)
            message = f"{len(self.problems)} problems in the recipe:\n{lines}"
        super().__init__(message)


class RunFolderError(CktfError):
    """A run folder that cannot be written, read or resumed."""


class TrainingError(CktfError):
    """Training that cannot go on: numbers that are not finite, or too little memory."""


class Interrupted(KeyboardInterrupt):
    """A signal asked a run to stop; the run can be resumed.

    Attributes:
        folder: of the run.
    """

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name for an unknown one.

    >>> nearest("resnet9", ["resnet8", "wrn_16_2"])
    "Did you mean 'resnet8'?"
    """
    known = sorted(known)
    if matches := get_close_matches(name, known, n=1, cutoff=0.5):
        return f"Did you mean {matches[0]!r}?"
    return f"Known: {', '.join(known)}." if known else "None is known."
