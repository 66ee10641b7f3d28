"""Cross-entropy with the labels: how a network is trained without a teacher."""

from torch.nn import functional as F

from cktf.batch import Batch
from cktf.errors import MethodError
from cktf.objectives.base import Loss, Objective, single_term_loss
from cktf.taps import Features


class CrossEntropy(Objective):
    """`mean over the batch of −log softmax(logits)[label]`, in nats."""

    title = "Cross-entropy: the student alone"
    requires = frozenset({"labels"})
    capturable = True
    needs_teacher = False

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        if batch.labels is None:
            raise MethodError(
                "Cross-entropy reads labels, and the data has none. Use labeled data, or a method "
                "without cross-entropy."
            )
        return single_term_loss("ce", F.cross_entropy(student.logits.float(), batch.labels))
