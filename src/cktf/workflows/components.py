"""The objects that a run consists of."""

from dataclasses import dataclass, field

from torch import nn

from cktf.engine import Accuracy, Runtime
from cktf.recipes import Data
from cktf.taps import SharedTap


@dataclass(frozen=True)
class RunComponents:
    """The objects of a run.

    Attributes:
        runtime: device, precision and seed.
        student: the network to train.
        teacher: the frozen network; None to train on labels alone.
        student_name, teacher_name: names for the record.
        data: the images and their loaders.
        shared_tap: the teacher's tap, where interleaved runs share one teacher.
        measured_accuracy: accuracies on the test images by role, which interleaved runs share.
        teacher_origin, student_origin: the weights that were loaded, for the log.
        teacher_classes: names of the teacher's classes; None where they are unknown.
        teacher_trained_size: height and width of the images that the teacher was trained on; None
            where they are unknown.
    """

    runtime: Runtime
    student: nn.Module
    teacher: nn.Module | None
    student_name: str
    teacher_name: str | None
    data: Data
    shared_tap: SharedTap | None = None
    measured_accuracy: dict[str, Accuracy] = field(default_factory=dict)
    teacher_origin: str = ""
    student_origin: str = ""
    teacher_classes: tuple[str, ...] | None = None
    teacher_trained_size: tuple[int, ...] | None = None

    @property
    def trained_role(self) -> str:
        """What messages call the network that trains: a student, where there is a teacher."""
        return "network" if self.teacher is None else "student"

    @property
    def trained_title(self) -> str:
        """Role and name of the network that trains."""
        return f"{self.trained_role} {self.student_name}"
