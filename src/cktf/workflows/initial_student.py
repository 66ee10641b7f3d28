"""A student as it was before it learned, where it was made in Python and cannot be made again."""

import io
import pickle
from collections.abc import Sequence

import torch
from torch import nn

from cktf.engine import RunFolder
from cktf.errors import CheckpointError
from cktf.files import write_atomically

NAME = "untrained.pt"


def restore_initial_student(students: Sequence[nn.Module], run: RunFolder) -> None:
    """Copies of a student as they were at a transfer's first step, whose folder keeps them.

    The same object, given again to continue, has learned meanwhile.

    Raises:
        CheckpointError: the folder is of another student.
    """
    path = run.path / NAME
    if path.exists():
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            for student in students:
                student.load_state_dict(state)
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} is of another student, or damaged ({type(error).__name__}). Continue with "
                "the student of the first call, or choose another out."
            ) from error
        return
    file = io.BytesIO()
    torch.save(students[0].state_dict(), file)
    run.insist(lambda: write_atomically(path, file.getvalue()), "the student as it was")
