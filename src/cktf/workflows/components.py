"""What a run is put together from."""

from dataclasses import dataclass, field

from torch import nn

from cktf.engine import Accuracy
from cktf.recipes import Data
from cktf.taps import SharedTap


@dataclass(frozen=True)
class RunComponents:
    """The objects of a run.

    Attributes:
        student: the network to be trained.
        teacher: the frozen network; None to train on labels alone.
        student_name, teacher_name: for the record.
        data: its images.
        shared: the teacher's tap, where several runs take turns with one teacher.
        measured: accuracies on the test images by role, which those runs share.
        note: what was loaded as the teacher, for the log.
        began: likewise as the student.
        classes: names of the teacher's, where they are known.
    """

    student: nn.Module
    teacher: nn.Module | None
    student_name: str
    teacher_name: str | None
    data: Data
    shared: SharedTap | None = None
    measured: dict[str, Accuracy] = field(default_factory=dict)
    note: str = ""
    began: str = ""
    classes: tuple[str, ...] | None = None
