"""Knowledge distillation as an objective: see `cktf.functional.kd`."""

from typing import Any

from typing_extensions import Self

from cktf.batch import Batch
from cktf.errors import MethodError
from cktf.functional import kd_loss
from cktf.objectives.base import BuildContext, Loss, Objective, single_term_loss
from cktf.objectives.pairs import require_not_none
from cktf.taps import Features


class KD(Objective):
    """Match the teacher's softened class probabilities.

    `T² · mean KL(softmax(teacher/T) ‖ softmax(student/T))`.

    Args:
        temperature: T > 0, by which both logits are divided.
    """

    title = "Knowledge distillation"
    paper = "arXiv 1503.02531"
    requires = frozenset({"logits"})
    capturable = True

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise MethodError(f"KD's temperature is above 0, given {temperature}; 4 is usual.")
        self.temperature = temperature

    @classmethod
    def from_setting(cls, context: BuildContext, **options: Any) -> Self:
        """Build it for two classifiers of the same classes."""
        student, teacher = context.both_features("KD")
        if student.logits.shape != teacher.logits.shape:
            raise MethodError(
                "KD compares logits of the same classes: the student has "
                f"{student.logits.shape[1]}, the teacher {teacher.logits.shape[1]}. Give the "
                "student the teacher's classes, or use a method that reads features."
            )
        return cls(**options)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        teacher = require_not_none(teacher, "KD's teacher")
        return single_term_loss("kd", kd_loss(student.logits, teacher.logits, self.temperature))
