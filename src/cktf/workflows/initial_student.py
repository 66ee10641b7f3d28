"""The initial weights of a student that was made in Python and cannot be built again."""

import io
import pickle
from collections.abc import Sequence

import torch
from torch import nn

from cktf.engine import RunFolder
from cktf.errors import CheckpointError
from cktf.files import write_atomically

INITIAL_STUDENT_FILE = "untrained.pt"


def restore_initial_student(students: Sequence[nn.Module], run: RunFolder) -> None:
    """Give students the weights that the run began with; the first call saves them.

    When a transfer is continued, the caller's student object may have been trained meanwhile.

    Raises:
        CheckpointError: the folder is of another student.
    """
    path = run.path / INITIAL_STUDENT_FILE
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
    run.insist(lambda: write_atomically(path, file.getvalue()), "the initial student")
