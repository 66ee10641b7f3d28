"""The comparison that a new user sees first."""

from pathlib import Path
from typing import Any

from cktf.workflows.train import distill, teach

DATA = "fashion-mini"
TEACHER, STUDENT = "resnet20", "resnet8"
TEACHER_EPOCHS, STUDENT_EPOCHS = 5, 3
METHODS = {"ce": "alone", "kd": "with KD", "cktf+kd": "with CKTF+KD"}
# A sixteenth of the paper's negatives, for a data set that is a fifth of its own; drawn once for
# the whole batch, for the time it takes.
_CKTF = {"cktf": {"negatives": 1024, "estimator": "shared"}}


def run_quickstart(out: Path, show: bool = True) -> list[dict[str, Any]]:
    """Train a teacher, then the same student by each of METHODS; continue what is in `out`.

    Returns:
        The summaries: the teacher's, then one for each method.
    """
    teacher = teach(
        TEACHER, train=DATA, epochs=TEACHER_EPOCHS, out=out / "teacher", resume=True, show=show
    )
    runs = [
        distill(
            teacher.folder,
            STUDENT,
            train=DATA,
            method=method,
            epochs=STUDENT_EPOCHS,
            out=out / method,
            options=_CKTF if "cktf" in method else None,
            resume=True,
            show=show,
        )
        for method in METHODS
    ]
    return [teacher.summary, *(run.summary for run in runs)]
