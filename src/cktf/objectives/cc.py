"""Correlation congruence as an objective: see `cktf.functional.cc`."""

from typing import Any

from torch import Tensor, nn
from typing_extensions import Self

from cktf.batch import Batch
from cktf.errors import MethodError
from cktf.functional import cc_loss
from cktf.functional.precision import full_precision
from cktf.objectives.base import BuildContext, Loss, Objective, single_term_loss
from cktf.objectives.pairs import embeddings
from cktf.taps import Features


class CC(Objective):
    """Neighbors in the batch are displaced from the teacher in unlike directions.

    Mean over neighbors of `Σ_d δ_i δ_{i+1}`, with `δ = |s − t|` after a trained linear layer for
    each network.

    Args:
        student_dim, teacher_dim: lengths of the embeddings.
        embedding_dim: of what is compared.
    """

    title = "Correlation congruence"
    paper = "arXiv 1904.01802"
    default_weight = 0.02
    requires = frozenset({"embedding"})
    capturable = True

    def __init__(self, student_dim: int, teacher_dim: int, embedding_dim: int = 128) -> None:
        super().__init__()
        if embedding_dim < 1:
            raise MethodError(f"CC's embedding_dim is 1 or more, given {embedding_dim}.")
        self.student_head = nn.Linear(student_dim, embedding_dim)
        self.teacher_head = nn.Linear(teacher_dim, embedding_dim)

    @classmethod
    def from_setting(cls, context: BuildContext, **options: Any) -> Self:
        """Build it for two networks with embeddings."""
        student, teacher = embeddings("CC", *context.both_features("CC"))
        return cls(student.shape[1], teacher.shape[1], **options)

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        return single_term_loss("cc", self._loss(*embeddings("CC", student, teacher)))

    @full_precision
    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        student = self.student_head(student.float())
        return cc_loss(student, self.teacher_head(teacher.detach().float()))
