"""Cross-entropy with the labels: how a network is trained without a teacher."""

from torch.nn import functional as F

from cktf.batch import Batch
from cktf.errors import MethodError
from cktf.objectives.base import Loss, Objective, Setting
from cktf.taps import Features


class CrossEntropy(Objective):
    """`mean over the batch of −log softmax(logits)[label]`, in nats."""

    needs_teacher = False

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Loss:
        """The loss of one batch."""
        if batch.labels is None:
            raise MethodError(
                "Cross-entropy reads labels, and the data has none. Use labelled data, or a method "
                "without cross-entropy."
            )
        loss = F.cross_entropy(student.logits.float(), batch.labels)
        return Loss(loss, {"ce": loss.detach()})


def build(setting: Setting) -> CrossEntropy:
    """Cross-entropy needs nothing of the setting."""
    return CrossEntropy()
