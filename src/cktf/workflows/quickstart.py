"""The demo: one teacher, and one student trained alone, with KD and with CKTF+KD."""

from pathlib import Path
from typing import Any

from cktf.engine import check_output_folder
from cktf.workflows.train import distill, teach

DATA = "fashion-mini"
TEACHER, STUDENT = "resnet20", "resnet8"
TEACHER_EPOCHS, STUDENT_EPOCHS = 5, 3
METHODS = {"ce": "alone", "kd": "with KD", "cktf+kd": "with CKTF+KD"}
# 1/16 of the paper's negatives, since the data set is a fifth of the paper's; shared by the batch,
# which saves time.
_CKTF = {"cktf": {"negatives": 1024, "estimator": "shared"}}


def run_quickstart(out: Path, show: bool = True) -> list[dict[str, Any]]:
    """Train a teacher, then the same student by each of METHODS, resuming runs in `out`.

    Returns:
        The summaries: the teacher's, then one for each method.

    Raises:
        RunFolderError: `out` holds other files than these runs.
    """
    check_output_folder(out, ("teacher", *METHODS))
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
